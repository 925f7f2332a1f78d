"""Endor files whose metadata is wrong (rules J in the endor object, M, T-1, D-1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from corpus.build import MAX_INT, Physical, Raw, Sketch, Tensor, plain_file, random_tensor
from corpus.case import REJECT, Case
from corpus.change import Change, around, endor, entry, replaced, sealed, text, without

Where = Callable[..., Change]
W = random_tensor("w", "BF16", [5, 31], seed=51)


def cases() -> Iterator[Case]:
    yield from texts()
    yield from objects()
    yield from entries()
    yield from integers()
    yield from keys()
    yield from digests()


def reject(name: str, rules: list[str], data: bytes, notes: str) -> Case:
    """The first rule is the one that the case is about; a decoder may name any of them."""
    return Case("invalid", name, rules, data, REJECT, "L2", notes, error_rules=rules)


def changed(name: str, rules: list[str], notes: str, change: Change, t: Tensor = W) -> Case:
    sketch = Sketch().add(t)
    change(sketch)
    return reject(name, rules, sketch.render(), notes)


def ignored(name: str, rules: list[str], notes: str, value: str, where: Where = endor) -> Case:
    """A member that has no meaning, in the endor object or in the entry, holds the fault."""
    return changed(name, rules, notes, where(x=Raw(value)))


def instead(whole: str) -> Change:
    """Another text in place of the endor object."""
    return text(lambda _: whole)


def texts() -> Iterator[Case]:
    for name, whole in [
        ("empty", ""),
        ("array", "[]"),
        ("string", '"1.0"'),
        ("null", "null"),
        ("number", "1.0"),
        ("word", "endor"),
    ]:
        note = f"the value of `endor` is not an object: {whole!r}"
        yield changed(f"j-1-endor-{name}", ["J-1"], note, instead(whole))
    for name, before, after, note in [
        ("letter-after", "", "x", "a letter after the endor object"),
        ("object-after", "", "{}", "an object after the endor object"),
        ("nul-after", "", "\0", "a NUL after the endor object"),
        ("byte-order-mark", "\ufeff", "", "a byte order mark before the endor object"),
        ("form-feed", "\f", "", "a form feed before the endor object: no white space in JSON"),
        ("no-break-space", "", "\u00a0", "U+00A0 after the endor object: no white space in JSON"),
        ("comment", "", "/**/", "a comment after the endor object"),
    ]:
        yield changed(f"j-1-endor-{name}", ["J-1"], note, around(before, after))
    yield changed("j-1-endor-cut", ["J-1"], "the endor object does not end", text(lambda t: t[:-1]))
    note = "a comma after the last member of the endor object"
    yield changed("j-1-endor-comma-last", ["J-1"], note, text(lambda t: t[:-1] + ",}"))
    for name, value, note in [
        ("nan", "NaN", "the literal NaN"),
        ("minus-infinity", "-Infinity", "the literal -Infinity"),
        ("leading-zero", "01", "a number with a leading zero"),
        ("newline-in-string", '"\n"', "an unescaped line feed in a string"),
        ("bad-escape", r'"\x41"', "an escape that JSON does not have"),
    ]:
        what = f"{note}, in a member that has no meaning"
        yield ignored(f"j-1-endor-{name}", ["J-1"], what, value)
    for name, old, new in [
        ("version", '"version":"1.0"', '"version":"1.0","version":"1.0"'),
        ("version-by-escape", '"version":"1.0"', r'"versio\u006e":"1.0","version":"1.0"'),
        ("nnz", '"nnz":', '"nnz":0,"nnz":'),
        ("shape", '"shape":', '"shape":[1],"shape":'),
        ("tensors", '"tensors":', '"tensors":{},"tensors":'),
        ("key", '"tensors":{', '"tensors":{"w":{},'),
    ]:
        note = f"a member of the endor object twice: {name}"
        yield changed(f"j-2-endor-{name}", ["J-2"], note, replaced(old, new))
    note = "a duplicate inside a member that has no meaning"
    yield ignored("j-2-endor-ignored", ["J-2"], note, '[{"a":{},"a":{}}]', entry)
    for name, value in [("high", r"\ud83d"), ("low", r"\ude00"), ("reversed", r"\ude00\ud83d")]:
        note = f"a lone surrogate in the endor object: {value}"
        yield ignored(f"j-3-endor-{name}", ["J-3"], note, f'"{value}"')
    note = "a lone surrogate in the name of a member that has no meaning"
    yield ignored("j-3-endor-name", ["J-3"], note, r'{"\ud800":1}', entry)
    note = "depth 17: the endor object, `tensors`, the entry, and 14 arrays"
    yield ignored("j-4-endor-depth-17", ["J-4"], note, "[" * 14 + "]" * 14, entry)


def objects() -> Iterator[Case]:
    value: Any
    for name, value in [("number", 1), ("fraction", Raw("1.0")), ("null", None), ("array", [1, 0])]:
        note = "version is not a string"
        yield changed(f"m-2-version-{name}", ["M-2"], note, endor(version=value))
    for name, version in [
        ("empty", ""),
        ("major-only", "1"),
        ("minor-empty", "1."),
        ("three-numbers", "1.0.0"),
        ("leading-zero", "1.00"),
        ("major-leading-zero", "01.0"),
        ("space", " 1.0"),
        ("newline", "1.0\n"),
        ("letter", "v1.0"),
        ("suffix", "1.0-rc"),
        ("minus", "1.-1"),
        ("plus", "+1.0"),
        ("comma", "1,0"),
        ("ten-digits", "1.1234567890"),
        ("major-ten-digits", "1234567890.0"),
        ("digits-not-ascii", "1.\u0660"),
    ]:
        note = f"version is {version!a}"
        yield changed(f"m-2-version-{name}", ["M-2"], note, endor(version=version))
    yield changed("m-2-no-version", ["M-2"], "no version", lambda s: s.endor.pop("version"))
    yield changed("m-3-no-tensors", ["M-3"], "no `tensors`", lambda s: s.endor.pop("tensors"))
    for name, value in [("array", []), ("null", None), ("string", "w")]:
        note = "`tensors` is not an object"
        yield changed(f"m-3-tensors-{name}", ["M-3"], note, endor(tensors=value))
    for name, value in [("array", []), ("null", None), ("string", "bitmap"), ("true", True)]:
        note = "an entry is not an object"
        yield changed(f"m-3-entry-{name}", ["M-3"], note, endor(tensors={"w": value}))
    for name, value in [("object", {}), ("number", 1)]:
        note = "the value of `endor` is not a string"
        data = plain_file([Physical("w", "U8", [1], b"x")], {"endor": value})
        yield reject(f"c-7-endor-is-{name}", ["C-7"], data, note)


def entries() -> Iterator[Case]:
    item: Any
    nnz: Any
    for member in ("dtype", "shape", "positions", "values"):
        yield changed(f"m-4-no-{member}", ["M-4"], f"no {member}", without(member))
    wrong: list[tuple[str, Any]] = [
        ("dtype", None),
        ("dtype", ["BF16"]),
        ("shape", "5,31"),
        ("shape", {}),
        ("shape", 155),
        ("positions", None),
        ("positions", ["bitmap"]),
        ("values", True),
        ("values", {}),
        ("digest", None),
        ("digest", 7),
        ("digest", ["xxh3_64:0123456789abcdef"]),
    ]
    for member, value in wrong:
        kind = "null" if value is None else type(value).__name__
        note = f"{member} is not what it should be, but of type {kind}"
        yield changed(f"m-4-{member}-is-{kind}", ["M-4"], note, entry(**{member: value}))
    for name, item in [("string", "31"), ("null", None), ("true", True), ("array", [31])]:
        note = f"the shape has an item that is not an integer: {item}"
        yield changed(
            f"m-4-shape-item-{name}",
            ["M-4", "J-5"],
            note,
            entry(shape=[5, item]),
        )
    yield changed("m-5-no-nnz", ["M-5"], "no nnz", without("nnz"))
    for name, nnz in [("string", "62"), ("null", None), ("true", True), ("array", [62])]:
        note = "nnz is not an integer"
        yield changed(f"m-5-nnz-is-{name}", ["M-5", "J-5"], note, entry(nnz=nnz))
    sketch = Sketch().add(random_tensor("w", "U8", [7, 5], density=100, seed=52))
    sketch.entry("w")["nnz"] = 36
    # A further stored element, counted in the index, leaves nnz > numel as the only other fault.
    sketch.change("w", 35, b"\x01").index("w", e1=36).seal("w")
    rules = ["M-5", "B-6"]
    yield reject("m-5-nnz-past-numel", rules, sketch.render(), "nnz is numel + 1")
    sketch = Sketch().add(Tensor("w", "BF16", [0, 7], b""))
    sketch.entry("w")["nnz"] = 1
    rules = ["M-5", "T-4", "B-4", "B-7"]
    yield reject("m-5-nnz-of-empty", rules, sketch.render(), "nnz is 1 for an empty tensor")


def integers() -> Iterator[Case]:
    nnz = Sketch().add(W).entry("w")["nnz"]
    for name, written in [
        ("fraction", f"{nnz}.0"),
        ("exponent", f"{nnz}e0"),
        ("negative", "-1"),
        ("2-to-the-53", str(MAX_INT + 1)),
        ("wraps-around", str(2**64 + nnz)),
    ]:
        note = f"nnz is {written}"
        yield changed(
            f"j-5-nnz-{name}",
            ["J-5", "M-5"],
            note,
            entry(nnz=Raw(written)),
        )
    empty = Tensor("w", "BF16", [0, 7], b"")
    note = "nnz is -0"
    yield changed(
        "j-5-nnz-minus-zero",
        ["J-5", "M-5"],
        note,
        entry(nnz=Raw("-0")),
        empty,
    )
    for name, written in [
        ("fraction", "31.0"),
        ("exponent", "31e0"),
        ("negative", "-31"),
        ("2-to-the-53", str(MAX_INT + 1)),
        ("wraps-around", str(2**64 + 31)),
    ]:
        # 31.0 and 31e0 mean the right shape; the others also contradict nnz or the parts.
        rules = ["J-5", "M-4"] + ([] if name in ("fraction", "exponent") else ["M-5", "T-4"])
        yield changed(
            f"j-5-endor-shape-{name}",
            rules,
            f"a logical shape with {written}",
            entry(shape=[5, Raw(written)]),
        )
    note = "a logical shape with 2^53, of an empty tensor"
    yield changed(
        "j-5-endor-shape-2-to-the-53-empty",
        ["J-5", "M-4"],
        note,
        entry(shape=[0, MAX_INT + 1]),
        empty,
    )
    yield changed(
        "c-8-endor-rank-65",
        ["C-8"],
        "a logical shape of rank 65",
        sealed(entry(shape=[1] * 63 + [5, 31]), W),
    )


def keys() -> Iterator[Case]:
    unknown = {"dtype": "U8", "positions": "list", "shape": [2, 2], "values": "raw"}
    one = Physical("a", "U8", [4], b"\1\2\3\4")

    def sketch(*names: str) -> bytes:
        s = Sketch(physical=[Physical(n, one.dtype, one.shape, one.data) for n in names])
        s.endor["tensors"] = {n: dict(unknown) for n in names}
        return s.render()

    note = "one key begins with another key and .endor.; both encodings are unknown"
    yield reject("t-1-key-inside-key", ["T-1"], sketch("a", "a.endor.b"), note)
    note = "a key is the name of a part of another key"
    yield reject("t-1-key-is-part", ["T-1"], sketch("a", "a.endor.bitmap"), note)
    yield reject("t-1-empty-key", ["T-1"], sketch("", ".endor.b"), "as above, the key being empty")
    for name, between, note in [
        ("hyphen", ["w-1"], "a key that sorts between the two"),
        ("several", ["w!", "w-1", "w-2", "w."], "several keys that sort between the two"),
        ("many", [f"w-{i:03}" for i in range(100)], "100 keys that sort between the two"),
        ("longer", ["w.a", "w.b.endor.x"], "keys that begin alike sort before it"),
    ]:
        what = f"keys w and w.endor.x, and {note}"
        yield reject(f"t-1-between-{name}", ["T-1"], sketch("w", *between, "w.endor.x"), what)
    note = "keys w, w-1 and w.endor"
    yield reject("t-1-between-dot-endor", ["T-1"], sketch("w", "w-1", "w.endor"), note)
    s = Sketch().add(W)
    s.physical += [Physical(n, "U8", [1], b"x") for n in ("w-1", "w.a", "w.endor.more")]
    note = "a physical tensor that belongs to w, and others whose names sort between"
    yield reject("t-3-names-between", ["T-3"], s.render(), note)
    s = Sketch().add(W)
    s.add(random_tensor("w.endor.v", "U8", [3, 3], seed=53))
    note = "a key that begins with another key and .endor., both encoded as bitmap/raw"
    yield reject("t-1-key-inside-key-bitmap", ["T-1", "T-3"], s.render(), note)
    s = Sketch().add(W)
    s.endor["tensors"]["__metadata__"] = dict(unknown)
    rules = ["T-1", "T-2"]
    yield reject("t-1-key-metadata", rules, s.render(), "a key is __metadata__")


def digests() -> Iterator[Case]:
    for name, value in [
        ("empty", ""),
        ("no-algorithm", ":0123456789abcdef"),
        ("no-digits", "xxh3_64:"),
        ("no-colon", "xxh3_640123456789abcdef"),
        ("15-digits", "xxh3_64:0123456789abcde"),
        ("17-digits", "xxh3_64:0123456789abcdef0"),
        ("capitals", "xxh3_64:0123456789ABCDEF"),
        ("algorithm-capitals", "XXH3_64:0123456789abcdef"),
        ("algorithm-hyphen", "xxh3-64:0123456789abcdef"),
        ("not-hexadecimal", "xxh3_64:0123456789abcdeg"),
        ("0x", "xxh3_64:0x23456789abcdef"),
        ("space", "xxh3_64: 0123456789abcde"),
        ("newline", "xxh3_64:0123456789abcdef\n"),
        ("two", "xxh3_64:0123456789abcdef,crc32:00000000"),
        ("unknown-no-digits", "sha256:"),
        ("unknown-capitals", "sha256:AB"),
    ]:
        yield changed(
            f"d-1-{name}",
            ["D-1"],
            f"digest is {value!r}",
            entry(digest=value),
        )
