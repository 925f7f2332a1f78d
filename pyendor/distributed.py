"""Endor checkpoints for ``torch.distributed.checkpoint``: every rank reads and decodes only its own slices.

    dcp.load(state, storage_reader=EndorReader("model-endor/"))

fills tensors, sharded by whatever is made of DTensors (FSDP2, tensor parallelism) or known to PyTorch
otherwise, from a checkpoint that is not sharded for anybody (spec 11). Dense checkpoints are read too. Needs
the extra ``pyendor[torch]``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from pyendor import selection
from pyendor.errors import UsageError, quote
from pyendor.torch import safe_open

__all__ = ["EndorReader"]


class EndorReader(StorageReader):
    """Reads what the plan of a rank asks for from an Endor or dense checkpoint.

    It is made and given to ``dcp.load``, which calls its methods: they are those of PyTorch's interface
    ``torch.distributed.checkpoint.StorageReader``, and documented there. Of an encoded tensor the blocks that
    a slice touches are read, checked and decoded (B-11). Values are converted where a tensor to be filled has
    another dtype than the checkpoint. What goes wrong ``dcp.load`` raises as a ``CheckpointException``, whose
    ``failures`` holds the errors that are named here, or PyTorch's own where names or shapes do not fit.

    Args:
        path: a file or a checkpoint directory; ``checkpoint_id`` of ``dcp.load`` takes its place.
        names: names in the checkpoint by those in the state, where they differ, as of tied weights:
            ``{"lm_head.weight": "model.embed_tokens.weight"}``.
        verify: check the digests of tensors that are read whole (D-3).
        variant: which copy of the model to read from a directory that has several, as ``"fp16"``.

    Attributes:
        bytes_read: bytes of files, headers included, that this process has read since the reader was made or
            given a ``checkpoint_id``.

    Raises:
        FormatError: what is read breaks a rule, or a digest, if checked, does not match.
        UnsupportedError: it needs what this build does not have, or a type that PyTorch does not have.
        UsageError: ``names`` has names that the checkpoint does not; there are no weights at the path.
        OSError: it cannot be read.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        names: Mapping[str, str] | None = None,
        *,
        verify: bool = False,
        variant: str | None = None,
    ) -> None:
        super().__init__()
        self._path = Path(path)
        self._names = dict(names or {})
        self._verify = verify
        self._variant = variant
        self._places: dict[str, tuple[Path, str]] = {}
        self.bytes_read = 0

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Begins another load."""
        if checkpoint_id is not None:
            self._path = Path(checkpoint_id)
        self._places = {}
        self.bytes_read = 0

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Names, shapes and types of all tensors, from the headers of all files."""
        tensors: dict[str, TensorStorageMetadata] = {}
        chosen = selection.select(self._path, self._variant)
        found: list[dict[str, TensorStorageMetadata]] = []
        for weights in chosen.paths:
            with safe_open(weights, "pt") as opened:
                found.append({name: _whole(opened, name) for name in opened.offset_keys()})
                self.bytes_read += opened.bytes_read
        by_path = dict(zip(chosen.paths, found, strict=True))
        for name, weights in chosen.owners(found).items():
            self._places[name] = (weights, name)
            tensors[name] = by_path[weights][name]
        for name, source in self._names.items():
            if source not in tensors:
                raise UsageError(f"the checkpoint has no tensor {quote(source)}, which names has")
            self._places[name], tensors[name] = self._places[source], tensors[source]
        return Metadata(state_dict_metadata=dict(tensors), storage_meta=StorageMeta(self._path))

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        """Nothing to do: every rank has read all headers."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """The plan as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """The plans as they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Reads what the plan says, file by file."""
        files: dict[Path, list[tuple[str, ReadItem]]] = {}
        for item in plan.items:
            if item.type is not LoadItemType.TENSOR:
                raise UsageError(f"{quote(item.storage_index.fqn)} is no tensor: there are only tensors here")
            weights, name = self._places[item.storage_index.fqn]
            files.setdefault(weights, []).append((name, item))
        for weights, items in files.items():
            with safe_open(weights, "pt", backend="pread", verify=self._verify) as opened:
                for name, item in items:
                    _read(opened, name, item, planner)
                self.bytes_read += opened.bytes_read
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether there is such a file or directory."""
        return Path(checkpoint_id).exists()


def _whole(opened: safe_open, name: str) -> TensorStorageMetadata:
    """A tensor as one chunk, of which any part can be read."""
    tensor = opened.get_slice(name)
    size = torch.Size(tensor.get_shape())
    chunk = ChunkStorageMetadata(offsets=torch.Size([0] * len(size)), sizes=size)
    return TensorStorageMetadata(TensorProperties(dtype=tensor.torch_dtype), size, [chunk])


def _read(opened: safe_open, name: str, item: ReadItem, planner: LoadPlanner) -> None:
    box = tuple(
        slice(offset, offset + length)
        for offset, length in zip(item.storage_offsets, item.lengths, strict=True)
    )
    found = opened.get_slice(name)[box]
    target = planner.resolve_tensor(item).detach()
    if target.shape != found.shape:
        raise UsageError(f"tensor {quote(name)}: {list(found.shape)} cannot fill {list(target.shape)}")
    target.copy_(found)
    planner.commit_tensor(item, target)
