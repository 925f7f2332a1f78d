"""What a file or checkpoint holds, and what Endor makes of it (W-7, W-10): rows, totals, a plot.

Everything here is data; :mod:`pyendor.cli` prints it.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pyendor import atomic, checkpoint, choice, dtypes, entropy, layout, metadata
from pyendor.container import Entry
from pyendor.encoded import take_survey
from pyendor.errors import FormatError, UsageError, printable, quote
from pyendor.file import File
from pyendor.importers import compressed_tensors
from pyendor.importers.compressed_tensors import Foreign
from pyendor.layout import Bytes
from pyendor.metadata import TensorMeta
from pyendor.writer import Progress

__all__ = ["Report", "Row", "by_layer", "dense_bytes", "inspect", "plot"]

MOST_LAYERS = 512
_LAYER = re.compile(r"(?:^|\.)([0-9]{1,6})\.")


@dataclass(frozen=True)
class Row:
    """A logical tensor.

    Attributes:
        name, dtype, shape: of the tensor.
        file: name of the file that holds it.
        encoded: whether it is encoded in that file.
        numel: number of elements.
        nnz: number of stored elements; None where this build cannot tell.
        dense_bytes: its size as it is.
        stored_bytes: its size in that file, header aside.
        endor_bytes: its size in an Endor file, header aside; that of the plain tensor if encoding it
            does not save enough.
        unsupported: what this build lacks to read it, else None.
        encoding: how it is encoded, or would be in an Endor file; None if it stays plain.
        floor_bytes: its size at the entropy floor, estimated (:mod:`pyendor.entropy`); None where this build
            cannot tell.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    encoded: bool
    numel: int
    nnz: int | None
    dense_bytes: int
    stored_bytes: int
    endor_bytes: int
    unsupported: str | None = None
    encoding: str | None = None
    floor_bytes: float | None = None

    @property
    def sparsity(self) -> float | None:
        """Share of zero elements."""
        return 1 - self.nnz / self.numel if self.nnz is not None and self.numel else None

    @property
    def bits_per_weight(self) -> float | None:
        """Bits that an element takes in an Endor file, header aside."""
        return 8 * self.endor_bytes / self.numel if self.numel else None

    @property
    def floor(self) -> float | None:
        """The entropy floor, in bits per element."""
        return 8 * self.floor_bytes / self.numel if self.floor_bytes is not None and self.numel else None

    @property
    def saving(self) -> float:
        """Share of the dense size that an Endor file saves."""
        return 1 - self.endor_bytes / self.dense_bytes if self.dense_bytes else 0.0


@dataclass(frozen=True)
class Report:
    """All tensors of a file or checkpoint.

    Attributes:
        path: what was inspected.
        version: format version of its Endor files; None if it is dense.
        rows: its tensors.
        file_bytes: size of its weights files, headers included.
        foreign: what other format it is in, of which the rows show the dense tensors; else None.
    """

    path: str
    version: str | None
    rows: tuple[Row, ...]
    file_bytes: int
    foreign: str | None = None

    @property
    def numel(self) -> int:
        """Elements of all tensors."""
        return sum(row.numel for row in self.rows)

    @property
    def dense_bytes(self) -> int:
        """Dense size of all tensors."""
        return sum(row.dense_bytes for row in self.rows)

    @property
    def header_bytes(self) -> int:
        """What the files hold besides tensors."""
        return self.file_bytes - sum(row.stored_bytes for row in self.rows)

    @property
    def endor_bytes(self) -> int:
        """Size of the Endor files: measured if it is Endor, else estimated."""
        if self.version is not None:
            return self.file_bytes
        return sum(row.endor_bytes for row in self.rows) + self.header_bytes

    @property
    def worth_it(self) -> bool:
        """Whether any tensor gains from being encoded."""
        return any(row.encoded or row.endor_bytes < row.dense_bytes for row in self.rows)

    @property
    def encoded(self) -> tuple[Row, ...]:
        """The tensors that are encoded, in a way that this build knows."""
        return tuple(row for row in self.rows if row.encoded and row.unsupported is None)

    @property
    def pruned(self) -> tuple[Row, ...]:
        """Those of them of which only a part of the elements is stored."""
        return tuple(row for row in self.encoded if row.nnz is not None)

    def bits_per_weight(self, rows: Sequence[Row]) -> float | None:
        """Bits per element of some of its tensors, the whole header of the files charged to them.

        Args:
            rows: the tensors.

        Returns:
            Bits per weight on file; None if they have no elements.
        """
        numel = sum(row.numel for row in rows)
        return 8 * (sum(row.stored_bytes for row in rows) + self.header_bytes) / numel if numel else None

    def to_json(self) -> dict[str, Any]:
        """The same as JSON values.

        Returns:
            What ``endor inspect --json`` prints; sizes in bytes, shares from 0 to 1.
        """
        rows = [
            asdict(row)
            | {"sparsity": row.sparsity, "saving": row.saving}
            | {"bits_per_weight": row.bits_per_weight, "floor": row.floor}
            for row in self.rows
        ]
        return {
            "path": self.path,
            "version": self.version,
            "foreign": self.foreign,
            "file_bytes": self.file_bytes,
            "dense_bytes": self.dense_bytes,
            "endor_bytes": self.endor_bytes,
            "encoded_bits_per_weight": self.bits_per_weight(self.encoded),
            "worth_encoding": self.worth_it,
            "tensors": rows,
        }


def inspect(path: Path, *, backend: str | None = None, progress: Progress | None = None) -> Report:
    """Reads what a file or checkpoint holds; plain tensors are read whole, to count their zeros.

    Args:
        path: a file, or a directory in the layout of Hugging Face libraries; Endor, plain, or of
            compressed-tensors.
        backend: the codec to use.
        progress: called with the dense bytes of every tensor that was looked at.

    Returns:
        Its tensors, and their totals.

    Raises:
        FormatError: a header breaks a rule. (What encoded tensors hold is for :mod:`pyendor.verify`.)
        ForeignError, UnsupportedError: as :func:`pyendor.convert.compress`.
        UsageError: there are no weights at ``path``.
        OSError: it cannot be read.
    """
    rows: list[Row] = []
    version = None
    size = 0
    foreign = compressed_tensors.recognise(path)
    for opened in checkpoint.open_all(path):
        if opened.layout.version is not None:
            version = metadata.newest([opened.layout.version, version or opened.layout.version])
        size += opened.layout.header.file_length
        for row in _rows(opened, backend) if foreign is None else _foreign_rows(opened, foreign, backend):
            rows.append(row)
            if progress is not None:
                progress(row.dense_bytes)
    return Report(str(path), version, tuple(rows), size, foreign.what if foreign is not None else None)


def dense_bytes(path: Path) -> int:
    """Dense size of all tensors of a file or checkpoint, from its headers alone.

    Args:
        path: as for :func:`inspect`.

    Returns:
        Bytes.

    Raises:
        FormatError, ForeignError, UnsupportedError, UsageError, OSError: as :func:`inspect`.
    """
    foreign = compressed_tensors.recognise(path)
    total = 0
    for opened in checkpoint.open_all(path):
        if foreign is not None:
            total += sum(source.nbytes for source in foreign.sources(opened))
            continue
        for tensor in opened.layout.tensors.values():
            total += tensor.nbytes if tensor.unsupported is None else tensor.stored_nbytes
    return total


def _rows(opened: File, backend: str | None) -> Iterator[Row]:
    for tensor in opened.layout.tensors.values():
        yield _row(opened, tensor, backend)


def _foreign_rows(opened: File, foreign: Foreign, backend: str | None) -> Iterator[Row]:
    """Rows of the dense tensors that a file stands for."""
    packed = {one.name: one for one in foreign.of(opened)}
    for source in foreign.sources(opened, backend=backend):
        if source.name not in packed:
            yield _row(opened, opened.tensor(source.name), backend)
            continue
        entry = Entry(source.name, source.dtype, source.shape, 0, packed[source.name].stored_nbytes)
        tensor = layout.Tensor(source.name, source.dtype, source.shape, None, {"values": entry})
        yield _row(opened, tensor, backend, source.read)


def _row(
    opened: File, tensor: layout.Tensor, backend: str | None, read: Callable[[], Bytes] | None = None
) -> Row:
    """The row of a tensor; ``read`` gives the data of a plain one that the file has in another form."""
    stored = tensor.stored_nbytes
    row = Row(
        name=tensor.name,
        dtype=tensor.dtype,
        shape=tensor.shape,
        file=os.path.basename(opened.path or ""),
        encoded=tensor.meta is not None,
        numel=0,
        nnz=None,
        dense_bytes=stored,
        stored_bytes=stored,
        endor_bytes=stored if read is None else tensor.nbytes,
        unsupported=tensor.unsupported,
    )
    if tensor.unsupported is not None:
        return row  # what it says of itself was not checked
    row = replace(row, numel=tensor.numel, dense_bytes=tensor.nbytes)
    dtype = dtypes.BY_NAME[tensor.dtype]
    if tensor.meta is not None:
        encoded = opened.map_encoded(tensor.name)
        row = replace(row, nnz=tensor.meta.nnz, encoding=_encoding(tensor.meta))
        runs = entropy.sample(tensor.numel)
        try:
            some = np.concatenate([encoded.decode_blocks(*run, backend=backend) for run in runs])
        except FormatError:
            return row  # to be told by verify; what the header says is worth showing all the same
        return _with_floor(row, some, dtype)
    if not dtype.encodable:
        return row
    dense = opened.get_bytes(tensor.name) if read is None else read()
    survey = take_survey(dense, tensor.dtype, "auto", backend)
    row = _with_floor(replace(row, nnz=survey.nnz), entropy.pieces(dense, dtype.itemsize), dtype)
    meta = choice.choose(tensor.dtype, tensor.shape, survey)
    if meta is None:
        return row
    parts = layout.part_specs(meta)
    return replace(row, encoding=_encoding(meta), endor_bytes=sum(part.nbytes for part in parts))


def _encoding(meta: TensorMeta) -> str:
    """An encoding in a word: ``bitmap/split 2``."""
    return f"{meta.positions}/{meta.values}" + (f" {meta.split.w}" if meta.split is not None else "")


def _with_floor(row: Row, some: layout.Bytes, dtype: dtypes.DType) -> Row:
    bits = entropy.floor(some, dtype)
    return replace(row, floor_bytes=bits * row.numel / 8 if bits is not None else None)


def check_plot(path: Path, *, force: bool) -> None:
    """Whether :func:`plot` can write there, before hours of reading.

    Raises:
        UsageError: it cannot.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib: pip install 'pyendor[plot]'")
    if path.suffix != ".png":
        raise UsageError(f"{quote(str(path))}: the plot is a PNG file, its name ends with .png")
    if path.exists() and not force:
        raise UsageError(f"{quote(str(path))} exists; --force replaces it")


def plot(report: Report, path: Path, *, force: bool = False) -> None:
    """Draws sparsity and size by layer to a PNG file.

    Args:
        report: what to draw.
        path: the file, its name ending with ``.png``.
        force: replace an existing file.

    Raises:
        UsageError: matplotlib is missing, the name is another one, the file exists; or there are more layers
            than can be drawn, 512.
        OSError: writing failed.
    """
    check_plot(path, force=force)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    layers = by_layer(report.rows)
    if len(layers) > MOST_LAYERS:
        raise UsageError(f"{len(layers)} layers are too many to draw; the most are {MOST_LAYERS}")
    names = list(layers)
    places = range(len(names))
    figure = Figure(figsize=(max(6.4, 0.32 * len(names) + 2), 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2, 3])
    above.bar(places, [100 * (layer.sparsity or 0) for layer in layers.values()], color="#5b8def")
    above.set_ylabel("zeros, %")
    above.set_ylim(0, 100)
    name = printable(os.path.basename(os.path.abspath(report.path)))
    above.set_title(f"{name}: sparsity and size by layer", parse_math=False)
    mib = 1 << 20
    dense = [layer.dense_bytes / mib for layer in layers.values()]
    endor = [layer.endor_bytes / mib for layer in layers.values()]
    below.bar(places, dense, color="#d7dce5", label="dense")
    below.bar(places, endor, color="#2f9e6e", width=0.5, label="Endor")
    below.set_ylabel("MiB")
    below.set_xticks(list(places), names, rotation=90 if len(names) > 12 else 0)
    below.legend(frameon=False)
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    with atomic.new_file(path, force=force) as stream:
        figure.savefig(stream, format="png", dpi=120)


def by_layer(rows: Sequence[Row]) -> dict[str, Row]:
    """Rows summed up by the number of their layer.

    Args:
        rows: of one or more reports.

    Returns:
        A row for each layer, by its number; what is in no layer comes last, as ``other``.
    """
    groups: defaultdict[str, list[Row]] = defaultdict(list)
    for row in rows:
        match = _LAYER.search(row.name)
        groups[match[1] if match else "other"].append(row)
    ordered = sorted(groups, key=lambda key: (key == "other", int(key) if key != "other" else 0))
    return {key: _sum(key, groups[key]) for key in ordered}


def _sum(name: str, rows: Sequence[Row]) -> Row:
    counts = [row.nnz for row in rows if row.unsupported is None]
    return Row(
        name=name,
        dtype="",
        shape=(),
        file="",
        encoded=any(row.encoded for row in rows),
        numel=sum(row.numel for row in rows),
        nnz=None if None in counts else sum(filter(None, counts)),
        dense_bytes=sum(row.dense_bytes for row in rows),
        stored_bytes=sum(row.stored_bytes for row in rows),
        endor_bytes=sum(row.endor_bytes for row in rows),
        floor_bytes=sum(row.floor_bytes if row.floor_bytes is not None else row.dense_bytes for row in rows),
    )
