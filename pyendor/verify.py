"""Checks every rule and digest of a file or checkpoint (spec 3, D-3), and compares checkpoints bit for bit.

Unlike reading, this does not stop at the first fault: everything that is wrong is found and named.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Generator
from concurrent.futures import Executor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pyendor import checkpoint, file, parallel, selection
from pyendor.encoded import EncodedTensor
from pyendor.errors import FormatError, UnsupportedError, printable, quote
from pyendor.file import File
from pyendor.jobs import run as run_jobs
from pyendor.layout import Bytes, Tensor
from pyendor.selection import Selection, Weights
from pyendor.storage import Desk
from pyendor.writer import Progress

__all__ = ["Problem", "Sum", "Verification", "compare", "verify"]


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

    def add(self, other: Verification) -> None:
        """Adds what was found elsewhere.

        Args:
            other: the findings.
        """
        self.files += other.files
        self.tensors += other.tensors
        self.encoded += other.encoded
        self.digests += other.digests
        self.problems += other.problems
        self.sums += other.sums


def verify(
    path: Path,
    *,
    check_digests: bool = True,
    sums: bool = False,
    backend: str | None = None,
    jobs: int | None = None,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Checks a file or a checkpoint directory, its files in parallel.

    Args:
        path: Endor or plain safetensors.
        check_digests: also check D-2; a digest that this build cannot check is then a problem (D-4).
        sums: also compute the SHA-256 of every tensor's dense bytes.
        backend: the codec to use.
        jobs: how many files at a time, as in :func:`pyendor.convert.compress`.
        executor: runs them instead, as there.
        progress: called with the dense bytes of every tensor checked, one call at a time, on any thread.

    Returns:
        What was checked, and all that is wrong.

    Raises:
        UsageError: there are no weights at ``path``.
        OSError: it cannot be read, or the executor gave up.
    """
    result = Verification()
    if path.is_dir():
        found = checkpoint.listing(path)
        names = [path / name for name in found.weights]
        result.problems += [_problem(error, path) for error in checkpoint.faults(found)]
    else:
        names = [path]
    names = [name.absolute() for name in names] if executor is not None else names
    work = [_Check(name, check_digests, sums, backend) for name in names]
    parts: dict[int, Verification] = {}
    run_jobs(work, parts.__setitem__, jobs=jobs, executor=executor, progress=progress)
    for place in range(len(work)):
        result.add(parts[place])
    return result


@dataclass(frozen=True)
class _Check:
    """The job of checking one file; the fields are the arguments of :func:`verify`."""

    path: Path
    check_digests: bool
    sums: bool
    backend: str | None

    def __str__(self) -> str:
        return quote(str(self.path))

    def run(self, progress: Progress) -> Verification:
        """Checks the file."""
        result = Verification(files=1)
        try:
            opened = file.open_file(self.path)
        except (FormatError, UnsupportedError) as error:
            result.problems.append(_problem(error, self.path))
            return result
        tensors = opened.layout.tensors.values()
        with opened, closing(_read_all(opened)) as contents:
            for tensor in tensors:
                result.tensors += 1
                result.encoded += tensor.meta is not None
                if tensor.unsupported is not None:
                    lacks = f"it has {tensor.unsupported}, which this build does not know"
                    problem = Problem("unsupported", lacks, str(self.path), tensor=tensor.name)
                    result.problems.append(problem)
                    continue
                try:
                    self._check(tensor, next(contents), result)
                except (FormatError, UnsupportedError) as error:
                    result.problems.append(_problem(error, self.path, tensor.name))
                progress(tensor.nbytes)
        return result

    def _check(self, tensor: Tensor, content: _Content, result: Verification) -> None:
        """Checks what was read; decodes it where that is of use."""
        if isinstance(content, Exception):
            raise content
        encoded = content if isinstance(content, EncodedTensor) else None
        if self.sums:
            data = content.decode(backend=self.backend) if isinstance(content, EncodedTensor) else content
            sha256 = hashlib.sha256(data.data).hexdigest()
            result.sums.append(Sum(tensor.name, tensor.dtype, tensor.shape, sha256))
        elif encoded is not None:
            encoded.validate(backend=self.backend)
        if encoded is not None and self.check_digests:
            result.digests += encoded.check_digest()


# A tensor as it was read: encoded, plain, or not at all.
_Content = EncodedTensor | Bytes | FormatError | UnsupportedError


def _read_all(opened: File) -> Generator[_Content]:
    """The supported tensors of a file, each read while the one before is checked."""
    tensors = [tensor for tensor in opened.layout.tensors.values() if tensor.unsupported is None]
    largest = max((tensor.stored_nbytes for tensor in tensors), default=0)

    def read(pair: tuple[Tensor, Desk]) -> _Content:
        tensor, desk = pair
        try:
            if tensor.meta is None:
                return opened.read_plain(tensor, desk.dense)
            return opened.read_encoded(tensor, desk.dense)
        except (FormatError, UnsupportedError) as error:
            return error

    pairs = list(zip(tensors, itertools.cycle(Desk.pair(largest, 0)), strict=False))
    return parallel.ahead(read, pairs)


def compare(
    path: Path,
    dense: Path,
    *,
    jobs: int | None = None,
    executor: Executor | None = None,
    progress: Progress | None = None,
) -> list[Problem]:
    """Compares two checkpoints tensor by tensor: names, dtypes, shapes and every bit.

    Either may be a file or a directory, Endor or plain, sharded in its own way. Where directories hold
    several copies of a model, copies of the same variant are compared.

    Args:
        path: the one whose files are worked on in parallel.
        dense: the other.
        jobs: as in :func:`pyendor.convert.compress`.
        executor: as in :func:`pyendor.convert.compress`.
        progress: called with the dense bytes of every tensor that was compared.

    Returns:
        A problem for each tensor that only one of them has, or that differs; empty if they are equal.

    Raises:
        FormatError, UnsupportedError: one of them cannot be read.
        UsageError: there are no weights at one of them.
        OSError: one of them cannot be read, or the executor gave up.
    """
    ours, theirs = (selection.copies(side) for side in (path, dense))
    if len(ours) == len(theirs) == 1:  # of whatever variants
        theirs = dict(zip(ours, theirs.values(), strict=True))
    problems = []
    in_common: dict[Path, dict[str, Path]] = {}
    for variant in sorted(ours.keys() | theirs.keys()):
        mine, other = (_places(side.get(variant)) for side in (ours, theirs))
        problems += [
            _different(path, name, f"is not in {dense if name in mine else path}" + _of(variant))
            for name in mine.keys() ^ other.keys()
        ]
        for name in mine.keys() & other.keys():
            in_common.setdefault(mine[name], {})[name] = other[name]
    work = [_Comparison(path, held, others) for held, others in in_common.items()]
    found: dict[int, list[Problem]] = {}
    run_jobs(work, found.__setitem__, jobs=jobs, executor=executor, progress=progress)
    return sorted([*problems, *itertools.chain(*found.values())], key=lambda problem: problem.tensor or "")


def _of(variant: str) -> str:
    return f", variant {quote(variant)}" if variant else ""


def _places(copy: Selection | None) -> dict[str, Path]:
    """The tensors of a copy of a model, and the files that they are in."""
    if copy is None:
        return {}
    with Weights(copy) as weights:
        paths = dict(zip(weights.files, copy.paths, strict=True))
        return {name: paths[opened].absolute() for name, opened in weights.places.items()}


@dataclass(frozen=True)
class _Comparison:
    """The job of comparing the tensors of one file with those of the other checkpoint.

    Attributes:
        root: what the file belongs to, for messages.
        path: the file.
        others: its tensors that the other checkpoint has too, and the files there.
    """

    root: Path
    path: Path
    others: dict[str, Path]

    def __str__(self) -> str:
        return quote(str(self.path))

    def run(self, progress: Progress) -> list[Problem]:
        """Compares them."""
        problems = []
        with ExitStack() as stack:
            ours = stack.enter_context(file.open_file(self.path))
            theirs = {name: stack.enter_context(file.open_file(name)) for name in set(self.others.values())}
            for name, other in self.others.items():
                difference = _difference(ours, theirs[other], name)
                if difference is not None:
                    problems.append(_different(self.root, name, difference))
                progress(ours.tensor(name).nbytes)
        return problems


def _difference(ours: File, theirs: File, name: str) -> str | None:
    mine, other = ours.tensor(name), theirs.tensor(name)
    if (mine.dtype, mine.shape) != (other.dtype, other.shape):
        mine_is, other_is = (f"{printable(t.dtype)} {list(t.shape)}" for t in (mine, other))
        return f"is {mine_is}, not {other_is}"
    left, right = ours.get_bytes(name), theirs.get_bytes(name)
    if np.array_equal(left, right):
        return None
    unequal = left != right
    number, first = np.count_nonzero(unequal), int(unequal.argmax())
    return f"differs in {number} bytes, the first of them byte {first} of its dense data"


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
