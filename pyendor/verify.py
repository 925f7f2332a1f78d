"""Checks every rule and digest of a file or checkpoint, and compares checkpoints bit for bit.

Unlike reading, this does not stop at the first fault: everything that is wrong is found and named.
"""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pyendor import checkpoint, file
from pyendor.errors import FormatError, UnsupportedError, printable
from pyendor.file import File
from pyendor.layout import Tensor
from pyendor.writer import Progress


@dataclass(frozen=True)
class Problem:
    """Something that is wrong, or that cannot be checked.

    Attributes:
        kind: ``invalid``, ``unsupported`` or ``different``.
        message: what, and where.
        path: the file.
        rule, tensor, offset: as in :class:`~pyendor.errors.FormatError`.
    """

    kind: str
    message: str
    path: str
    rule: str | None = None
    tensor: str | None = None
    offset: int | None = None


@dataclass(frozen=True)
class Sum:
    """A tensor that decodes, and the SHA-256 of its dense bytes, however they are stored."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str


@dataclass
class Verification:
    """What was checked, and what was found.

    Attributes:
        files, tensors, encoded: how many were looked at.
        digests: how many were checked and match.
        problems: empty if all is well.
        sums: of all tensors that decode, if they were asked for.
    """

    files: int = 0
    tensors: int = 0
    encoded: int = 0
    digests: int = 0
    problems: list[Problem] = field(default_factory=list)
    sums: list[Sum] = field(default_factory=list)


def verify(
    path: Path,
    *,
    check_digests: bool = True,
    sums: bool = False,
    backend: str | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Checks a file or a checkpoint directory.

    Args:
        path: Endor or plain safetensors.
        check_digests: also check D-2; a digest that this build cannot check is then a problem (D-4).
        sums: also compute the SHA-256 of every tensor's dense bytes.
        backend: the codec to use.
        progress: called with the dense bytes of every tensor checked.

    Raises:
        UsageError: there are no weights at ``path``.
        OSError: it cannot be read.
    """
    result = Verification()
    if path.is_dir():
        found = checkpoint.listing(path)
        names = [path / name for name in found.weights]
        result.problems += [_problem(error, path) for error in checkpoint.faults(found)]
    else:
        names = [path]
    for name in names:
        result.files += 1
        try:
            opened = file.open_file(name)
        except (FormatError, UnsupportedError) as error:
            result.problems.append(_problem(error, name))
            continue
        with opened:
            for tensor in opened.layout.tensors.values():
                if tensor.unsupported is not None:
                    result.tensors += 1
                    result.encoded += tensor.meta is not None
                    lacks = f"it has {tensor.unsupported}, which this build does not know"
                    result.problems.append(Problem("unsupported", lacks, str(name), tensor=tensor.name))
                    continue
                try:
                    _check(opened, tensor, result, check_digests, sums, backend)
                except (FormatError, UnsupportedError) as error:
                    result.problems.append(_problem(error, name, tensor.name))
                if progress is not None:
                    progress(tensor.nbytes)
    return result


def compare(path: Path, dense: Path, *, progress: Progress | None = None) -> list[Problem]:
    """Compares two checkpoints tensor by tensor: names, dtypes, shapes and every bit.

    Either may be a file or a directory, Endor or plain, sharded in its own way.

    Raises:
        FormatError, UnsupportedError: one of them cannot be read.
    """
    problems = []
    with ExitStack() as stack:
        ours, theirs = (_tensors(side, stack) for side in (path, dense))
        for name in sorted(ours.keys() | theirs.keys()):
            if name not in theirs or name not in ours:
                where = dense if name not in theirs else path
                problems.append(_different(path, name, f"is not in {where}"))
                continue
            difference = _difference(ours[name], theirs[name], name)
            if difference is not None:
                problems.append(_different(path, name, difference))
            elif progress is not None:
                progress(ours[name].tensor(name).nbytes)
    return problems


def _check(
    opened: File,
    tensor: Tensor,
    result: Verification,
    check_digests: bool,
    sums: bool,
    backend: str | None,
) -> None:
    """Reads a tensor with all its checks; decodes it where that is of use."""
    result.tensors += 1
    result.encoded += tensor.meta is not None
    encoded = opened.get_encoded(tensor.name) if tensor.meta is not None else None
    if sums:
        data = encoded.decode(backend=backend) if encoded is not None else opened.get_bytes(tensor.name)
        sha256 = hashlib.sha256(data.data).hexdigest()
        result.sums.append(Sum(tensor.name, tensor.dtype, tensor.shape, sha256))
    elif encoded is not None:
        encoded.validate(backend=backend)
    else:
        opened.get_bytes(tensor.name)
    if encoded is not None and check_digests:
        result.digests += encoded.check_digest()


def _tensors(path: Path, stack: ExitStack) -> dict[str, File]:
    found: dict[str, File] = {}
    for name in checkpoint.weight_files(path):
        opened = stack.enter_context(file.open_file(name))
        found.update(dict.fromkeys(opened.layout.tensors, opened))
    return found


def _difference(ours: File, theirs: File, name: str) -> str | None:
    mine, other = ours.tensor(name), theirs.tensor(name)
    if (mine.dtype, mine.shape) != (other.dtype, other.shape):
        mine_is, other_is = (f"{printable(t.dtype)} {list(t.shape)}" for t in (mine, other))
        return f"is {mine_is}, not {other_is}"
    left, right = ours.get_bytes(name), theirs.get_bytes(name)
    if np.array_equal(left, right):
        return None
    unequal = np.flatnonzero(left != right)
    return f"differs in {unequal.size} bytes, the first of them byte {unequal[0]} of its dense data"


def _different(path: Path, tensor: str, message: str) -> Problem:
    return Problem("different", message, str(path), tensor=tensor)


def _problem(error: FormatError | UnsupportedError, path: Path, tensor: str | None = None) -> Problem:
    if isinstance(error, FormatError):
        return Problem(
            "invalid",
            error.found,
            error.path or str(path),
            error.rule,
            error.tensor or tensor,
            error.offset,
        )
    return Problem("unsupported", str(error), str(path), tensor=tensor)
