"""Weights for accelerate that stay encoded: the ``state_dict`` of its ``cpu_offload`` and ``dispatch_model``.

Accelerate asks for a weight by name each time that its module is about to run, moves what it gets to the
device and drops it afterwards. What it gets here is encoded (spec 8), so encoded is what moves. Needs the
extra ``pyendor[transformers]``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from accelerate.utils import find_tied_parameters
from torch import Tensor

from pyendor import selection
from pyendor.errors import UsageError, quote
from pyendor.torch import read, torch_dtype
from pyendor.torch_tensor import EndorTensor

__all__ = ["EncodedWeights"]

_SHOWN = 5


class EncodedWeights(Mapping[str, Tensor]):
    """The weights of a checkpoint by name, for ``cpu_offload(model, "cuda", state_dict=...)`` of accelerate.

    A mapping that is only read: ``weights[name]`` is a tensor on the CPU. Encoded tensors come as
    :class:`~pyendor.torch_tensor.EndorTensor`, their parts checked (B-11), others as they are.

    Args:
        path: a file, or a directory with a checkpoint, Endor or dense.
        model: whose weights these are, empty (on the meta device) or not. Names are then those of the model,
            where one tensor of the file serves all parameters that are tied, and dtypes are the model's.
            Without it names and dtypes are those of the checkpoint.
        on_disk: read a weight each time that it is asked for, instead of all of them now; files stay open.
        pin_memory: keep them in pinned memory, which a GPU copies from without the processor.
        verify: check the digests of encoded tensors when they are read (D-3).
        variant: which copy of the model to read from a directory that has several, as ``"fp16"``.

    Raises:
        FormatError: the checkpoint breaks a rule, or a digest, if checked, does not match; with ``on_disk``
            what is wrong with a weight is found when that is asked for.
        UnsupportedError: it needs what this build does not have, or a type that PyTorch does not have.
        UsageError: the model has parameters that the checkpoint does not, or of another shape; there are no
            weights at ``path``.
        OSError: it cannot be read.
        KeyError: when a weight is asked for that there is not.
        RuntimeError: memory cannot be pinned, as where there is no GPU.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        model: torch.nn.Module | None = None,
        *,
        on_disk: bool = False,
        pin_memory: bool = False,
        verify: bool = False,
        variant: str | None = None,
    ) -> None:
        self._verify = verify
        self._pin = pin_memory
        with ExitStack() as stack:
            self._places = stack.enter_context(selection.open_weights(Path(path), variant)).places
            self._names = {name: name for name in self._places}
            self._dtypes: dict[str, torch.dtype] = {}
            if model is not None:
                self._fit(model)
            self._memory: dict[str, Tensor] = {}
            if on_disk:
                self._files = stack.pop_all()
            else:
                self._memory = {source: self._read(source) for source in dict.fromkeys(self._names.values())}

    def _fit(self, model: torch.nn.Module) -> None:
        """Takes the names and dtypes of a model's parameters and buffers.

        Raises:
            UsageError: it has parameters that are not here.
        """
        prefix = getattr(model, "base_model_prefix", "")
        tied = {name: group for group in find_tied_parameters(model) for name in group}
        wanted = model.state_dict(keep_vars=True)
        names: dict[str, str] = {}
        lacking = []
        for name, tensor in wanted.items():
            sources = [
                candidate
                for one in (name, *tied.get(name, ()))
                for candidate in (one, f"{prefix}.{one}", one.removeprefix(f"{prefix}."))
                if candidate in self._places
            ]
            if sources:
                names[name] = sources[0]
                self._check(name, tensor, sources[0])
            elif isinstance(tensor, torch.nn.Parameter):
                lacking.append(name)
        if lacking:
            shown = ", ".join(map(quote, lacking[:_SHOWN])) + (" and more" if len(lacking) > _SHOWN else "")
            raise UsageError(
                f"the checkpoint has no {shown}. If the model has other names for its weights or fuses some, "
                "load it with pyendor.transformers.from_pretrained(path, keep_compressed=True) and pass the "
                "state_dict() of that"
            )
        self._names = names

    def _check(self, name: str, tensor: Tensor, source: str) -> None:
        found = self._places[source].tensor(source)
        if found.shape != tuple(tensor.shape):
            raise UsageError(
                f"tensor {quote(source)} has shape {list(found.shape)}, the model's {quote(name)} "
                f"{list(tensor.shape)}"
            )
        if torch_dtype(found) != tensor.dtype:
            self._dtypes[source] = tensor.dtype

    def _read(self, source: str) -> Tensor:
        opened = self._places[source]
        dtype = self._dtypes.get(source)
        if opened.tensor(source).meta is None:
            tensor = read(opened, source)
        else:
            encoded = opened.get_encoded(source)
            if self._verify:
                encoded.check_digest()
            encoded.validate()  # now, when it has a name and a place in a file
            tensor = EndorTensor.from_encoded(encoded)
        if dtype is not None:
            tensor = tensor.to(dtype)  # encoded again if it was
        return tensor.pin_memory() if self._pin else tensor

    def __getitem__(self, name: str) -> Tensor:
        source = self._names[name]
        return self._memory[source] if self._memory else self._read(source)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
