"""Pruning: sets the elements that matter least to zero, by magnitude or, given activations, by Wanda.

Magnitude needs no data and is here so that anybody can make a sparse model to try Endor on. It costs quality:
at 50 % a language model gets noticeably worse, more so than with methods that look at activations: Wanda
(arXiv 2306.11695), whose activations :mod:`pyendor.wanda` collects, and SparseGPT (arXiv 2301.00774), which
llm-compressor has.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pyendor import atomic, checkpoint, convert, dtypes, file, manifest, shards, system, writer
from pyendor.dtypes import DType
from pyendor.errors import UsageError, quote
from pyendor.file import File
from pyendor.importers import compressed_tensors
from pyendor.layout import Bytes
from pyendor.naming import CONFIG
from pyendor.stamps import Stamp, check_all
from pyendor.writer import Progress, TensorSource

__all__ = ["Inputs", "Options", "Outcome", "prune"]

Group = Literal["tensor", "row"]

# Floats whose magnitude is ordered like their bits without the sign. (FNUZ types are not: 0x80 is their NaN.)
PRUNABLE = ("BF16", "F16", "F32", "F64", "F8_E4M3", "F8_E5M2")
CONVERTIBLE = {"bf16": "BF16", "f16": "F16", "f32": "F32"}
# The weights of numbered layers are pruned, fused experts too; not norms, embeddings, the head, scales,
# adapters, nor what routes to experts.
CHOSEN = ("*.weight", "*.experts.*")
SPARED = (
    *("*norm*", "*embed*", "*lm_head*", "*bias*", "*scale*", "*zero*", "*lora_*"),
    *("*router*", "*gate.weight", "*gate.wg.weight"),
)
_CONFIG_DTYPES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64"}
_CHUNK = 1 << 22


@dataclass(frozen=True)
class Options:
    """What is to be pruned, and how.

    Attributes:
        sparsity: share of the elements to set to zero, 0 to 1.
        group: compare magnitudes over a whole tensor, or within each row, along its last dimension.
        include: globs of tensor names; empty for the default choice.
        exclude: globs of names to leave alone.
        dtype: convert all floats of 16 bits and more to this type first, a key of ``CONVERTIBLE``;
            None leaves them.
    """

    sparsity: float = 0.5
    group: Group = "tensor"
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    dtype: str | None = None

    def selects(self, name: str, dtype: str, shape: tuple[int, ...]) -> bool:
        """Whether a tensor is to be pruned.

        Args:
            name: of the tensor.
            dtype: name of its element type (spec 5.3).
            shape: its shape.

        Returns:
            Whether its name, type and shape are those of a layer's weights, or of what was asked for.
        """
        if self.result(dtype) not in PRUNABLE or _matches(name, self.exclude):
            return False
        if self.include:
            return _matches(name, self.include)
        in_a_layer = any(part.isdecimal() for part in name.split("."))
        chosen = in_a_layer and _matches(name, CHOSEN) and not _matches(name, SPARED)
        return len(shape) >= 2 and chosen

    def result(self, dtype: str) -> str:
        """The dtype that a tensor is written in.

        Args:
            dtype: name of the one that it has.

        Returns:
            The name of the other one, or the same.
        """
        return CONVERTIBLE[self.dtype] if self.dtype and dtype in _CONFIG_DTYPES else dtype


@dataclass(frozen=True)
class Inputs:
    """What a weight matrix has been multiplied with.

    Attributes:
        norms: the L2 norm of every input over all tokens, ``float32 [inputs]``.
        axis: the dimension of the matrix that runs over the inputs: 1, or 0 where it is stored transposed.
    """

    norms: npt.NDArray[np.float32]
    axis: int = 1


@dataclass
class Outcome:
    """What was pruned.

    Attributes:
        tensors: names of the pruned tensors.
        numel, zeros: elements of these, and how many of them are zero now.
        left_out: paths of the source that were not carried over, and why.
    """

    tensors: list[str] = field(default_factory=list)
    numel: int = 0
    zeros: int = 0
    left_out: Mapping[str, str] = field(default_factory=dict)


def prune(
    source: Path,
    destination: Path,
    options: Options,
    *,
    inputs: Mapping[str, Inputs] | None = None,
    force: bool = False,
    strict: bool = False,
    progress: Progress | None = None,
) -> Outcome:
    """Writes a pruned dense copy of a file or checkpoint directory.

    Args:
        source: a safetensors file, or a directory in the layout of Hugging Face libraries.
        destination: a file, or a directory.
        options: what is to be pruned, and how.
        inputs: by name of the tensor, as :func:`pyendor.wanda.collect` gives them; with it elements are
            compared by Wanda's score, and every tensor that is pruned must be in it.
        force: replace an existing destination.
        strict: refuse a directory of which anything would be left out that a loader may miss.
        progress: called with the dense bytes of every tensor written.

    Returns:
        What was pruned.

    Raises:
        UsageError: no tensor is selected; the source is Endor; and as in :func:`pyendor.convert.compress`.
        FormatError: the source breaks a rule.
        OSError: reading or writing failed. The destination is then as it was before.
    """
    system.require_paths(source, destination)
    check_source(source, options)
    outcome = Outcome()
    found = checkpoint.scan(source) if source.is_dir() else None
    if found is not None and strict:
        checkpoint.require_all(found)

    def convert_file(stamp: Stamp, target: Path, alone: bool, shadowed: Collection[str] = ()) -> None:
        def write(opened: File, target: Path) -> None:
            sources = [
                tensor if tensor.name in shadowed else _pruned(tensor, options, inputs, outcome)
                for tensor in opened.sources()
            ]
            with atomic.new_file(target, force=force, like=stamp.rights, alone=alone) as stream:
                writer.write_dense(stream, sources, opened.layout.header.metadata, progress=progress)
                stamp.check()

        shards.convert_one(stamp, target, write)

    if found is None:
        shards.check_file(source, destination)
        convert_file(Stamp.of(source, source.parent), destination, alone=True)
        return outcome
    stamps = shards.stamps_of(found)
    outcome.left_out = found.left_out
    with shards.beside(source, destination, force=force) as space:
        root = space.files
        for name in found.weights:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            convert_file(stamps[name], root / name, alone=False, shadowed=found.shadowed.get(name, ()))
        for index in found.indices:
            _write_index(stamps[index], root, index, found.shadowed)
        rewritten = set()
        if options.dtype is not None and PurePosixPath(CONFIG) in found.carried:
            like = stamps[CONFIG]
            config = _with_dtype(manifest.read_config(like.path, like), options.dtype)
            convert.write_text(root / CONFIG, manifest.config_text(config), like)
            rewritten.add(CONFIG)
        convert.carry(found, root, stamps, except_for=rewritten)
        for name in found.superseded:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            atomic.copy_file(stamps[name], root / name)
        checkpoint.scan(root)
        check_all(stamps)
    return outcome


def _write_index(like: Stamp, root: Path, index: str, shadowed: Mapping[str, Collection[str]]) -> None:
    """Writes the index of files in ``root``: what that of the source says, with their present size."""
    weight_map = manifest.read_dense_index(like.path, like)
    found: dict[str, str] = {}
    total = 0
    for name in sorted(set(weight_map.values())):
        if (root / name).exists():
            with file.open_file(root / name) as opened:
                for entry in opened.layout.header.entries.values():
                    if entry.name not in shadowed.get(name, ()):
                        found[entry.name] = name
                        total += entry.nbytes
    members = manifest.read_config(like.path, like).get("metadata")
    text = manifest.index_text(
        {**found, **weight_map}, {**(members if isinstance(members, dict) else {}), "total_size": total}
    )
    convert.write_text(root / index, text, like)


def prune_bytes(
    dense: Bytes,
    dtype: DType,
    shape: tuple[int, ...],
    sparsity: float,
    group: Group,
    inputs: Inputs | None = None,
) -> Bytes:
    """Dense data with floor(sparsity * n) elements of each group of n set to zero.

    Those of smallest magnitude go first, or, given the inputs of a matrix, those of the smallest
    ``|weight| * norm`` (Wanda; the row of an output is a group then, if ``group`` is ``row``). Among equals
    those in front go first; so the result is the same on every machine. NaNs count as largest.
    """
    words = dense.view(f"<u{dtype.itemsize}").copy()
    if inputs is not None:
        _check_inputs(shape, inputs)
    if group == "row" and shape and words.size:
        rows = words.reshape(-1, shape[-1])
        rows = rows.T if inputs is not None and inputs.axis == 0 else rows
    else:
        rows = words.reshape(1, -1)
    goal = int(Fraction(str(sparsity)) * rows.shape[1])
    if goal and words.size:
        step = max(1, _CHUNK // rows.shape[1])
        for first in range(0, rows.shape[0], step):
            batch = rows[first : first + step]
            if inputs is None:
                scores = batch & _magnitude_mask(dtype)
            else:
                norms = inputs.norms if group == "row" else _spread(inputs, shape)
                scores = _scores(batch, dtype, norms)
            batch[_smallest(scores, goal)] = 0
    return words.view(np.uint8)


def _check_inputs(shape: tuple[int, ...], inputs: Inputs) -> None:
    if len(shape) != 2 or shape[inputs.axis] != inputs.norms.size:
        raise UsageError(f"{inputs.norms.size} inputs, for a tensor of shape {list(shape)}")


def _spread(inputs: Inputs, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """The norm that belongs to each element of a matrix, flat."""
    norms = inputs.norms[None, :] if inputs.axis == 1 else inputs.norms[:, None]
    return np.broadcast_to(norms, shape).reshape(-1)


def _scores(
    words: npt.NDArray[Any], dtype: DType, norms: npt.NDArray[np.float32]
) -> npt.NDArray[np.unsignedinteger[Any]]:
    """``|W| * ||X||`` as bits, which are ordered like the numbers, NaN last."""
    kind = dtype.to_numpy()
    assert kind is not None
    wide = np.float64 if dtype.itemsize == 8 else np.float32
    with np.errstate(over="ignore", invalid="ignore"):
        scores = np.abs(np.ascontiguousarray(words).view(kind).astype(wide)) * norms.astype(wide)
    scores[np.isnan(scores)] = np.nan  # the one without a sign
    bits: npt.NDArray[np.unsignedinteger[Any]] = scores.view(f"<u{scores.itemsize}")
    return bits


def _smallest(magnitudes: npt.NDArray[Any], goal: int) -> npt.NDArray[np.bool_]:
    """Mask of exactly ``goal`` smallest elements of every row."""
    limit = np.partition(magnitudes, goal - 1, axis=1)[:, goal - 1 : goal]
    mask = magnitudes < limit
    missing = goal - mask.sum(axis=1, keepdims=True)
    equal = magnitudes == limit
    mask |= equal & (np.cumsum(equal, axis=1) <= missing)
    return np.asarray(mask)


def _magnitude_mask(dtype: DType) -> np.unsignedinteger[Any]:
    scalar = np.dtype(f"<u{dtype.itemsize}").type
    mask: np.unsignedinteger[Any] = scalar((1 << (dtype.bits - 1)) - 1)
    return mask


def _pruned(
    source: TensorSource, options: Options, inputs: Mapping[str, Inputs] | None, outcome: Outcome
) -> TensorSource:
    """The same tensor as it is to be written: converted, then pruned."""
    dtype = dtypes.BY_NAME.get(source.dtype)
    if dtype is None:
        return source
    result = dtypes.BY_NAME[options.result(source.dtype)]
    selected = options.selects(source.name, source.dtype, source.shape)
    if selected and inputs is not None and source.name not in inputs:
        raise UsageError(f"nothing is known of the inputs of tensor {quote(source.name)}: exclude it")
    known = inputs[source.name] if selected and inputs is not None else None

    def read() -> Bytes:
        data = source.checked_read()
        if dtype != result:
            data = converted(data, dtype, result, source.name)
        if selected:
            data = prune_bytes(data, result, source.shape, options.sparsity, options.group, known)
            words = data.view(f"<u{result.itemsize}")
            outcome.tensors.append(source.name)
            outcome.numel += words.size
            outcome.zeros += words.size - int(np.count_nonzero(words))
        return data

    nbytes = source.nbytes * 8 // dtype.bits * result.bits // 8
    return TensorSource(source.name, result.name, source.shape, nbytes, read)


def converted(data: Bytes, dtype: DType, result: DType, name: str) -> Bytes:
    """Floats in another type, rounded to nearest.

    Raises:
        UsageError: some are beyond its range.
    """
    before, after = dtype.to_numpy(), result.to_numpy()
    assert before is not None
    assert after is not None
    values = data.view(before)
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = values.astype(after)
    if np.any(np.isfinite(values) & ~np.isfinite(rounded)):
        raise UsageError(f"tensor {quote(name)} has values beyond the range of {result.name}")
    return rounded.view(np.uint8)


def check_source(source: Path, options: Options) -> None:
    """Fails early, before hours of work, if nothing would be pruned.

    Raises:
        UsageError: as :func:`prune`.
    """
    if not 0 <= options.sparsity <= 1:
        raise UsageError(f"sparsity {options.sparsity} is not between 0 and 1")
    foreign = compressed_tensors.recognise(source)
    if foreign is not None:
        raise UsageError(f"{quote(str(source))} is {foreign.what}: compress it, and decompress that, first")
    some = False
    for opened in checkpoint.open_all(source):
        if opened.layout.version is not None:
            raise UsageError(f"{quote(str(source))} is Endor: decompress it first")
        tensors = opened.layout.tensors.values()
        some = some or any(options.selects(t.name, t.dtype, t.shape) for t in tensors)
    if source.is_dir():
        config = source / CONFIG
        method = manifest.quantization(manifest.read_config(config)) if config.exists() else None
        if method is not None and not options.include:
            raise UsageError(
                f"{quote(str(source))} is quantized ({quote(str(method.get('quant_method')))}): prune before "
                "quantizing, or say with --include what to prune"
            )
    if not some:
        wanted = ", ".join(map(quote, options.include)) or "the matrices of numbered layers"
        raise UsageError(f"nothing to prune: no float tensor matches {wanted}; see endor inspect")


def _with_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """The config with the dtypes that it names, nested ones too, changed to this one."""
    name = _CONFIG_DTYPES[CONVERTIBLE[dtype]]
    changed = _renamed(config, name)
    return changed if {"dtype", "torch_dtype"} & changed.keys() else changed | {"torch_dtype": name}


def _renamed(config: dict[str, Any], name: str) -> dict[str, Any]:
    def member(key: str, value: Any) -> Any:
        if key in {"dtype", "torch_dtype"} and value in _CONFIG_DTYPES.values():
            return name
        return _renamed(value, name) if isinstance(value, dict) else value

    return {key: member(key, value) for key, value in config.items()}


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
