"""A tensor that is still compressed, in memory: its parts as section 8 of the specification has them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from pyendor import backends, choice, dtypes, jsontext, layout, slicing
from pyendor.choice import Survey, Values
from pyendor.errors import FormatError, PartError, UnsupportedError, UsageError, quote
from pyendor.layout import Bytes
from pyendor.metadata import TensorMeta

__all__ = ["EncodedTensor"]

DIGEST = "xxh3_64"
# Outputs that the caches do not hold anyway. Storing past them is a third faster then, and slower below.
STREAM = 16 << 20


@dataclass(frozen=True, slots=True)
class EncodedTensor:
    """Parts of a tensor, of the sizes that its metadata implies, their content not yet checked.

    Attributes:
        name: logical name; part of what the digest covers.
        meta: its entry in the endor object, of a supported encoding.
        parts: flat ``uint8`` arrays by role, in the order of B-2, that nobody else writes to.
        offsets: where each part begins in its file, for error messages.
        path: the file, for error messages.
    """

    name: str
    meta: TensorMeta
    parts: Mapping[str, Bytes]
    offsets: Mapping[str, int] = field(default_factory=dict)
    path: str | None = None

    @classmethod
    def encode(
        cls,
        name: str,
        dtype: str,
        shape: tuple[int, ...],
        dense: Bytes,
        *,
        values: Values = "auto",
        backend: str | None = None,
        digest: bool = True,
    ) -> EncodedTensor:
        """Encodes dense data, whatever that saves, in the smallest way.

        Args:
            name: of the tensor.
            dtype: name of its element type (spec 5.3).
            shape: its shape.
            dense: its data, ``uint8 [numel * itemsize]`` in row-major order, little-endian.
            values: ``raw`` or ``split`` leaves only these to choose from.
            backend: the codec to use.
            digest: compute one (D-2).

        Returns:
            The encoded tensor, in memory of its own.

        Raises:
            UnsupportedError: the dtype cannot be encoded.
            UsageError: the data has not the size that dtype and shape imply.
            BackendUnavailableError: there is no such codec.
        """
        known = dtypes.BY_NAME.get(dtype)
        if known is None or not known.encodable:
            raise UnsupportedError(f"tensor {quote(name)}: dtype {quote(dtype)} cannot be encoded")
        if any(not 0 <= size <= jsontext.LARGEST_INTEGER for size in shape):
            raise UsageError(
                f"tensor {quote(name)}: no dimension of {list(shape)} may be outside 0 to 2**53 - 1"
            )
        if dense.dtype != np.uint8 or dense.shape != (nbytes := layout.dense_nbytes(dtype, shape),):
            found = f"data of type {dense.dtype} and shape {list(dense.shape)}"
            raise UsageError(f"tensor {quote(name)}: {found}, expected uint8 of shape [{nbytes}]")
        survey = take_survey(dense, dtype, values, backend)
        meta = choice.smallest(choice.candidates(dtype, shape, survey, values))
        return cls.filled(name, meta, dense, backend=backend, digest=digest)

    @classmethod
    def filled(
        cls,
        name: str,
        meta: TensorMeta,
        dense: Bytes,
        *,
        backend: str | None = None,
        digest: bool = True,
    ) -> EncodedTensor:
        """Encodes dense data in the way that ``meta`` says.

        Args:
            name: of the tensor.
            meta: its entry, all that its encoding counts in it.
            dense: its data, ``uint8 [numel * itemsize]`` in row-major order, little-endian.
            backend: the codec to use.
            digest: compute one (D-2).

        Returns:
            The encoded tensor, in memory of its own.

        Raises:
            ValueError: the data has not what ``meta`` counts.
        """
        parts = {spec.role: np.zeros(spec.nbytes, np.uint8) for spec in layout.part_specs(meta)}
        backends.get(backend).encode(dense, meta, parts)
        encoded = cls(name, meta, parts)
        return encoded.renamed(name) if digest else encoded

    def renamed(self, name: str) -> EncodedTensor:
        """The same tensor under another name, of no file.

        Args:
            name: the name.

        Returns:
            The same parts, with the digest that the name makes (D-2).
        """
        bare = EncodedTensor(name, replace(self.meta, digest=None), self.parts)
        return replace(bare, meta=replace(bare.meta, digest=f"{DIGEST}:{bare.digest()}"))

    @property
    def dtype(self) -> str:
        """Name of the element type."""
        return self.meta.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical shape."""
        return self.meta.shape

    @property
    def nnz(self) -> int:
        """Number of stored elements; all of them where positions are ``all``."""
        return self.meta.stored

    @property
    def nbytes(self) -> int:
        """Compressed size: the sum of all parts, in bytes."""
        return sum(part.nbytes for part in self.parts.values())

    @property
    def dense_nbytes(self) -> int:
        """Decoded size in bytes."""
        return layout.dense_nbytes(self.dtype, self.shape)

    @property
    def sparsity(self) -> float:
        """Share of the elements that are not stored; 0.0 for a tensor without elements."""
        return 1 - self.nnz / self.meta.numel if self.meta.numel else 0.0

    def decode(
        self, out: Bytes | None = None, *, backend: str | None = None, stream: bool | None = None
    ) -> Bytes:
        """The dense data, all rules of section 8 checked.

        Args:
            out: where to put it, ``uint8 [dense_nbytes]``, contiguous. Best memory that has been used before.
                Otherwise it is new.
            backend: the codec to use.
            stream: whether ``out`` is stored past the caches; otherwise it is if it has 16 MiB or more. Right
                also for smaller ones, if so much else is decoded before it is used.

        Returns:
            ``uint8 [dense_nbytes]``, row-major and little-endian.

        Raises:
            FormatError: the parts break a rule of section 8. ``out`` then holds nothing of use.
            UsageError: ``out`` is of another size.
        """
        return self.decode_blocks(0, layout.blocks(self.meta.numel), out, backend=backend, stream=stream)

    def decode_blocks(
        self,
        first: int,
        stop: int,
        out: Bytes | None = None,
        *,
        backend: str | None = None,
        stream: bool | None = None,
    ) -> Bytes:
        """The dense data of some blocks of 4096 elements; only these are checked (B-11).

        Args:
            first: the first block.
            stop: the block after the last one.
            out: where to put it, ``uint8``, contiguous, of just that size. Otherwise it is new.
            backend: the codec to use.
            stream: whether ``out`` is stored past the caches, as of :meth:`decode`.

        Returns:
            ``uint8 [elements * itemsize]``, row-major and little-endian.

        Raises:
            FormatError: what was read breaks a rule of section 8. ``out`` then holds nothing of use.
            UsageError: there are no such blocks, or ``out`` is of another size.
        """
        numel = self.meta.numel
        nb = layout.blocks(numel)
        if not 0 <= first <= stop <= nb:
            raise UsageError(f"blocks {first} to {stop} of a tensor of {nb}")
        size = max(0, min(stop * layout.BLOCK, numel) - first * layout.BLOCK) * self._itemsize
        if out is None:
            out, stream = layout.allocate(size), False  # the first to touch it maps it
        elif out.dtype != np.uint8 or out.shape != (size,) or not out.flags.c_contiguous:
            raise UsageError(f"out must be a contiguous uint8 array of shape ({size},)")
        self._run(backend, out, first, stop, size >= STREAM if stream is None else stream)
        return out

    def cut(
        self,
        start: int,
        count: int,
        stride: int = 0,
        rows: int = 1,
        *,
        out: Bytes | None = None,
        backend: str | None = None,
    ) -> Bytes:
        """Runs of elements; reads, checks (B-11) and decodes only the blocks that they touch.

        Args:
            start: the first element of the first run, row-major.
            count: elements in a run.
            stride: from the first element of a run to that of the next.
            rows: number of runs.
            out: where to put them, ``uint8``, at least of that size.
            backend: the codec to use.

        Returns:
            Their dense data, ``uint8 [rows * count * itemsize]``, at the beginning of ``out`` if it is given.

        Raises:
            FormatError: what was read breaks a rule of section 8.
            UsageError: there are no such elements.
        """
        if min(start, count, stride, rows) < 0 or (
            rows and start + count + (rows - 1) * stride > self.meta.numel
        ):
            raise UsageError(f"{rows} runs of {count} elements from {start} on, {stride} apart")
        size = rows * count * self._itemsize
        out = layout.allocate(size) if out is None else out[:size]
        if size == 0:
            return out
        with self._located():
            backends.get(backend).cut(self.meta, self.parts, out, start, count, stride, rows)
        return out

    def take(
        self,
        start: int,
        shape: Sequence[int],
        strides: Sequence[int],
        *,
        out: Bytes | None = None,
        backend: str | None = None,
    ) -> Bytes:
        """The elements ``start + sum(i * stride)``, row-major in ``shape``, as :meth:`cut` reads them (B-11).

        Args:
            start: the first element.
            shape: of what is taken.
            strides: in elements, one for each dimension of ``shape``.
            out: where to put them, ``uint8``, at least of that size.
            backend: the codec to use.

        Returns:
            Their dense data, ``uint8 [product of shape * itemsize]``, at the beginning of ``out`` if it is
            given.

        Raises:
            FormatError: what was read breaks a rule of section 8.
            UsageError: there are no such elements.
        """
        outer, (rows, stride), count = slicing.runs(shape, strides)
        size = math.prod(shape) * self._itemsize
        out = layout.allocate(size) if out is None else out[:size]
        at = 0
        for offset in outer if size else ():
            at += self.cut(start + offset, count, stride, rows, out=out[at:], backend=backend).size
        return out

    def __getitem__(self, index: Any) -> npt.NDArray[Any]:
        """What the dense tensor as a NumPy array would give; only what that needs is decoded.

        BF16 and the 8-bit floats come as the types of ``ml_dtypes``.

        Raises:
            IndexError: it would raise that too.
            FormatError: what was read breaks a rule of section 8.
        """
        dtype = dtypes.BY_NAME[self.dtype].to_numpy()
        assert dtype is not None  # every type that can be encoded has one
        dtype = dtype.newbyteorder("<")
        view = slicing.basic(self.shape, index)
        if view is None:
            return np.array(slicing.shaped(self.decode().view(dtype), self.shape)[index])
        return view.turned(self.take(view.start, view.shape, view.strides).view(dtype))

    def validate(self, *, backend: str | None = None) -> None:
        """Checks all rules of section 8 without decoding.

        Args:
            backend: the codec to use.

        Raises:
            FormatError: the parts break one of them.
        """
        self._run(backend, None, 0, layout.blocks(self.meta.numel), False)

    def _run(self, backend: str | None, out: Bytes | None, first: int, stop: int, stream: bool) -> None:
        with self._located():
            backends.get(backend).decode(self.meta, self.parts, out, first, stop, stream)

    @contextmanager
    def _located(self) -> Iterator[None]:
        """Tells where in a file a fault of a part is."""
        try:
            yield
        except PartError as error:
            offset = (error.offset or 0) + self.offsets[error.part] if self.offsets else None
            raise error.located(tensor=self.name, offset=offset, path=self.path) from None

    @property
    def _itemsize(self) -> int:
        return dtypes.BY_NAME[self.dtype].itemsize

    def digest(self) -> str:
        """XXH3-64 of metadata and parts (D-2).

        Returns:
            16 hexadecimal digits.
        """
        state = xxhash.xxh3_64(jsontext.canonical({self.name: self.meta.members()}).encode())
        for part in self.parts.values():
            state.update(part.data)
        return state.hexdigest()

    def check_digest(self) -> bool:
        """Compares the parts with the digest in the metadata.

        Returns:
            Whether there was a digest to compare with.

        Raises:
            FormatError: they differ (D-2).
            UnsupportedError: the digest is of an algorithm that this build does not know (D-4).
        """
        if self.meta.digest is None:
            return False
        algorithm, _, digits = self.meta.digest.partition(":")
        if algorithm != DIGEST:
            raise UnsupportedError(
                f"tensor {quote(self.name)}: cannot check a digest of algorithm {quote(algorithm)}"
            )
        actual = self.digest()
        if actual != digits:
            offset = min(self.offsets.values(), default=None)
            found = f"digest is {actual}, the metadata says {digits}: its bytes have changed"
            raise FormatError("D-2", found, tensor=self.name, offset=offset, path=self.path)
        return True


def take_survey(dense: Bytes, dtype: str, values: Values, backend: str | None) -> Survey:
    """What decides how dense data is encoded, if it is left with these values to choose from."""
    choice.check(values)
    codec, known = backends.get(backend), dtypes.BY_NAME[dtype]
    if values == "raw" or not known.splittable:
        return Survey(codec.count(dense, known.itemsize))
    return codec.survey(dense, known)
