"""Tensors into the bytes of a file: the canonical Endor form (spec 10, rules W), and plain safetensors.

Both go to a stream that the caller opens, so that :mod:`pyendor.atomic` can make it all or nothing. One
tensor at a time is in memory, or where data has to be fetched, two: the next one is fetched meanwhile.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import BinaryIO

from pyendor import choice, container, dtypes, layout, metadata, parallel
from pyendor.choice import MIN_SAVING, Values
from pyendor.container import Entry
from pyendor.draft import Draft
from pyendor.encoded import EncodedTensor, take_survey
from pyendor.errors import UsageError, quote
from pyendor.layout import ALIGNMENT, Bytes
from pyendor.metadata import TensorMeta
from pyendor.storage import Desk

HEADER_ROOM = 1024  # bytes of a header for each tensor, if not fewer
DENSE_ALIGNMENT = 8  # what the safetensors package pads a header to

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class TensorSource:
    """A dense tensor that is to be written, its data read only when it is needed.

    Attributes:
        name, dtype, shape: as in a safetensors header.
        nbytes: its dense size.
        read: gives its data, ``uint8 [nbytes]``; called once.
        read_at: the same in memory that is used for one tensor after the other, for data that has to be
            fetched: that is done while another tensor is at work, so on another thread.
        stored: how much of the desk's memory for parts it needs.
        encoded: the same tensor encoded, if it is at hand; it is checked, and need not be encoded again
            unless other values are asked for.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    read: Callable[[], Bytes]
    encoded: EncodedTensor | None = None
    read_at: Callable[[Desk], Bytes] | None = None
    stored: int = 0

    def checked_read(self, desk: Desk | None = None) -> Bytes:
        """The data, of the right length."""
        data = self.read() if desk is None or self.read_at is None else self.read_at(desk)
        if data.size != self.nbytes:
            found = f"has {data.size} bytes of data, expected {self.nbytes}"
            raise UsageError(f"tensor {quote(self.name)} {found}")
        return data

    def given(self, values: Values) -> EncodedTensor | None:
        """The tensor encoded, if it is at hand in a way that is asked for."""
        suits = self.encoded is not None and values in {"auto", self.encoded.meta.values}
        return self.encoded if suits else None

    def encode(self, dense: Bytes, meta: TensorMeta, backend: str | None) -> EncodedTensor:
        """The tensor encoded in this way, with its digest."""
        try:
            return EncodedTensor.filled(self.name, meta, dense, backend=backend)
        except ValueError as error:
            found = f"tensor {quote(self.name)} changed while it was being written"
            raise UsageError(found) from error


@dataclass(frozen=True, slots=True)
class _Taken:
    """What a tensor that was read has become: its metadata if it is encoded, else where the draft has it."""

    meta: TensorMeta | None
    at: int = 0


def write(
    stream: BinaryIO,
    sources: Sequence[TensorSource],
    user_metadata: Mapping[str, str] | None = None,
    *,
    values: Values = "auto",
    min_saving: float | None = MIN_SAVING,
    progress: Progress | None = None,
    backend: str | None = None,
) -> None:
    """Writes the canonical Endor file of these tensors in this order (spec 10).

    Each tensor is read once. The header stands first in the file, and how long it is depends on what all of
    them become: they are written as a :class:`~pyendor.draft.Draft`.

    Args:
        stream: written from its present position on, and read while it is.
        sources: the tensors; names are unique.
        user_metadata: for ``__metadata__``; ``{"format": "pt"}`` if there is none (W-3).
        values: ``auto`` takes for each tensor what is smallest; ``raw`` only what readers of version 1.0
            know; ``split`` what is smallest of the split ones, where a dtype has them.
        min_saving: encode a tensor only where that saves this share of its size (W-7); None encodes
            every tensor that can be.
        progress: called with dense bytes as they are done, for what may be encoded by halves.
        backend: the codec to use.
    """
    _check_arguments(sources, user_metadata, min_saving)
    choice.check(values)
    with Draft(stream, HEADER_ROOM * (len(sources) + 1)) as draft:
        taken = _take(sources, values, min_saving, backend, progress, draft)
        plan = {name: one.meta for name, one in taken.items() if one.meta is not None}
        encoded = [source for source in sources if source.name in plan]
        plain = sorted((source for source in sources if source.name not in plan), key=_bits, reverse=True)
        entries = _place(
            [
                (spec.name(source.name), spec.dtype, spec.shape, spec.nbytes)
                for source in encoded
                for spec in layout.part_specs(plan[source.name])
            ]
            + [(source.name, source.dtype, source.shape, source.nbytes) for source in plain]
        )
        members = dict(user_metadata or {"format": "pt"}) | {metadata.KEY: metadata.build(plan)}
        draft.finish(container.build(entries, members, ALIGNMENT))
        with closing(_read_all([source for source in plain if source.name not in taken])) as data:
            for source in plain:
                if source.name in taken:
                    draft.write_later(taken[source.name].at, source.nbytes)
                else:
                    stream.write(next(data).data)
                    _report(progress, source.nbytes)


def write_dense(
    stream: BinaryIO,
    sources: Sequence[TensorSource],
    user_metadata: Mapping[str, str] | None = None,
    *,
    progress: Progress | None = None,
) -> None:
    """Writes a plain safetensors file, laid out as the safetensors package does it.

    So the file that a checkpoint came from, if that package wrote it with at most one member of metadata,
    comes back byte for byte. (It writes several in random order.)
    """
    _check_arguments(sources, user_metadata, None)
    for source in sources:
        if source.name.endswith(metadata.LOST_METADATA):
            raise UsageError(
                f"tensor {quote(source.name)}: a dense file with this name would be taken for an Endor file "
                "without its metadata [rule T-6]"
            )
    rank = {dtype.name: place for place, dtype in enumerate(dtypes.TABLE)}
    ordered = sorted(sources, key=lambda source: (-rank.get(source.dtype, -1), source.name))
    entries = _place((s.name, s.dtype, s.shape, s.nbytes) for s in ordered)
    stream.write(container.build(entries, user_metadata, DENSE_ALIGNMENT))
    with closing(_read_all(ordered)) as data:
        for source in ordered:
            stream.write(next(data).data)
            _report(progress, source.nbytes)


def _read_all(sources: Sequence[TensorSource]) -> Generator[Bytes]:
    """The data of all, one after the other, each gone when the next one is asked for.

    What has to be fetched is fetched while the one before is used. Beside the data that is used there is
    then one more tensor in memory, and what that is decoded from.
    """
    if any(source.read_at is None for source in sources):
        for source in sources:
            yield source.checked_read()
        return
    sizes = ((source.nbytes, source.stored) for source in sources)
    largest, most = (max(column, default=0) for column in zip(*sizes, strict=True)) if sources else (0, 0)
    pairs = list(zip(sources, itertools.cycle(Desk.pair(largest, most)), strict=False))
    with closing(parallel.ahead(lambda pair: pair[0].checked_read(pair[1]), pairs)) as data:
        yield from data


def _take(
    sources: Sequence[TensorSource],
    values: Values,
    min_saving: float | None,
    backend: str | None,
    progress: Progress | None,
    draft: Draft,
) -> dict[str, _Taken]:
    """Reads the tensors that might be encoded, decides (W-7), and adds what they become to the draft."""
    wanted = _candidates(sources)
    fetched = [source for source in wanted if source.given(values) is None]
    taken = {}
    with closing(_read_all(fetched)) as data:
        for source in wanted:
            tensor = source.given(values)
            if tensor is None:
                dense = next(data)
                survey = take_survey(dense, source.dtype, values, backend)
                _report(progress, source.nbytes // 2)
                meta = choice.choose(source.dtype, source.shape, survey, values, min_saving)
                tensor = source.encode(dense, meta, backend) if meta is not None else None
                if tensor is None:
                    taken[source.name] = _Taken(None, draft.add_later(dense))
                del dense  # before the next one is made
            elif choice.distinct(tensor.meta) and choice.worth(tensor.meta, min_saving):
                tensor.validate(backend=backend)
                tensor = tensor.renamed(source.name)
                _report(progress, source.nbytes // 2)
            else:
                continue  # decoded when it is written
            if tensor is not None:
                draft.add(tensor.parts.values())
                taken[source.name] = _Taken(tensor.meta)
            del tensor
            _report(progress, source.nbytes - source.nbytes // 2)
    return taken


def _candidates(sources: Sequence[TensorSource]) -> list[TensorSource]:
    """The tensors that may be encoded, if that gains enough."""
    names = sorted(source.name for source in sources)
    known = set(names)
    if len(known) != len(names):
        raise UsageError("two tensors have the same name")

    def may(source: TensorSource) -> bool:
        dtype = dtypes.BY_NAME.get(source.dtype)
        # Another tensor might be taken for a part of this one, or share its parts (T-1).
        alone = f"{source.name}.{metadata.KEY}" not in known and not metadata.belonging(names, source.name)
        return dtype is not None and dtype.encodable and alone

    return [source for source in sources if may(source)]


_Physical = tuple[str, str, tuple[int, ...], int]


def _place(tensors: Iterable[_Physical]) -> list[Entry]:
    """Entries one behind the other, from offset 0 of the data section on."""
    entries = []
    at = 0
    for name, dtype, shape, nbytes in tensors:
        entries.append(Entry(name, dtype, shape, at, at + nbytes))
        at += nbytes
    return entries


def _bits(source: TensorSource) -> int:
    dtype = dtypes.BY_NAME.get(source.dtype)
    return dtype.bits if dtype is not None else 0


def _check_arguments(
    sources: Sequence[TensorSource],
    user_metadata: Mapping[str, str] | None,
    min_saving: float | None,
) -> None:
    for source in sources:
        if not isinstance(source.name, str):
            raise UsageError(f"the name of a tensor is {source.name!r}, not a string")
    if not isinstance(user_metadata, Mapping | None):
        raise UsageError(f"metadata is {type(user_metadata).__name__}, not a mapping of text to text")
    for key, value in (user_metadata or {}).items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise UsageError(f"metadata is not text: {key!r}: {value!r}")
        if key == metadata.KEY:
            raise UsageError(f"the member {key!r} of metadata is the format's own")
    if min_saving is not None and not math.isfinite(min_saving):
        raise UsageError(f"min_saving {min_saving} is no share")


def _report(progress: Progress | None, done: int) -> None:
    if progress is not None:
        progress(done)
