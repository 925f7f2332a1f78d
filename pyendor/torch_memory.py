"""The memory of encoded tensors: parts that aliases share and writes replace, and dense copies for views.

A write cannot change parts in place, as their sizes depend on the elements. So tensors do not hold parts but
a :class:`Memory` that does, which ``detach()`` and ``.data`` hand on; whoever has it sees what is written.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from pyendor import layout, metadata
from pyendor.encoded import EncodedTensor
from pyendor.errors import UsageError
from pyendor.metadata import TensorMeta
from pyendor.torch_bytes import dtype_of, from_bytes, row_of, to_bytes

# How a view follows from the dense tensor that it is a view of.
Step = Callable[[Tensor], Tensor]

SHARED = (
    "an encoded tensor in shared memory cannot be written to, as other processes would not see it: "
    "write to its clone(), or share a decode()d one"
)


class Memory:
    """Parts and metadata of an encoded tensor, and the copies of its elements that its views show.

    Args:
        parts: by role, in the order of B-2; ``uint8`` tensors of one dimension on one device.
        meta: the entry of the tensor.
    """

    def __init__(self, parts: Mapping[str, Tensor], meta: TensorMeta) -> None:
        # One attribute, so that parts and metadata always fit each other.
        self.state: tuple[dict[str, Tensor], TensorMeta] = dict(parts), meta
        self._copies: WeakSet[Copy] = WeakSet()
        self._storage: NoStorage | None = None

    @property
    def parts(self) -> dict[str, Tensor]:
        """The parts by role."""
        return self.state[0]

    @property
    def meta(self) -> TensorMeta:
        """The entry of the tensor."""
        return self.state[1]

    @property
    def is_real(self) -> bool:
        """True if the parts are there, and not only noted down, as by torch.compile."""
        return all(type(part) is Tensor for part in self.parts.values())

    def decode(self) -> Tensor:
        """The dense tensor, in new memory; all rules of section 8 checked."""
        parts, meta = self.state
        about = (metadata.entry_text(meta), list(meta.shape), dtype_of(meta))
        dense: Tensor = torch.ops.endor.decode(list(parts.values()), *about)
        return dense

    def blank(self) -> Tensor:
        """Memory for a dense tensor, whatever is in it."""
        parts, meta = self.state
        return torch.empty(meta.shape, dtype=dtype_of(meta), device=parts["values"].device)

    def check_writable(self) -> None:
        """Raise an error if the elements cannot be replaced.

        Raises:
            UsageError: they cannot, for the reason that it gives.
        """
        if not self.is_real:
            raise UsageError(
                "an encoded tensor cannot be written to where operators are traced, as by torch.compile: "
                "write to it outside of the compiled function, or decode() it there"
            )
        if any(
            part.device.type == "cpu" and part.is_shared()  # type: ignore[no-untyped-call]
            for part in self.parts.values()
        ):
            raise UsageError(SHARED)

    def replace(self, parts: Mapping[str, Tensor], meta: TensorMeta, dense: Tensor | None = None) -> None:
        """Replace the elements. All tensors that have this memory, and all views of them, show the new ones.

        Args:
            parts: the new parts.
            meta: their entry, of the same shape and dtype.
            dense: the elements, decoded.
        """
        self.state = dict(parts), meta
        copies = list(self._copies)
        if copies and dense is None:
            dense = self.decode()
        for one in copies:
            assert dense is not None
            with torch.no_grad(), torch.inference_mode(one.root.is_inference()):
                one.root.copy_(replayed(dense, one.steps))

    def register(self, copied: Copy) -> None:
        """Remember a copy of elements, to keep it up to date for as long as there are views of it."""
        self._copies.add(copied)

    def storage(self, nbytes: int) -> NoStorage:
        """The storage that PyTorch asks for: always the same object, which has no bytes."""
        if self._storage is None:
            self._storage = NoStorage(nbytes, device="meta")  # type: ignore[no-untyped-call]
        return self._storage

    def __deepcopy__(self, memo: dict[int, Any]) -> Memory:
        parts, meta = self.state
        return Memory({role: copy.deepcopy(part, memo) for role, part in parts.items()}, meta)


class Backed(Tensor):
    """A tensor whose elements are those of an encoded tensor, or of a view of one.

    Attributes:
        memory: that of the encoded tensor; None where operators are traced and there is no way back to it.
    """

    memory: Memory | None

    @property
    def steps(self) -> tuple[Step, ...]:
        """How this follows from the dense tensor of the memory; nothing, if it is the whole tensor."""
        raise NotImplementedError

    def decode(self) -> Tensor:
        """The dense tensor."""
        raise NotImplementedError


class Copy:
    """Dense elements that views show.

    Args:
        root: a tensor in memory of its own.
        steps: how they follow from the dense tensor.
    """

    def __init__(self, root: Tensor, steps: Sequence[Step]) -> None:
        self.root = root
        self.steps = tuple(steps)


def replayed(dense: Tensor, steps: Sequence[Step]) -> Tensor:
    """The view of a dense tensor that these steps lead to."""
    for step in steps:
        dense = step(dense)
    return dense


def encode(tensor: Tensor) -> tuple[dict[str, Tensor], TensorMeta]:
    """Parts and metadata of a dense tensor, encoded in the smallest way (W-10), on its device.

    Raises:
        UnsupportedError: its dtype cannot be encoded (spec 5.3).
        UsageError: it is on the meta device.
    """
    row = row_of(tensor.dtype)
    if tensor.device.type == "meta":
        raise UsageError("a tensor on the meta device has no elements to encode: give it a device first")
    encoded = EncodedTensor.encode(
        "", row.name, tuple(tensor.shape), to_bytes(tensor.contiguous()), digest=False
    )
    parts = {role: from_bytes(part, torch.uint8, (part.size,)) for role, part in encoded.parts.items()}
    return {role: part.to(tensor.device) for role, part in parts.items()}, encoded.meta


def check_parts(parts: object, meta: TensorMeta) -> dict[str, Tensor]:
    """Parts that somebody else has put together, such as a pickle.

    Raises:
        UsageError: they are not those that the metadata asks for.
    """
    specs = layout.part_specs(meta)
    if not isinstance(parts, dict) or list(parts) != [spec.role for spec in specs]:
        found = list(parts) if isinstance(parts, dict) else type(parts).__name__
        raise UsageError(f"an encoded tensor has the parts {[spec.role for spec in specs]}, not {found}")
    for spec in specs:
        part = parts[spec.role]
        if not isinstance(part, Tensor) or part.dtype != torch.uint8 or part.shape != (spec.nbytes,):
            found = f"{part.dtype} {list(part.shape)}" if isinstance(part, Tensor) else type(part).__name__
            raise UsageError(f"part {spec.role} must be a torch.uint8 tensor of [{spec.nbytes}], not {found}")
        if not part.is_contiguous() or part.device != parts["values"].device:
            raise UsageError(f"part {spec.role} must be contiguous and on the device of the others")
    return dict(parts)


def no_dense_memory(name: str) -> UsageError:
    """The error for what reaches for the dense memory of an encoded tensor."""
    return UsageError(f"{name}: an encoded tensor has no dense memory; decode() it first")


class NoStorage(torch.UntypedStorage):
    """The storage of an encoded tensor: it has a size, to be asked for, and no bytes.

    Attributes:
        address: where bytes are that can be read but not written to, as of views; to be compared only.
    """

    address: int | None = None

    @classmethod
    def of(cls, dense: Tensor) -> NoStorage:
        """The storage of a copy, which must not be written to."""
        storage = dense.untyped_storage()
        made = cls(storage.nbytes(), device="meta")
        made.address = storage.data_ptr()
        return made

    def data_ptr(self) -> int:
        """Where the bytes are."""
        if self.address is None:
            raise no_dense_memory("UntypedStorage.data_ptr")
        return self.address


def _refusing(name: str) -> Callable[..., Any]:
    def refuse(self: NoStorage, *args: object, **kwargs: object) -> Any:
        raise no_dense_memory(f"UntypedStorage.{name}")

    return refuse


# What may be asked of it: sizes, kinds, and its identity, by which PyTorch tells storages apart.
_HARMLESS = {"data_ptr", "device", "element_size", "get_device", "nbytes", "resizable", "size", "untyped"}
_BYTES = {"__getitem__", "__setitem__", "__iter__", "__copy__", "__deepcopy__", "__reduce__", "__reduce_ex__"}
for _name in dir(torch.UntypedStorage):
    _public = not _name.startswith("_") and not _name.startswith("is_")
    _foreign = _name.startswith(
        ("_share_", "_write", "_set_from", "_byteswap", "_to", "_resize", "_swap", "_get_")
    )
    if (_public and _name not in _HARMLESS) or _name in _BYTES or _foreign:
        setattr(NoStorage, _name, _refusing(_name))
