"""The front door for PyTorch: ``safetensors.torch``, argument for argument, over Endor files.

Plain safetensors files are read too. Where the two modules differ, and why, stands in ``docs/torch.md``.
Needs the extra ``pyendor[torch]``: PyTorch, and safetensors, which knows what tensors share memory.
"""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import _find_shared_tensors, _remove_duplicate_names
from torch import Tensor

from pyendor import atomic, file, layout, parallel, selection, torch_bytes, torch_cuda, writer
from pyendor.choice import MIN_SAVING, Values
from pyendor.errors import UnsupportedError, UsageError, quote
from pyendor.layout import Bytes
from pyendor.opened import Opened, Sliceable, dtype_of, no_counterpart
from pyendor.torch_bytes import BY_TORCH, from_bytes, to_bytes
from pyendor.torch_tensor import EndorTensor
from pyendor.torch_views import Transposed
from pyendor.writer import TensorSource

__all__ = [
    "EndorTensor",
    "TensorSlice",
    "iter_weights",
    "load",
    "load_file",
    "load_model",
    "safe_open",
    "save",
    "save_file",
    "save_model",
]

Device = str | int | torch.device | None

# Two elements of 4 bits in a byte: the last dimension of the file is twice that of the tensor.
_PACKED = getattr(torch, "float4_e2m1fn_x2", None)
_SHARED = "https://huggingface.co/docs/safetensors/torch_shared_tensors"


def save_file(
    tensors: dict[str, Tensor],
    filename: str | os.PathLike[str],
    metadata: dict[str, str] | None = None,
    *,
    values: Values = "auto",
    min_saving: float | None = MIN_SAVING,
) -> None:
    """Saves tensors as an Endor file, in the order of the dictionary; replaces a file, all or nothing.

    Args:
        tensors: by name, of any shape, on any device; dense, contiguous, no two of them in the same memory.
        filename: the file to write.
        metadata: text of your own; None is ``{"format": "pt"}`` (W-3).
        values: ``auto`` takes for each tensor the smallest encoding (W-10); ``raw`` keeps to what readers of
            format 1.0 know; ``split`` takes split values where a dtype has them.
        min_saving: encode a tensor only where that saves this share of its size (W-7); None encodes every one
            that can be.

    Raises:
        ValueError: a tensor is sparse or not contiguous, or no tensor.
        RuntimeError: tensors share memory.
        UnsupportedError: a dtype has no counterpart in the format.
        UsageError: names that the format does not have (W-8), or a header that gets too long (W-1).
        OSError: writing failed; a file that was there is as it was.
    """
    sources = _sources(tensors)
    with atomic.new_file(filename, force=True) as stream:
        writer.write(stream, sources, metadata, values=values, min_saving=min_saving)


def save(
    tensors: dict[str, Tensor],
    metadata: dict[str, str] | None = None,
    *,
    values: Values = "auto",
    min_saving: float | None = MIN_SAVING,
) -> bytes:
    """The bytes that :func:`save_file` would write.

    Args:
        tensors: by name, as for :func:`save_file`.
        metadata: text of your own; None is ``{"format": "pt"}`` (W-3).
        values: as in :func:`save_file`.
        min_saving: as in :func:`save_file`.

    Returns:
        A whole file.

    Raises:
        ValueError, RuntimeError, UnsupportedError, UsageError: as :func:`save_file`.
    """
    stream = io.BytesIO()
    writer.write(stream, _sources(tensors), metadata, values=values, min_saving=min_saving)
    return stream.getvalue()


def load_file(
    filename: str | os.PathLike[str], device: Device = "cpu", *, backend: str = "mmap"
) -> dict[str, Tensor]:
    """Loads all tensors of an Endor or plain safetensors file.

    Args:
        filename: the file.
        device: where tensors go: all that ``torch.device`` takes, but ``"meta"``; None is the CPU, as there.
        backend: of the safetensors package; there is no difference here.

    Returns:
        Tensors by name in the order of their data, in memory of their own, of the shapes and dtypes that were
        saved.

    Raises:
        FormatError: the file breaks a rule. Digests are checked by :class:`safe_open` if asked for (D-3).
        UnsupportedError: it needs what this build does not have, or a type that PyTorch does not have.
        UsageError: the device is unknown.
        OSError: it cannot be read.
    """
    with safe_open(filename, "pt", device, backend=backend) as opened:
        return opened.get_tensors()


def load(data: bytes) -> dict[str, Tensor]:
    """Loads all tensors from the bytes of a file.

    Args:
        data: a whole file.

    Returns:
        What :func:`load_file` returns, on the CPU.

    Raises:
        FormatError, UnsupportedError: as :func:`load_file`.
    """
    with file.open_bytes(bytes(data)) as opened:
        return _tensors(opened)


def save_model(
    model: torch.nn.Module,
    filename: str | os.PathLike[str],
    metadata: dict[str, str] | None = None,
    force_contiguous: bool = True,
    *,
    values: Values = "auto",
    min_saving: float | None = MIN_SAVING,
) -> None:
    """Saves the state of a model; of tensors that share memory one, the others named in the metadata.

    Args:
        model: the model.
        filename: the file to write.
        metadata: text of your own; None is ``{"format": "pt"}`` (W-3).
        force_contiguous: save what is not contiguous as if it was.
        values: as in :func:`save_file`.
        min_saving: as in :func:`save_file`.

    Raises:
        ValueError: something is not contiguous, and ``force_contiguous`` is not set.
        RuntimeError: tensors overlap, and none of them holds the others.
        UnsupportedError, UsageError, OSError: as :func:`save_file`.
    """
    state = dict(model.state_dict())
    if not isinstance(metadata, Mapping | None):
        raise UsageError(f"metadata is {type(metadata).__name__}, not a mapping of text to text")
    text = dict(metadata or {})
    for kept, others in _remove_duplicate_names(_memory(state)).items():
        for name in others:
            text.setdefault(name, kept)
            del state[name]
    if force_contiguous:
        state = {name: tensor.contiguous() for name, tensor in state.items()}
    for name, tensor in state.items():
        if tensor.layout == torch.strided and not tensor.is_contiguous():
            raise ValueError(
                f"tensor {quote(name)} is not contiguous: make it contiguous, or "
                "use save_model(..., force_contiguous=True), which saves a contiguous copy of it"
            )
    save_file(state, filename, text or None, values=values, min_saving=min_saving)


def load_model(
    model: torch.nn.Module,
    filename: str | os.PathLike[str],
    strict: bool = True,
    device: Device = "cpu",
    *,
    backend: str = "mmap",
) -> tuple[set[str], list[str]]:
    """Loads what :func:`save_model` has saved into a model.

    Args:
        model: the model, whose parameters and buffers are overwritten.
        filename: the file.
        strict: insist on the file having all that the model has, and no more.
        device: where tensors go on the way.
        backend: of the safetensors package; there is no difference here.

    Returns:
        Names that the model has and the file does not, and the other way round.

    Raises:
        RuntimeError: there are such names, and ``strict``; or a shape is another one.
        FormatError, UnsupportedError, UsageError, OSError: as :func:`load_file`.
    """
    state = load_file(filename, device, backend=backend)
    # What shares its memory with a tensor of the file has been loaded with it.
    shared = _remove_duplicate_names(_memory(model.state_dict()), preferred_names=list(state))
    result = model.load_state_dict(state, strict=False)
    missing, unexpected = set(result.missing_keys), list(result.unexpected_keys)
    for names in shared.values():
        unexpected += [name for name in names if name not in missing]
        missing -= set(names)
    if strict and (missing or unexpected):
        lines = [f"Error(s) in loading state_dict for {type(model).__name__}:"]
        for what, keys in (("Missing", sorted(missing)), ("Unexpected", sorted(unexpected))):
            if keys:
                listed = ", ".join(f'"{key}"' for key in keys)
                lines.append(f"    {what} key(s) in state_dict: {listed}")
        raise RuntimeError("\n".join(lines))
    return missing, unexpected


class safe_open(Opened):  # noqa: N801  the name that users of safetensors know
    """An open file whose tensors are read one by one.

    Args:
        filename: an Endor or plain safetensors file.
        framework: ``"pt"``, ``"torch"`` or ``"pytorch"``.
        device: where tensors go: all that ``torch.device`` takes, but ``"meta"``. To a GPU they are copied
            encoded, and decoded there (:mod:`pyendor.torch_cuda`).
        backend: ``"mmap"`` takes slices of a map of the file, ``"pread"`` reads what they need.
        verify: check each tensor's digest when it is read whole (D-3).

    Raises:
        FormatError: its header breaks a rule J, C, M or T.
        UnsupportedError: its major version is unknown (V-1).
        UsageError: the framework, the device or the backend is unknown.
        OSError: it cannot be read.
    """

    def __init__(
        self,
        filename: str | os.PathLike[str],
        framework: str = "pt",
        device: Device = "cpu",
        *,
        backend: str = "mmap",
        verify: bool = False,
    ) -> None:
        if framework not in {"pt", "torch", "pytorch"}:
            raise UsageError(f"framework {quote(str(framework))}: this is the PyTorch front door")
        self._device = _device(device)
        super().__init__(filename, backend, verify=verify)

    def get_tensor(self, name: str) -> Tensor:
        """One tensor, decoded into new memory.

        Args:
            name: of the tensor.

        Returns:
            A tensor of its shape and dtype, on the device that the file was opened for.

        Raises:
            FormatError: its parts break a rule of section 8, or its digest, if checked, does not match.
            UnsupportedError: this build cannot read it, or PyTorch does not have its type.
            UsageError: there is no such tensor.
        """
        return read(self._file, name, self._device, verify=self._verify)

    def get_tensors(self) -> dict[str, Tensor]:
        """All tensors, decoded into new memory.

        Returns:
            Tensors by name, in the order of their data.

        Raises:
            FormatError, UnsupportedError: as :meth:`get_tensor`.
        """
        return _tensors(self._file, self._device, verify=self._verify)

    def get_encoded(self, name: str) -> EndorTensor:  # type: ignore[override]
        """One encoded tensor, still compressed, as a tensor that decodes itself when it is used.

        Args:
            name: of the tensor.

        Returns:
            A tensor of its dense shape and dtype, its parts on the device that the file was opened for.

        Raises:
            UnsupportedError: this build cannot read it, or PyTorch does not have its type.
            UsageError: there is no such tensor, or it is plain.
        """
        return cast(EndorTensor, EndorTensor.from_encoded(self._file.get_encoded(name)).to(self._device))

    def get_slice(self, name: str) -> TensorSlice:
        """A tensor to be indexed: ``get_slice(name)[:, 8:16]``.

        Only what that needs is read, checked and decoded (B-11).

        Args:
            name: of the tensor.

        Returns:
            What has its shape and dtype, and gives tensors when it is indexed.

        Raises:
            UnsupportedError: this build cannot read it.
            UsageError: there is no such tensor.
            IndexError, TypeError, ValueError, RuntimeError: when it is indexed, what the index makes a tensor
                of its shape raise.
        """
        return TensorSlice(self._file, self._file.tensor(name), self._device, verify=self._verify)


def iter_weights(
    path: str | os.PathLike[str],
    device: Device = "cpu",
    *,
    prefetch: int = 1,
    verify: bool = False,
    variant: str | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a file or of all files of a checkpoint, one by one, in the order of their data.

    What weight loaders of inference engines take. The next tensors are read and decoded while the last one is
    being used; there are never more than ``prefetch + 1`` of them besides those that the caller keeps.

    Args:
        path: an Endor or plain safetensors file, or a directory with such.
        device: where the tensors go.
        prefetch: tensors to be read ahead; 0 for none.
        verify: check each tensor's digest (D-3).
        variant: which copy of the model to read from a directory that has several, as ``"fp16"``.

    Yields:
        Name and tensor, of the shape and dtype that it was saved with.

    Raises:
        FormatError, UnsupportedError: as :func:`load_file`, when the tensor at fault is asked for.
        UsageError: there are no weights at ``path``; the device is unknown.
        OSError: they cannot be read.
    """
    where = _device(device)
    with ExitStack() as stack:
        places = stack.enter_context(selection.open_weights(Path(path), variant)).places
        pool = stack.enter_context(parallel.Pool(1, "pyendor-prefetch"))

        def fetch(one: file.File, name: str) -> tuple[str, Tensor]:
            return name, read(one, name, where, verify=verify)

        def received(future: Future[tuple[str, Tensor]]) -> tuple[str, Tensor]:
            name, tensor = future.result()
            return name, torch_cuda.hand_over(tensor)

        waiting: deque[Future[tuple[str, Tensor]]] = deque()
        stack.callback(lambda: [future.cancel() for future in waiting])
        for name, one in places.items():
            if prefetch < 1:
                yield fetch(one, name)
                continue
            waiting.append(pool.submit(fetch, one, name))
            if len(waiting) > prefetch:
                yield received(waiting.popleft())
        while waiting:
            yield received(waiting.popleft())


def read(opened: file.File, name: str, device: Device = "cpu", *, verify: bool = False) -> Tensor:
    """One tensor of an open file, decoded into new memory of a device."""
    tensor = opened.tensor(name)
    dtype = torch_dtype(tensor)
    where = _device(device)
    if torch_cuda.usable(where):
        wanted = {name: (dtype, _shape(tensor.shape, dtype))}
        return torch_cuda.load(opened, wanted, where, verify=verify)[name]
    return _view(opened.get_bytes(name, verify=verify), dtype, tensor.shape).to(where)


class TensorSlice(Sliceable):
    """A tensor of an open file that is indexed as the tensor would be."""

    def __init__(
        self, opened: file.File, tensor: layout.Tensor, device: torch.device, *, verify: bool = False
    ) -> None:
        super().__init__(opened, tensor)
        self._device = device
        self._verify = verify

    @property
    def torch_dtype(self) -> torch.dtype:
        """Its type, as PyTorch calls it."""
        return torch_dtype(self._tensor)

    def __getitem__(self, index: Any) -> Tensor:
        dtype = torch_dtype(self._tensor)
        # A tensor of that shape that is nowhere: where a view begins and how it strides is all that is asked.
        nowhere = torch_bytes.without_data(_shape(self._tensor.shape, dtype), torch.uint8, "meta")
        view = nowhere[index] if _is_basic(index) else None
        if view is not None and view.shape == nowhere.shape and view.is_contiguous():
            data = self._file.get_bytes(self._tensor.name, verify=self._verify)
            return _view(data, dtype, self._tensor.shape).to(self._device)
        if view is None or dtype == _PACKED:
            data = self._file.get_bytes(self._tensor.name, verify=self._verify)
            return _view(data, dtype, self._tensor.shape)[index].clone().to(self._device)
        data = self._file.cut(self._tensor.name, int(view.storage_offset()), view.shape, view.stride())
        return _view(data, dtype, tuple(view.shape)).to(self._device)


def _is_basic(index: object) -> bool:
    """Whether indexing with it gives a view and no copy."""
    items = index if isinstance(index, tuple) else (index,)
    return not any(isinstance(item, bool) for item in items) and all(
        item is None or item is Ellipsis or isinstance(item, slice | int | np.integer) for item in items
    )


def _device(device: Device) -> torch.device:
    try:
        found = torch.device("cpu" if device is None else device)
    except (RuntimeError, TypeError) as error:
        raise UsageError(f"device {quote(str(device))} is none: {error}") from error
    if found.type == "meta":
        raise UsageError("device 'meta' holds no data: nothing can be loaded there")
    if found.type != "cpu":
        try:
            torch.empty(0, dtype=torch.uint8, device=found)
        except (RuntimeError, AssertionError, ImportError) as error:  # each kind of device has its own
            raise UsageError(f"device {quote(str(found))} cannot be used here: {error}") from error
    return found


def torch_dtype(tensor: layout.Tensor) -> torch.dtype:
    """What PyTorch calls the type of a tensor.

    Raises:
        UnsupportedError: it does not have it, or this build cannot read the tensor.
    """
    dtype = torch_bytes.torch_dtype(dtype_of(tensor).name)
    if dtype is None:
        raise no_counterpart(tensor, "PyTorch")
    return dtype


def _shape(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[int, ...]:
    """The shape of a tensor, given that in the file.

    Raises:
        UnsupportedError: rows end in the middle of a byte.
    """
    if dtype != _PACKED or not shape:
        return shape
    if shape[-1] % 2:
        raise UnsupportedError(f"PyTorch has two F4 elements in a byte, and no rows of {shape[-1]}")
    return (*shape[:-1], shape[-1] // 2)


def _view(data: Bytes, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    return from_bytes(data, dtype, _shape(shape, dtype))


def _tensors(
    opened: file.File, device: torch.device | None = None, *, verify: bool = False
) -> dict[str, Tensor]:
    tensors = opened.layout.tensors
    wanted = {name: torch_dtype(tensor) for name, tensor in tensors.items()}
    if device is not None and torch_cuda.usable(device):
        shaped = {name: (dtype, _shape(tensors[name].shape, dtype)) for name, dtype in wanted.items()}
        return torch_cuda.load(opened, shaped, device, verify=verify)
    data = opened.load(verify=verify)
    return {
        name: _view(data.pop(name), dtype, tensors[name].shape).to(device or "cpu")
        for name, dtype in wanted.items()
    }


def _memory(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same with tensors that have memory, so that it can be seen what shares it."""
    return {
        name: tensor.memory.parts["values"] if isinstance(tensor, EndorTensor | Transposed) else tensor
        for name, tensor in tensors.items()
    }


def _sources(tensors: Mapping[str, Tensor]) -> list[TensorSource]:
    if not isinstance(tensors, dict):
        raise ValueError(f"expected a dict of tensors by name, not {type(tensors)}")
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{quote(str(name))} is no torch.Tensor but {type(tensor)}")
        if tensor.layout != torch.strided:
            raise ValueError(f"tensor {quote(str(name))} is sparse; save its to_dense(), which is encoded")
    shared = [sorted(names) for names in _find_shared_tensors(_memory(tensors)) if len(names) > 1]
    if shared:
        raise RuntimeError(f"tensors share memory: {shared}. Use save_model, or read {_SHARED}")
    return [_source(name, tensor) for name, tensor in tensors.items()]


def _source(name: str, tensor: Tensor) -> TensorSource:
    if not tensor.is_contiguous():
        raise ValueError(
            f"tensor {quote(str(name))} is not contiguous: save its .contiguous(), or, if it is a part of "
            "another one, only that other one"
        )
    if tensor.device.type == "meta":
        raise NotImplementedError(f"Cannot copy out of meta tensor {quote(str(name))}: it has no data")
    row = BY_TORCH.get(tensor.dtype)
    if row is None:
        found = f"dtype {tensor.dtype} has no counterpart in the format"
        raise UnsupportedError(f"tensor {quote(str(name))}: {found}")
    shape = tuple(tensor.shape)
    if tensor.dtype == _PACKED:
        if not shape:
            found = "no dimension to count its two elements of 4 bits"
            raise UnsupportedError(f"tensor {quote(str(name))}: {found}")
        shape = (*shape[:-1], 2 * shape[-1])
    nbytes = tensor.numel() * tensor.element_size()
    if isinstance(tensor, EndorTensor):
        dense = tensor.decode
        return TensorSource(name, row.name, shape, nbytes, lambda: to_bytes(dense()), tensor.to_encoded(name))
    return TensorSource(name, row.name, shape, nbytes, lambda: to_bytes(tensor))
