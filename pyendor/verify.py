"""Checks every rule and digest of a file or checkpoint, and compares checkpoints bit for bit.

Unlike reading, this does not stop at the first fault: everything that is wrong is found and named.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pyendor import checkpoint, file
from pyendor.errors import EndorError, FormatError, UnsupportedError
from pyendor.file import File
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
class Verification:
    """What was checked, and what was found.

    Attributes:
        files, tensors, encoded, digests: how many were looked at; ``digests`` of them match.
        problems: empty if all is well.
    """

    files: int
    tensors: int
    encoded: int
    digests: int
    problems: tuple[Problem, ...]


def verify(path: Path, *, backend: str | None = None, progress: Progress | None = None) -> Verification:
    """Checks a file or a checkpoint directory.

    Args:
        path: Endor or plain safetensors.
        backend: the codec to use.
        progress: called with the dense bytes of every tensor checked.

    Raises:
        UsageError: there are no weights at ``path``.
        OSError: it cannot be read.
    """
    problems: list[Problem] = []
    names: list[Path] = []
    try:
        names = checkpoint.weight_files(path)
        if path.is_dir():
            for index in checkpoint.scan(path).indices:
                checkpoint.check_index(path, index)
    except FormatError as error:
        problems.append(_problem(error, path))
    tensors = encoded = digests = 0
    for name in names:
        try:
            opened = file.open_file(name)
        except EndorError as error:
            problems.append(_problem(error, name))
            continue
        with opened:
            for tensor in opened.layout.tensors.values():
                tensors += 1
                encoded += tensor.meta is not None
                try:
                    digests += _check(opened, tensor.name, backend)
                except (FormatError, UnsupportedError) as error:
                    problems.append(_problem(error, name, tensor.name))
                if progress is not None and tensor.unsupported is None:
                    progress(tensor.nbytes)
    return Verification(len(names), tensors, encoded, digests, tuple(problems))


def compare(path: Path, dense: Path, *, progress: Progress | None = None) -> tuple[Problem, ...]:
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
    return tuple(problems)


def _check(opened: File, name: str, backend: str | None) -> bool:
    """Decodes a tensor with all its checks; whether it had a digest, which matches."""
    tensor = opened.tensor(name)
    tensor.require_supported()
    if tensor.meta is None:
        opened.get_bytes(name)
        return False
    encoded = opened.get_encoded(name)
    encoded.decode(backend=backend)
    return encoded.check_digest()


def _tensors(path: Path, stack: ExitStack) -> dict[str, File]:
    found: dict[str, File] = {}
    for name in checkpoint.weight_files(path):
        opened = stack.enter_context(file.open_file(name))
        found.update(dict.fromkeys(opened.layout.tensors, opened))
    return found


def _difference(ours: File, theirs: File, name: str) -> str | None:
    mine, other = ours.tensor(name), theirs.tensor(name)
    if (mine.dtype, mine.shape) != (other.dtype, other.shape):
        shapes = f"{mine.dtype} {list(mine.shape)}, not {other.dtype} {list(other.shape)}"
        return f"is {shapes}"
    left, right = ours.get_bytes(name), theirs.get_bytes(name)
    if np.array_equal(left, right):
        return None
    unequal = np.flatnonzero(left != right)
    return f"differs in {unequal.size} bytes, the first of them byte {unequal[0]} of its dense data"


def _different(path: Path, tensor: str, message: str) -> Problem:
    return Problem("different", message, str(path), tensor=tensor)


def _problem(error: EndorError, path: Path, tensor: str | None = None) -> Problem:
    if isinstance(error, FormatError):
        return Problem("invalid", error.found, str(path), error.rule, error.tensor or tensor, error.offset)
    kind = "unsupported" if isinstance(error, UnsupportedError) else "invalid"
    return Problem(kind, str(error), str(path), tensor=tensor)
