"""Files that cost a careless decoder its memory or its time; each has a budget.

`memory_mib` is what a decoder may need on top of what it needs for a file of a few bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from struct import pack

from corpus.build import MAX_INT, Physical, Sketch, Tensor, container, plain_file, to_json
from corpus.case import (
    ACCEPT,
    EITHER,
    NONCANONICAL,
    REJECT,
    UNSUPPORTED,
    Case,
    Json,
    Recipe,
    listing,
)
from corpus.malformed_header import WITH

BUDGETS = {"seconds": 10, "memory_mib": 64}
LIMIT = 100_000_000
BEFORE, AFTER = (part.encode() for part in (WITH % "?").split("?"))


def cases() -> Iterator[Case]:
    yield from lying_lengths()
    yield from header_at_the_limit()
    yield from lying_shapes()
    yield from nesting()
    yield from long_texts()
    yield from many()
    yield from large_tensors()


def limit(
    name: str,
    rules: list[str],
    content: bytes | Recipe,
    notes: str,
    expect: str = REJECT,
    level: str = "L0",
    tensors: list[Json] | None = None,
    **budgets: int,
) -> Case:
    return Case(
        "limits",
        name,
        rules,
        content,
        expect,
        level,
        notes,
        error_rules=rules if expect == REJECT else [],
        tensors=tensors,
        budgets={**BUDGETS, **budgets},
    )


def recipe(*pieces: tuple[bytes, int], data: bytes = b"x") -> Recipe:
    """A file whose header is the pieces, each so many times."""
    n = sum(len(piece) * times for piece, times in pieces)
    whole = [(pack("<Q", n), 1), *pieces, (data, 1)]
    return Recipe([{"hex": p.hex(), "repeat": times} for p, times in whole if p and times])


def lying_lengths() -> Iterator[Case]:
    small = container("{}")[8:]
    for name, n in [("limit", LIMIT), ("2-to-the-40", 2**40), ("2-to-the-63", 2**63)]:
        rules = ["C-3"] if n <= LIMIT else ["C-2", "C-3"]
        note = f"a file of 10 bytes says that its header has {n}"
        yield limit(f"{rules[0].lower()}-n-is-{name}", rules, pack("<Q", n) + small, note)


def header_at_the_limit() -> Iterator[Case]:
    def spaces(n: int) -> Recipe:
        return recipe((b"{}", 1), (b" ", n - 2), data=b"")

    note = "a header that really has one byte more than the limit"
    yield limit("c-2-limit-plus-1", ["C-2"], spaces(LIMIT + 1), note, memory_mib=256)
    note = "a header as long as the limit, nearly all spaces: a reader may find it too large"
    case = limit("c-2-limit", ["C-2"], spaces(LIMIT), note, EITHER, memory_mib=1024, seconds=30)
    case.answers, case.tensors = [ACCEPT, UNSUPPORTED], []
    yield case


def lying_shapes() -> Iterator[Case]:
    for name, size in [("2-to-the-40", 2**40), ("largest", MAX_INT)]:
        t = Physical("w", "U8", [size], b"x", [0, size])
        note = f"a tensor of {size} bytes in a file of one"
        yield limit(f"c-9-{name}", ["C-9", "C-13"], plain_file([t]), note)
        t = Physical("w", "U8", [size], b"x", [0, 1])
        note = f"a shape of {size} elements over one byte"
        yield limit(f"c-10-{name}", ["C-10"], plain_file([t]), note)
    for name, shape in [("2-to-the-40", [2**20, 2**20]), ("largest", [MAX_INT] * 64)]:
        for full in (False, True):
            s = Sketch().add(Tensor("w", "U8", [1, 1], b"x"))
            s.entry("w").update(shape=shape, nnz=2**40 if full else 1)
            note = f"a logical shape far larger than its bitmap, {'full' if full else 'sparse'}"
            suffix = "full" if full else "sparse"
            yield limit(f"t-4-{name}-{suffix}", ["T-4"], s.seal("w").render(), note, level="L2")
    s = Sketch().add(Tensor("w", "F32", [4, 64], bytes(4 * 256)))
    s.entry("w")["nnz"] = 2**40
    note = "nnz far larger than numel"
    yield limit("m-5-nnz", ["M-5", "T-4", "B-7"], s.seal("w").render(), note, level="L2")
    s = Sketch().add(Tensor("w", "F32", [4, 64], bytes(4 * 256)))
    s.index("w", e1=2**62).seal("w")
    note = "an index entry of 2^62: whoever skips there leaves the file"
    yield limit("b-7-index-entry", ["B-7", "B-6"], s.render(), note, level="L2")


def nesting() -> Iterator[Case]:
    depth = 100_000
    for name, opening, middle, closing in [
        ("arrays", b"[", b"", b"]"),
        ("objects", b'{"a":', b"1", b"}"),
    ]:
        begun = [(BEFORE, 1), (opening, depth)]
        ended = [(middle, 1), (closing, depth), (AFTER, 1)]
        note = f"{name} nested {depth} deep"
        yield limit(f"j-4-{name}-closed", ["J-4"], recipe(*begun, *ended), f"{note}, closed")
        yield limit(f"j-4-{name}-open", ["J-4", "J-1"], recipe(*begun), f"{note}, left open")
    s = Sketch().add(Tensor("w", "U8", [2, 1], b"ab"))
    s.edit = lambda t: t[:-1] + ',"x":' + "[" * 20_000 + "]" * 20_000 + "}"
    note = "arrays nested 20000 deep in the endor object"
    yield limit("j-4-endor-arrays", ["J-4"], s.render(), note, level="L2")


def long_texts() -> Iterator[Case]:
    one, size = listing([Tensor("w", "U8", [1], b"x")]), 1_000_000
    for name, opening, piece, closing, note in [
        ("j-5-number", b"", b"7", b"", "a number of a million digits"),
        ("j-1-string", b'"', b"ab", b'"', "a string of two million characters"),
        ("j-3-escapes", b'"', rb"\ud83d\ude00", b'"', "a string of a million pairs of surrogates"),
        ("j-1-white-space", b"", b" ", b"1", "a million spaces before a value"),
    ]:
        content = recipe((BEFORE + opening, 1), (piece, size), (closing + AFTER, 1))
        case = limit(name, [name[:3].upper(), "C-6"], content, note, NONCANONICAL, tensors=one)
        case.budgets = {"seconds": 20, "memory_mib": 256}
        yield case


COUNT = 20_000
MEMBER = '"t#":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},'
LAST = '"u":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'


def numbered(data: bytes, *pieces: str) -> Recipe:
    """As `recipe`, of text; a piece with a # is there COUNT times, numbered."""
    n = sum(COUNT * (len(p) + 5) if "#" in p else len(p) for p in pieces)
    content = Recipe([{"hex": pack("<Q", n).hex(), "repeat": 1}])
    for p in pieces:
        once = {"hex": p.encode().hex(), "repeat": 1}
        content.append({"text": p, "count": COUNT} if "#" in p else once)
    content.append({"hex": data.hex(), "repeat": 1})
    return content


def many() -> Iterator[Case]:
    content = numbered(b"xy", "{", MEMBER, LAST)
    note = f"{COUNT} empty tensors, and a byte after the last one: O(n^2) takes its time"
    yield limit("c-13-many-tensors", ["C-13"], content, note, seconds=20, memory_mib=256)

    def escaped(text: str) -> str:
        return text.replace('"', '\\"')

    entry = to_json({"dtype": "U8", "positions": "list", "shape": [0], "values": "raw"})
    head = '{"__metadata__":{"endor":"' + escaped('{"tensors":{')
    tail = escaped(f'"z":{entry}}},"version":"1.0"}}') + '"},'
    content = numbered(b"x", head, escaped(f'"t#":{entry},'), tail, MEMBER, LAST)
    note = f"{COUNT} keys, of which the last has no physical tensor: O(n^2) takes its time"
    case = limit("t-2-many-keys", ["T-2"], content, note, level="L2")
    case.budgets = {"seconds": 30, "memory_mib": 512}
    yield case


def large_tensors() -> Iterator[Case]:
    """The most that a file can swell to: 64 times its length (section 14)."""
    rows, columns = 512, 4096
    bitmap, index = rows * columns // 8, 8 * (rows + 8)
    s = Sketch()
    s.endor["tensors"]["w"] = {
        "dtype": "F64",
        "nnz": 0,
        "positions": "bitmap",
        "shape": [rows, columns],
        "values": "raw",
    }
    s.physical = [
        Physical("w", "F64", [0], b""),
        Physical("w.endor.bitmap", "U8", [bitmap], b"", [0, bitmap]),
        Physical("w.endor.index", "I64", [rows + 8], b"", [bitmap, bitmap + index]),
    ]
    content = Recipe(
        [
            {"hex": s.render().hex(), "repeat": 1},
            {"hex": "00", "repeat": bitmap + index},
        ]
    )
    dense = Tensor("w", "F64", [rows, columns], bytes(8 * rows * columns))
    note = "16 MiB of zeros from 256 KiB of bitmap"
    yield limit(
        "s-2-swelling",
        ["S-2", "B-2"],
        content,
        note,
        NONCANONICAL,
        "L1",
        listing([dense]),
        memory_mib=160,
        seconds=30,
    )
