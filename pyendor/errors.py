"""What can go wrong: one base class and its few children.

Public functions end in their result, one of these, OSError or MemoryError. Three things are as in the
libraries that they stand for: an argument of the wrong type is a TypeError; what safetensors raises for
tensors that it does not save, ValueError, RuntimeError or NotImplementedError, is raised here too; and an
index raises what it makes an array or a tensor raise.

Every message says what was found, what was expected and, where there is something to do, what to do.
Text that comes from a file is escaped, so that no message can steer a terminal (spec S-4).
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any, Self

__all__ = [
    "BackendUnavailableError",
    "EndorError",
    "ForeignError",
    "FormatError",
    "UnsupportedError",
    "UsageError",
]

LONGEST_QUOTE = 120


def printable(text: str) -> str:
    """Text from a file with everything escaped that does not print as itself."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def quote(text: str) -> str:
    """Text from a file, printable, in quotes, cut to a readable length."""
    shown = text if len(text) <= LONGEST_QUOTE else text[: LONGEST_QUOTE - 1] + "…"
    return f"'{printable(shown)}'"


class _BaseError(Exception):
    """Makes the bases of :class:`EndorError` assignable, which those of a child of Exception are not."""


class EndorError(_BaseError):
    """Base of all errors of this package; never raised itself.

    In a program that has imported safetensors, every such error is a ``safetensors.SafetensorError`` too, so
    that its ``except`` clauses keep working when an import changes. Nothing is imported for that.
    """

    def __new__(cls, *args: Any, **keywords: Any) -> Self:
        _join_safetensors()
        return super().__new__(cls, *args, **keywords)


def _join_safetensors() -> None:
    """Make :class:`EndorError` a child of ``SafetensorError``, if there is one in this process.

    Whoever names it in an ``except`` clause has imported it before the error is made. The clause looks at
    the real bases, so that no hook for ``isinstance`` would do.
    """
    theirs = getattr(sys.modules.get("safetensors"), "SafetensorError", None)
    if isinstance(theirs, type) and issubclass(theirs, Exception) and not issubclass(EndorError, theirs):
        with contextlib.suppress(
            TypeError
        ):  # of an unusual build, whose class cannot be combined with others
            EndorError.__bases__ = (_BaseError, theirs)


class FormatError(EndorError, ValueError):
    """A file breaks a rule of the specification.

    Attributes:
        rule: the ID of the rule in ``spec/endor-1.md``, such as ``"B-6"``.
        found: what is wrong, without the location.
        tensor: name of the tensor, or None where the file as a whole is concerned.
        offset: byte offset in the file, or None where there is none to tell.
        path: the file, or None where bytes were read from memory.
    """

    def __init__(
        self,
        rule: str,
        found: str,
        *,
        tensor: str | None = None,
        offset: int | None = None,
        path: str | os.PathLike[str] | None = None,
    ) -> None:
        self.rule = rule
        self.found = found
        self.tensor = tensor
        self.offset = offset
        self.path = os.fspath(path) if path is not None else None
        super().__init__(rule, found, tensor, offset, self.path)

    def __str__(self) -> str:
        where = [f"'{printable(self.path)}'"] if self.path is not None else []
        if self.tensor is not None:
            where.append(f"tensor {quote(self.tensor)}")
        if self.offset is not None:
            where.append(f"byte {self.offset}")
        return (", ".join(where) + ": " if where else "") + f"{self.found} [rule {self.rule}]"

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (self.rule, self.found, self.tensor, self.offset, self.path)

    def located(
        self,
        *,
        tensor: str | None = None,
        offset: int | None = None,
        path: str | os.PathLike[str] | None = None,
    ) -> FormatError:
        """The same error with what the caller knows of its place, where that was still open.

        Args:
            tensor: name of the tensor.
            offset: byte offset in the file.
            path: the file.

        Returns:
            A new error.
        """
        return FormatError(
            self.rule,
            self.found,
            tensor=self.tensor if self.tensor is not None else tensor,
            offset=offset if offset is not None else self.offset,
            path=self.path if self.path is not None else path,
        )


class PartError(FormatError):
    """A rule is broken inside a part. Codecs raise it; ``offset`` counts from the start of the part.

    :meth:`FormatError.located` turns it into an error with the tensor and the offset in the file.

    Attributes:
        part: role of the part: ``values``, ``bitmap`` or ``index``.
    """

    def __init__(self, rule: str, found: str, part: str, offset: int) -> None:
        super().__init__(rule, found, offset=offset)
        self.part = part

    def __reduce__(self) -> tuple[object, ...]:
        return PartError, (self.rule, self.found, self.part, self.offset)


def _rebuild(rule: str, found: str, tensor: str | None, offset: int | None, path: str | None) -> FormatError:
    return FormatError(rule, found, tensor=tensor, offset=offset, path=path)


class ForeignError(EndorError, ValueError):
    """A checkpoint of another format, which was to be imported, contradicts itself.

    It breaks no rule of Endor's specification, and so has no ID of one.

    Attributes:
        found: what is wrong, without the location.
        tensor: name of the tensor or of its part, or None where the checkpoint as a whole is concerned.
        path: the file or directory.
    """

    def __init__(
        self, found: str, *, tensor: str | None = None, path: str | os.PathLike[str] | None = None
    ) -> None:
        self.found = found
        self.tensor = tensor
        self.path = os.fspath(path) if path is not None else None
        super().__init__(found, tensor, self.path)

    def __str__(self) -> str:
        where = [f"'{printable(self.path)}'"] if self.path is not None else []
        if self.tensor is not None:
            where.append(f"tensor {quote(self.tensor)}")
        return (", ".join(where) + ": " if where else "") + self.found

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild_foreign, (self.found, self.tensor, self.path)


def _rebuild_foreign(found: str, tensor: str | None, path: str | None) -> ForeignError:
    return ForeignError(found, tensor=tensor, path=path)


class UnsupportedError(EndorError):
    """A file, or one tensor of it, may be valid but needs what this build does not have."""


class BackendUnavailableError(EndorError):
    """A codec was asked for by name that is unknown or cannot run on this machine."""


class UsageError(EndorError, ValueError):
    """The request itself cannot be carried out, or only by losing something of the user's."""
