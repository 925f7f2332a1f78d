"""What a case is, and its row in the manifest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from corpus.build import Tensor

Json = dict[str, Any]
ACCEPT, NONCANONICAL, REJECT = "accept", "accept-noncanonical", "reject"
UNSUPPORTED, EITHER = "unsupported", "either"


class Recipe(list[Json]):
    """A file too large to keep: the runner makes it from these pieces, one after the other.

    A piece is {"hex": H, "repeat": n}, the bytes H n times, or {"text": T, "count": n}, the text T
    n times with each `#` replaced by 000000, 000001, ...
    """

    def chunks(self) -> Iterator[bytes]:
        for piece in self:
            if "hex" in piece:
                yield from repeated(bytes.fromhex(piece["hex"]), piece["repeat"])
            else:
                for i in range(piece["count"]):
                    yield piece["text"].replace("#", f"{i:06d}").encode()

    def sha256(self) -> str:
        h = sha256()
        for chunk in self.chunks():
            h.update(chunk)
        return h.hexdigest()


def repeated(piece: bytes, n: int) -> Iterator[bytes]:
    """The piece n times, in chunks small enough not to show in anybody's peak memory."""
    per_chunk = max(1, 65536 // max(1, len(piece)))
    for _ in range(n // per_chunk):
        yield piece * per_chunk
    yield piece * (n % per_chunk)


@dataclass
class Case:
    """`content` is the file, or the files of a directory by relative path."""

    category: str
    name: str
    rules: list[str]
    content: bytes | Recipe | dict[str, bytes]
    expect: str
    level: str
    notes: str
    error_rules: list[str] = field(default_factory=list)
    tensors: list[Json] | None = None
    answers: list[str] = field(default_factory=list)
    digests: bool = False
    budgets: Json = field(default_factory=dict)
    slices: list[list[Any]] = field(default_factory=list)
    expected: bytes | None = None
    root: str = ""
    values: str = ""
    since: str = "1.0"
    earlier: dict[str, Json] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return f"{self.category}/{self.name}"

    @property
    def file(self) -> str:
        if isinstance(self.content, dict):
            return f"cases/{self.id}{self.root and '/' + self.root}"
        return f"cases/{self.id}.safetensors"

    @property
    def expected_file(self) -> str:
        return f"cases/{self.id}.expected.safetensors"

    def files(self) -> dict[str, bytes]:
        """Everything that the case keeps on disk."""
        if isinstance(self.content, dict):
            return {f"cases/{self.id}/{path}": data for path, data in self.content.items()}
        if isinstance(self.content, Recipe):
            return {}
        kept = {self.file: self.content}
        if self.expected is not None:
            kept[self.expected_file] = self.expected
        return kept

    def row(self) -> Json:
        row: Json = {"id": self.id, "file": self.file}
        if isinstance(self.content, dict):
            row["sha256"] = {path: sha(data) for path, data in sorted(self.content.items())}
        elif isinstance(self.content, Recipe):
            row |= {"sha256": self.content.sha256(), "recipe": list(self.content)}
        else:
            row["sha256"] = sha(self.content)
        if self.expected is not None:
            row |= {"expected_file": self.expected_file, "expected_sha256": sha(self.expected)}
        row |= {"category": self.category, "level": self.level, "since": self.since}
        row |= {"rules": self.rules, "expect": self.expect}
        for key in ("error_rules", "answers", "tensors", "slices", "values", "digests", "budgets", "earlier"):
            value = getattr(self, key)
            if value or (key == "tensors" and value is not None):
                row[key] = value
        row["notes"] = self.notes
        return row


def shown(dtype: str) -> str:
    """A dtype as the names of cases have it."""
    return dtype.lower().replace("_", "-")


def sha(data: bytes) -> str:
    return sha256(data).hexdigest()


def listing(tensors: list[Tensor]) -> list[Json]:
    return [{"name": t.name, "dtype": t.dtype, "shape": t.shape, "sha256": sha(t.data)} for t in tensors]


def hidden(*names: str) -> list[Json]:
    return [{"name": name, "unsupported": True} for name in names]


def newer(case: Case, names: Iterable[str], readable: Iterable[Tensor] = ()) -> Case:
    """Marks a case of version 1.1: a decoder of 1.0 lacks what these tensors need, and reads the others."""
    told: Json = {"expect": UNSUPPORTED, "tensors": [*listing(list(readable)), *hidden(*names)]}
    if case.slices:
        told = {"expect": UNSUPPORTED, "slices": [[*slice_[:3], None] for slice_ in case.slices]}
    case.since, case.earlier = "1.1", {"1.0": told}
    return case


def newer_but_alike(case: Case) -> Case:
    """Marks a case of version 1.1 that a decoder of 1.0 answers in the same way, by rules that it has."""
    keys = ("expect", "error_rules", "tensors", "slices")
    told = {key: value for key in keys if (value := getattr(case, key))}
    case.since, case.earlier = "1.1", {"1.0": told}
    return case
