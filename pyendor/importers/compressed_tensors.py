"""Checkpoints that the compressed-tensors library has written as ``sparse-bitmask`` or ``sparse-24-bitmask``.

That library reads neither any more, and loaders that ignore names they do not know go on with random weights.
Comes in: a safetensors file, or a directory with its ``config.json``. Goes out: what it holds as
:class:`~pyendor.writer.TensorSource`, one for each tensor of the dense checkpoint, and the dense config.

How a tensor is stored, :mod:`pyendor.importers.bitmask` says. Its parts may lie in different shards, which
were cut without regard to them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from pyendor import checkpoint, container, dtypes, file, jsontext, layout, manifest
from pyendor.container import Entry
from pyendor.errors import ForeignError, UnsupportedError, quote
from pyendor.file import File
from pyendor.importers import bitmask
from pyendor.importers.bitmask import BITMASK, BITMASK_24, PARTS, Packed, PartsError
from pyendor.layout import Bytes
from pyendor.naming import CONFIG
from pyendor.writer import TensorSource

METHOD = "compressed-tensors"
# The original config, which is kept under this name.
KEPT_CONFIG = "config.compressed-tensors.json"
_LONGEST_SHAPE = 8 * container.HIGHEST_RANK
_ROLES = frozenset(PARTS[BITMASK])
# Formats of quantised weights that sparsity was applied on top of: once it is undone, they are as ever.
QUANTIZED = ("dense", "int-quantized", "float-quantized", "naive-quantized", "pack-quantized")
_SPARSITY = "sparsity_config"
# Where releases put it: at the top until 0.3, then in one of these.
_OLD_SECTION, _SECTION = "compression_config", "quantization_config"
_SECTIONS = (_OLD_SECTION, _SECTION)


@dataclass(frozen=True, slots=True)
class Foreign:
    """A checkpoint of compressed-tensors with bitmasks.

    Attributes:
        root: its directory.
        formats: those that it uses.
        packed: its compressed tensors, by the name of the file that they belong to.
        config: the config of the dense checkpoint; None if there is none.
    """

    root: Path
    formats: tuple[str, ...]
    packed: Mapping[str, tuple[Packed, ...]]
    config: Mapping[str, Any] | None = None

    @property
    def what(self) -> str:
        """What it is, in words."""
        return f"{METHOD} {', '.join(self.formats)}"

    def sources(self, opened: File, *, backend: str | None = None) -> list[TensorSource]:
        """The dense tensors of one of its files, in the order of the safetensors package.

        One that is compressed is read, checked and decoded when its data is asked for.

        Raises:
            ForeignError: what the parts of a tensor say does not agree; by ``read`` of the sources too.
        """
        sources = [source for source in opened.sources() if _split(source.name) is None]
        for packed in self.of(opened):
            nbytes = layout.dense_nbytes(packed.dtype, packed.shape)
            sources.append(
                TensorSource(
                    packed.name,
                    packed.dtype,
                    packed.shape,
                    nbytes,
                    partial(self._read, packed, opened, backend),
                )
            )
        rank = {dtype.name: place for place, dtype in enumerate(dtypes.TABLE)}
        return sorted(sources, key=lambda source: (-rank.get(source.dtype, -1), source.name))

    def of(self, opened: File) -> tuple[Packed, ...]:
        """The compressed tensors of one of its files."""
        return self.packed.get(os.path.basename(opened.path or ""), ())

    def _read(self, packed: Packed, opened: File, backend: str | None) -> Bytes:
        here = os.path.basename(opened.path or "")
        with ExitStack() as others:
            files = {here: opened}
            for name in packed.parts.values():
                if name not in files:
                    files[name] = others.enter_context(file.open_file(self.root / name))
            parts = {
                role: files[name].get_bytes(f"{packed.stem}.{role}") for role, name in packed.parts.items()
            }
        if sum(part.size for part in parts.values()) != packed.stored_nbytes:
            raise self._fault(packed, "its parts changed while they were read")
        try:
            return bitmask.decode(packed, parts, backend)
        except PartsError as fault:
            raise self._fault(packed, str(fault)) from None

    def _fault(self, packed: Packed, found: str) -> ForeignError:
        return ForeignError(found, tensor=packed.name, path=self.root / packed.parts["bitmask"])


@dataclass(frozen=True, slots=True)
class _Part:
    """A part: the file that holds it, its entry there, and the data of a shape that is not too long."""

    file: str
    entry: Entry
    data: Bytes | None


def recognise(path: Path) -> Foreign | None:
    """What a file or directory is if it is a checkpoint of compressed-tensors with bitmasks; else None.

    Of a directory the config is asked too, of a file only the names that are in it. Headers and shapes are
    read, and no other data.

    Raises:
        ForeignError: config and tensors, or the parts of a tensor, do not agree; or names overlap.
        UnsupportedError: the config names a format that is not known here.
        FormatError: a header breaks a rule.
        UsageError: there are no weights.
    """
    claimed = config = None
    groups: Iterable[Sequence[str]] = [[path.name]]
    root = path.parent
    if path.is_dir():
        found = checkpoint.listing(path)
        if found.is_endor:
            return None
        root = path
        groups = _groups(found)
        if PurePosixPath(CONFIG) in found.carried:
            config = manifest.read_config(root / CONFIG)
            claimed = _claimed(config, root / CONFIG)
    packed: dict[str, tuple[Packed, ...]] = {}
    for group in groups:
        packed |= _pack(root, group, claimed)
    formats = {one.format for tensors in packed.values() for one in tensors} | {claimed}
    if formats == {None}:
        return None
    dense = _dense_config(config, root / CONFIG) if config is not None else None
    return Foreign(root, tuple(name for name in PARTS if name in formats), packed, dense)


def _dense_config(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The config of the dense checkpoint: without the sparsity, quantisation kept under the present name.

    Raises:
        UnsupportedError: weights are quantised in a way that is not known here.
    """
    dense = {key: value for key, value in config.items() if key not in {_SPARSITY, *_SECTIONS}}
    kept: dict[str, Any] | None = None
    for name in (*_SECTIONS, "sparseml_quantization_config"):
        section = config.get(name)
        if not isinstance(section, dict):
            continue
        rest = {key: value for key, value in section.items() if key != _SPARSITY}
        about = {key for key, value in rest.items() if value not in (None, {}, [])}
        if about <= {"quant_method", "version"}:
            continue
        form = rest.get("format", "dense")
        if name not in _SECTIONS or kept is not None or form not in QUANTIZED:
            what = f"{quote(name)} of format {quote(str(form))} together with sparsity"
            raise UnsupportedError(
                f"{quote(str(path))}: {what} is not known here; known are, once: {', '.join(QUANTIZED)}"
            )
        kept = {"quant_method": METHOD} | rest
    return dense if kept is None else {**dense, _SECTION: kept}


def _claimed(config: Mapping[str, Any], path: Path) -> str | None:
    """The format that a config names; None if it names none.

    Raises:
        ForeignError: it names two.
        UnsupportedError: it is none of the table.
    """
    claims = []
    top = config.get(_SPARSITY)
    # Other software may have a member of that name; in the sections it is that of compressed-tensors.
    if isinstance(top, dict) and top.get("format") in tuple(PARTS):
        claims.append(top["format"])
    for name in _SECTIONS:
        section = config.get(name)
        if not isinstance(section, dict) or section.get("quant_method", METHOD) != METHOD:
            continue
        sparsity = section.get(_SPARSITY)
        if not sparsity:
            continue
        form = sparsity.get("format") if isinstance(sparsity, dict) else sparsity
        if form == "dense":
            continue
        if form not in tuple(PARTS):
            what = f"{METHOD} sparsity of format {quote(str(form))} is not known here"
            raise UnsupportedError(f"{quote(str(path))}: {what}; known are: {', '.join(PARTS)}")
        claims.append(form)
    if len(set(claims)) > 1:
        raise ForeignError(f"sparsity is said to be of the formats {' and '.join(claims)}", path=path)
    return claims[0] if claims else None


def _groups(found: checkpoint.Checkpoint) -> list[Sequence[str]]:
    """Weights files that make one model: those of an index, and every other by itself."""
    groups: list[Sequence[str]] = []
    rest = dict.fromkeys(found.weights)
    for index in found.indices:
        named = sorted(set(manifest.read_dense_index(found.root / index).values()) & rest.keys())
        groups.append(named)
        for name in named:
            del rest[name]
    return groups + [[name] for name in rest]


def _split(name: str) -> tuple[str, str] | None:
    """Stem and role of a part; None for a tensor that is none."""
    stem, _, role = name.rpartition(".")
    return (stem, role) if stem and role in _ROLES else None


def _pack(root: Path, group: Sequence[str], claimed: str | None) -> dict[str, tuple[Packed, ...]]:
    """The compressed tensors of files that make one model, each with the file that it will belong to."""
    stems: dict[str, dict[str, _Part]] = {}
    plain: set[str] = set()
    has_plain = {}
    for name in group:
        with file.open_file(root / name) as opened:
            before = len(plain)
            for entry in opened.layout.header.entries.values():
                part = _split(entry.name)
                if part is None:
                    plain.add(entry.name)
                    continue
                stem, role = part
                parts = stems.setdefault(stem, {})
                if role in parts:
                    found = f"it is in {quote(parts[role].file)} too"
                    raise ForeignError(found, tensor=entry.name, path=root / name)
                short = role == "shape" and entry.dtype == "I64" and entry.nbytes <= _LONGEST_SHAPE
                parts[role] = _Part(name, entry, opened.get_bytes(entry.name) if short else None)
            has_plain[name] = len(plain) > before
    if claimed is None and not any(parts.keys() >= set(PARTS[BITMASK_24]) for parts in stems.values()):
        return {}  # names like these, perhaps, and nothing that says what they are
    names = {}
    for stem, parts in stems.items():
        _check_parts(stem, parts, claimed, root)
    for stem, name in _dense_names(stems, plain, root).items():
        names[name] = _packed(name, stem, stems[stem], root)
    return _assign(names.values(), has_plain)


def _check_parts(stem: str, parts: Mapping[str, _Part], claimed: str | None, root: Path) -> None:
    """That a tensor has all parts of its format, which is the one that the config names."""
    form = _form(parts)
    where = root / next(iter(parts.values())).file
    missing = [role for role in PARTS[claimed or form] if role not in parts]
    if missing:
        found = f"its part {quote(f'{stem}.{missing[0]}')} is missing"
        found += "; if it is in another shard, name the directory"
        raise ForeignError(found, tensor=stem, path=where)
    if claimed is not None and form != claimed:
        raise ForeignError(f"it has the parts of {form}, the config says {claimed}", tensor=stem, path=where)


def _form(parts: Mapping[str, _Part]) -> str:
    """The format of a tensor with these parts."""
    return BITMASK if "row_offsets" in parts else BITMASK_24


def _dense_names(stems: Iterable[str], plain: set[str], root: Path) -> dict[str, str]:
    """The dense name for each stem, by what all of them look like.

    Before release 0.9 stems are names of tensors; since then ``.weight`` has been cut off.
    """
    stems = list(stems)
    before_09 = any(_is_weight(stem) for stem in stems)
    names = {stem: stem if before_09 else f"{stem}.weight" for stem in stems}
    modules = {name.rpartition(".")[0] for name in (*names.values(), *plain)}
    for name in names.values():
        if name in plain:
            raise ForeignError("it is there both compressed and as it is", tensor=name, path=root)
        # A module would lose its ".weight". Before 0.9 all was compressed, and no tensor has one below.
        if before_09 and not _is_weight(name) and (plain or name in modules):
            found = "names of tensors and of modules are mixed, as those of releases before and since 0.9"
            raise ForeignError(found, tensor=name, path=root)
    return names


def _is_weight(name: str) -> bool:
    return f".{name}".endswith(".weight")


def _shape(part: _Part, root: Path) -> tuple[int, ...]:
    """What a part ``shape`` holds. That of a scalar was written as F32, having no integer to tell."""
    entry = part.entry
    if entry.shape == (0,):
        return ()
    rank = entry.nbytes // 8
    if entry.dtype != "I64" or entry.shape not in {(rank,), (rank, 1)} or part.data is None:
        found = f"it is {quote(entry.dtype)} of shape {list(entry.shape)}, expected 'I64' of shape [rank]"
        raise ForeignError(found, tensor=entry.name, path=root / part.file)
    shape = tuple(int(n) for n in part.data.view("<i8"))
    for n in shape:
        if not 0 <= n <= jsontext.LARGEST_INTEGER:
            found = f"it has {n}, not an integer from 0 to 2**53 - 1"
            raise ForeignError(found, tensor=entry.name, path=root / part.file)
    return shape


def _packed(name: str, stem: str, parts: Mapping[str, _Part], root: Path) -> Packed:
    """A tensor, after all of its parts are found to have the sizes that its shape implies."""
    form, shape = _form(parts), _shape(parts["shape"], root)
    values = parts["compressed"].entry
    if values.dtype not in dtypes.BY_NAME or not dtypes.BY_NAME[values.dtype].encodable:
        raise UnsupportedError(f"tensor {quote(name)}: {form} of dtype {quote(values.dtype)}")
    *outer, columns = shape or (1,)
    expected = {"bitmask": ("U8", (*outer, -(-columns // 8)))}
    if form == BITMASK:
        expected["compressed"] = (values.dtype, (values.nbytes // dtypes.BY_NAME[values.dtype].itemsize,))
        expected["row_offsets"] = ("I64", tuple(outer))
    else:
        if len(shape) != 2 or columns % 2 or container.numel(shape) % 4:
            found = f"shape {_shown(shape)} is no matrix whose elements fall in groups of four"
            raise ForeignError(found, tensor=name, path=root / parts["shape"].file)
        expected["compressed"] = (values.dtype, (*outer, columns // 2))
    for role, (dtype, dimensions) in expected.items():
        entry = parts[role].entry
        if (entry.dtype, entry.shape) != (dtype, dimensions):
            found = (
                f"part {role} is {quote(entry.dtype)} of shape {_shown(entry.shape)}, "
                f"expected {quote(dtype)} of shape {_shown(dimensions)} where the shape is {_shown(shape)}"
            )
            raise ForeignError(found, tensor=name, path=root / parts[role].file)
    stored = sum(part.entry.nbytes for part in parts.values())
    held = {role: part.file for role, part in parts.items()}
    return Packed(name, values.dtype, shape, form, stem, held, stored)


def _shown(shape: Sequence[int]) -> str:
    return quote(str(list(shape)))[1:-1]


def _assign(tensors: Iterable[Packed], has_plain: Mapping[str, bool]) -> dict[str, tuple[Packed, ...]]:
    """To each file the tensors whose values it holds, and at least one: no index names a file without."""
    files: dict[str, dict[str, Packed]] = {name: {} for name in has_plain}
    guests: dict[str, list[Packed]] = {name: [] for name in has_plain}
    for one in tensors:
        home = one.parts["compressed"]
        files[home][one.name] = one
        for name in {*one.parts.values()} - {home}:
            guests[name].append(one)
    for name, held in files.items():
        if held or has_plain[name]:
            continue
        for one in guests[name]:
            home = next(other for other in one.parts.values() if one.name in files[other])
            if len(files[home]) + has_plain[home] > 1:
                held[one.name] = files[home].pop(one.name)
                break
    return {name: tuple(held.values()) for name, held in files.items()}
