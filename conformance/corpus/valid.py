"""Valid files: plain ones (L0) and canonical Endor files (L1)."""

from __future__ import annotations

from collections.abc import Iterator

from corpus.build import (
    BITS,
    BLOCK,
    ENCODABLE,
    MAX_INT,
    Physical,
    Tensor,
    canonical,
    container,
    physical,
    plain_file,
    random_tensor,
    scattered,
    tensor_of,
)
from corpus.case import ACCEPT, Case, listing


def cases() -> Iterator[Case]:
    yield from plain()
    yield from dtypes()
    yield from special_values()
    yield from sizes()
    yield from shapes()
    yield from detectors()
    yield from names()
    yield from several()


def encoded(name: str, rules: list[str], tensors: list[Tensor], notes: str) -> Case:
    """An Endor file with all of the tensors encoded."""
    data = canonical(tensors, {t.name for t in tensors})
    return Case("valid", name, rules, data, ACCEPT, "L1", notes, tensors=listing(tensors))


def mixed(name: str, rules: list[str], tensors: list[Tensor], encode: int, notes: str) -> Case:
    """An Endor file with only the first few tensors encoded."""
    data = canonical(tensors, {t.name for t in tensors[:encode]})
    return Case("valid", name, rules, data, ACCEPT, "L1", notes, tensors=listing(tensors))


def plain_case(name: str, rules: list[str], tensors: list[Tensor], notes: str) -> Case:
    data = plain_file([physical(t) for t in tensors], {"format": "pt"})
    return Case("valid", name, rules, data, ACCEPT, "L0", notes, tensors=listing(tensors))


def raw_case(name: str, rules: list[str], data: bytes, tensors: list[Tensor], notes: str) -> Case:
    return Case("valid", name, rules, data, ACCEPT, "L0", notes, tensors=listing(tensors))


def plain() -> Iterator[Case]:
    empty = "no tensors at all: the header is the two bytes {}"
    yield raw_case("c-13-no-tensors", ["C-5", "C-13"], container("{}"), [], empty)
    metadata = container('{"__metadata__":{}}')
    yield raw_case("c-7-only-metadata", ["C-7"], metadata, [], "metadata, empty, and no tensors")

    whole = [d for d, bits in BITS.items() if bits % 8 == 0]
    every = [random_tensor(d.lower(), d, [3, 5], seed=i) for i, d in enumerate(whole)]
    note = "one plain tensor of every dtype with whole bytes"
    yield plain_case("c-10-plain-every-dtype", ["C-10"], every, note)
    for dtype, shape, size in [("F4", [3, 2], 3), ("F6_E2M3", [4], 3), ("F6_E3M2", [2, 4], 6)]:
        t = Tensor("w", dtype, shape, bytes(range(1, size + 1)))
        note = f"{dtype}: elements smaller than a byte that fill whole bytes"
        yield plain_case(f"c-10-plain-{dtype.lower().replace('_', '-')}", ["C-10"], [t], note)

    for position in range(3):
        shape = [MAX_INT] * 3
        shape[position] = 0
        note = f"factor {position} is 0, so the tensor is empty, however large the others are"
        name = f"c-10-plain-zero-dimension-{position}"
        yield plain_case(name, ["C-10", "J-5"], [Tensor("w", "F32", shape, b"")], note)
    t = Tensor("w", "U8", [1] * 64, b"x")
    yield plain_case("c-8-plain-rank-64", ["C-8"], [t], "the highest rank")
    yield plain_case("c-8-plain-rank-0", ["C-8"], [Tensor("w", "I32", [], b"abcd")], "rank 0")

    a, b = Tensor("a", "U8", [0], b""), Tensor("b", "U8", [8], b"abcdefgh")
    c = Tensor("c", "F64", [0, 3], b"")
    parts = [Physical("b", "U8", [8], b.data, [0, 8]), Physical("a", "U8", [0], b"", [0, 0])]
    parts.append(Physical("c", "F64", [0, 3], b"", [8, 8]))
    note = "empty tensors at both ends of another; the header lists the one at 0 second"
    yield raw_case("c-11-empty-at-the-ends", ["C-11", "C-12"], plain_file(parts), [a, b, c], note)

    looks = [Tensor(n, "U8", [1], b"x") for n in ("endor.index", "w.endor.index.x", "w.endor.maps")]
    note = "no Endor file: names that only resemble the ones T-6 forbids"
    yield plain_case("t-6-plain-harmless-names", ["T-6"], looks, note)
    names = ("w.endor.bases", "w.endor.patches", "w.endor.values", "w.endor", ".endor.", "endor.bitmap")
    note = "no Endor file: only two names of parts tell of lost metadata, and these are none of them"
    yield plain_case("t-6-plain-other-parts", ["T-6"], [Tensor(n, "U8", [1], b"x") for n in names], note)
    note = "the member is `Endor`, not `endor`: a plain file"
    data = plain_file([Physical("w", "U8", [1], b"x")], {"Endor": "?", "endor.version": "9.0"})
    yield raw_case("t-6-metadata-in-capitals", ["T-6"], data, [Tensor("w", "U8", [1], b"x")], note)

    text = '{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":%s}}'
    one = [Tensor("w", "U8", [1], b"x")]
    # Depths 1 and 2 are the header and the description of w.
    deep = container(text % ("[" * 14 + "]" * 14), b"x")
    yield raw_case("j-4-depth-16", ["J-4"], deep, one, "arrays nested to depth 16, just allowed")
    for name, number in [
        ("number-1e400", "1e400"),
        ("number-minus-zero", "-0"),
        ("number-fraction", "1.0"),
        ("number-5000-digits", "9" * 5000),
        ("capital-exponent", "1E5"),
        ("signed-exponent", "1e+5"),
    ]:
        note = "a number without a meaning here may be anything that JSON admits"
        data = container(text % number, b"x")
        yield raw_case(f"j-5-ignored-{name}", ["J-5", "C-6"], data, one, note)
    for at in (4096, 65536):
        header = text % "0"
        long = text % ('"' + "." * (at - header.index("0") - 2) + '\u20ac"')
        note = f"a character of three bytes that straddles byte {at} of the header"
        yield raw_case(f"c-4-straddles-{at}", ["C-4"], container(long, b"x"), one, note)
    objects = container(text % ('{"a":' * 13 + "{}" + "}" * 13), b"x")
    yield raw_case("j-4-objects-depth-16", ["J-4"], objects, one, "objects nested to depth 16")
    edges = "\x7f\x80\u00e9\u07ff\u0800\uffff"
    escaped = "".join(f"\\u{ord(c):04{'xX'[i % 2]}}" for i, c in enumerate(edges))
    named = container(f'{{"{escaped}":{{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}}}', b"x")
    note = "a name of escapes at the edges of the lengths of UTF-8, in both cases of digits"
    yield raw_case("j-3-escapes-by-length", ["J-3"], named, [Tensor(edges, "U8", [1], b"x")], note)
    pair = container(text % r'"\ud83d\ude00 \u0000 \/"', b"x")
    yield raw_case("j-3-surrogate-pair", ["J-3"], pair, one, "a pair of escapes, and other escapes")
    note = "U+FEFF inside a string is a character, not a byte order mark"
    t = Tensor("\ufeffw", "U8", [1], b"x")
    yield plain_case("c-4-zero-width-no-break-space", ["C-4"], [t], note)
    note = "DEL and U+2028 need no escape in JSON"
    yield plain_case("j-1-del-in-a-name", ["J-1"], [Tensor("\x7f\u2028", "U8", [1], b"x")], note)


def dtypes() -> Iterator[Case]:
    for i, dtype in enumerate(ENCODABLE):
        t = random_tensor("w", dtype, [3, 37], seed=100 + i)
        name = f"b-2-dtype-{dtype.lower().replace('_', '-')}"
        yield encoded(name, ["B-2", "T-4"], [t], f"{dtype}, 111 elements, about 40 % stored")


def special_values() -> Iterator[Case]:
    yield from negative_zeros()
    nans = {
        "F16": [0x7E00, 0x7C01, 0xFE55, 0xFFFF],
        "BF16": [0x7FC0, 0x7F81, 0xFFC1, 0xFFFF],
        "F32": [0x7FC00000, 0x7F800001, 0xFFC12345, 0xFFFFFFFF],
        "F64": [0x7FF8 << 48, (0x7FF0 << 48) + 1, (0xFFF8 << 48) + 0x1234, 2**64 - 1],
        "F8_E5M2": [0x7D, 0x7E, 0x7F, 0xFD],
        "F8_E4M3": [0x7F, 0xFF, 0, 0x7F],
    }
    for dtype, bits in nans.items():
        t = tensor_of("w", dtype, [0, *bits, 0, bits[1], 0], [2, 4])
        name = f"b-1-nan-payloads-{dtype.lower().replace('_', '-')}"
        note = "quiet and signalling NaNs, both signs: every bit is kept"
        yield encoded(name, ["B-1"], [t], note)
    edges = {
        "F16": [0x7C00, 0xFC00, 0x0001, 0x83FF],
        "BF16": [0x7F80, 0xFF80, 0x0001, 0x807F],
        "F32": [0x7F800000, 0xFF800000, 1, 0x807FFFFF],
        "F64": [0x7FF0 << 48, 0xFFF0 << 48, 1, (0x8000 << 48) + 1],
    }
    tensors = [tensor_of(d, d, [0, *bits, 0], [2, 3]) for d, bits in edges.items()]
    note = "infinities and subnormals: a decoder with flush-to-zero loses the latter"
    yield encoded("b-1-infinities-and-subnormals", ["B-1"], tensors, note)

    high, low = 0x80000000, 0x3F800000
    parts = [0, high, high << 32, high << 32 | high, low, low << 32, high << 32 | low, 0]
    t = tensor_of("w", "C64", parts, [2, 4])
    note = "complex elements of which one part is 0.0 or -0.0: stored unless all bits are 0"
    yield encoded("b-1-complex-negative-zero-part", ["B-1"], [t], note)
    t = tensor_of("w", "F8_E8M0", [0x00, 0x7F, 0x00, 0x01, 0xFF, 0x00], [2, 3])
    note = "0x00 means 2^-127 in E8M0 and is yet a zero element, so not stored"
    yield encoded("b-1-e8m0-zero-byte", ["B-1"], [t], note)
    for dtype in ("F8_E4M3FNUZ", "F8_E5M2FNUZ"):
        t = tensor_of("w", dtype, [0x80, 0x00, 0x7F, 0x80], [2, 2])
        note = "0x80 is NaN in the FNUZ formats: stored"
        yield encoded(f"b-1-fnuz-nan-{dtype[3:7].lower()}", ["B-1"], [t], note)
    for width, dtype in [(16, "U16"), (32, "I32"), (64, "U64")]:
        t = tensor_of("w", dtype, [1 << i for i in range(width)], [2, width // 2])
        note = "each element has a single 1 bit: a zero test of some of its bytes only fails"
        yield encoded(f"b-10-single-bits-{dtype.lower()}", ["B-10", "B-1"], [t], note)


def negative_zeros() -> Iterator[Case]:
    for dtype in ("F8_E5M2", "F8_E4M3", "F16", "BF16", "F32", "F64"):
        minus = 1 << (BITS[dtype] - 1)
        t = tensor_of("w", dtype, [minus, 0, 0, minus, 3, minus], [2, 3])
        name = f"b-1-negative-zero-{dtype.lower().replace('_', '-')}"
        yield encoded(name, ["B-1", "B-10"], [t], "negative zeros are stored, zeros are not")


def sizes() -> Iterator[Case]:
    for n in (1, 7, 8, 9, 63, 64, 65, 511, 512, 513):
        t = random_tensor("w", "BF16", [1, n], seed=200 + n)
        yield encoded(f"b-2-numel-{n}", ["B-2", "B-3"], [t], f"{n} elements")
    for n in (BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK - 1, 2 * BLOCK, 2 * BLOCK + 1):
        t = random_tensor("w", "U8", [1, n], density=25, seed=200 + n)
        note = f"{n} elements, {-(-n // BLOCK)} blocks of 4096"
        yield encoded(f"b-2-numel-{n}", ["B-2", "B-3"], [t], note)
    for blocks in (7, 8):
        t = random_tensor("w", "U8", [blocks, BLOCK], density=6, seed=blocks)
        note = f"{blocks} blocks: {'no' if blocks == 7 else '7 entries of'} padding in the index"
        yield encoded(f"b-8-{blocks}-blocks", ["B-8", "B-2"], [t], note)
    for dtype, around in [("U8", 64), ("F16", 32), ("F32", 16), ("C64", 8)]:
        for nnz in (around - 1, around, around + 1):
            t = scattered("w", dtype, [2, 75], {2 * i + 1: i + 1 for i in range(nnz)})
            note = f"{nnz * t.itemsize} bytes of stored elements: the padding goes up to 64"
            yield encoded(f"b-9-nnz-{nnz}-{dtype.lower()}", ["B-9", "B-2"], [t], note)
    t = tensor_of("w", "F32", [0] * 300, [3, 100])
    yield encoded("b-2-all-zero", ["B-2", "B-7"], [t], "nothing is stored: values has shape [0]")
    t = tensor_of("w", "U8", [i % 255 + 1 for i in range(2 * BLOCK)], [2, BLOCK])
    note = "all is stored: nnz = numel, and blocks with 4096 stored elements"
    yield encoded("m-5-full", ["M-5", "B-2"], [t], note)
    t = random_tensor("w", "U8", [35, 2000], density=99, seed=5)
    yield encoded("b-6-nnz-past-65536", ["B-6", "B-7"], [t], "nnz and index entries past 2^16")


def shapes() -> Iterator[Case]:
    yield encoded("b-2-0d-zero", ["B-2"], [tensor_of("w", "F32", [0], [])], "0-d, a zero element")
    note = "0-d, a stored element"
    yield encoded("b-2-0d-stored", ["B-2"], [tensor_of("w", "F32", [0x3F800000], [])], note)
    huge = [[0, MAX_INT, MAX_INT], [MAX_INT, 0, MAX_INT], [MAX_INT, MAX_INT, 0]]
    for i, shape in enumerate([[0, 7], [7, 0], *huge]):
        name = f"b-2-empty-{i}" if i < 2 else f"j-5-empty-and-huge-{i - 2}"
        note = f"an empty tensor of shape {shape}: no values, no bitmap, an index of zeros"
        yield encoded(name, ["B-2", "B-4", "J-5"], [Tensor("w", "BF16", shape, b"")], note)
    t = random_tensor("w", "U8", [1] * 62 + [3, 3], seed=64)
    yield encoded("c-8-rank-64", ["C-8"], [t], "a logical shape of the highest rank")
    t = random_tensor("w", "I8", [64, 1], density=100, seed=65)
    note = "the physical shape [64] is not the logical shape [64, 1], although numel is the same"
    yield encoded("t-5-same-numel", ["T-5"], [t], note)


def detectors() -> Iterator[Case]:
    t = scattered("w", "U8", [4, 8], {0: 1, 9: 2, 18: 3, 27: 4, 28: 5, 31: 6})
    note = "few bits in unlike places: most significant bit first gives another tensor"
    yield encoded("b-2-bit-order", ["B-2"], [t], note)
    t = tensor_of("w", "U32", [0x01020304, 0, 0x000000FF, 0xFF000000], [2, 2])
    yield encoded("b-2-byte-order", ["B-2"], [t], "elements whose bytes differ: little-endian")
    stored = {b * BLOCK + 8 * k + b: 50 * b + k + 1 for b in range(3) for k in range(50)}
    t = scattered("w", "U8", [3, BLOCK], stored)
    note = "three blocks with equally many stored elements: swapped, their counts still agree"
    yield encoded("b-6-swapped-blocks", ["B-6", "B-2"], [t], note)
    t = random_tensor("w", "U8", [3, 5], density=50, seed=71)
    note = "rows of 5 elements: the bitmap has no padding between rows"
    yield encoded("b-2-row-padding", ["B-2"], [t], note)
    t = random_tensor("w", "U8", [13, 701], density=20, seed=72)
    yield encoded("b-2-blocks-across-rows", ["B-2", "B-6"], [t], "blocks begin amid rows")
    stored = {0: 1, BLOCK - 1: 2, BLOCK: 3, 2 * BLOCK - 1: 4, 4 * BLOCK: 5, 5 * BLOCK - 1: 6}
    t = scattered("w", "U16", [5, BLOCK], stored)
    note = "the first and last element of blocks, and blocks without any"
    yield encoded("b-6-block-edges", ["B-6"], [t], note)
    stored = {i: i % 251 + 1 for i in range(BLOCK, 2 * BLOCK)}
    t = scattered("w", "U8", [3, BLOCK], stored)
    note = "a full block between empty ones: a count of 4096 needs 13 bits"
    yield encoded("b-6-full-block-between-empty", ["B-6"], [t], note)
    t = scattered("w", "U8", [7, 9], {62: 9})
    yield encoded("b-3-last-bit", ["B-3"], [t], "bit numel - 1 is set: the last one that may be")


def names() -> Iterator[Case]:
    unusual = {
        "empty": "",
        "quotes": 'a"b\\c/d',
        "control-characters": "a\x00\x01\b\t\n\f\r\x1f\x7f",
        "chinese": "模型.权重",
        "astral": "\U0001f600",
        "dots": "..w...",
        "path": "../../etc/passwd",
        "prototype": "__proto__",
        "spaces": " w ",
        "almost-metadata": "__metadata__ ",
        "endor": "endor",
        "ends-in-endor": "w.endor",
    }
    for i, (what, name) in enumerate(unusual.items()):
        t = random_tensor(name, "U8", [3, 7], seed=300 + i)
        note = f"a tensor named {name!a}"
        yield encoded(f"t-2-name-{what}", ["T-2", "J-1"], [t], note)
    both = [random_tensor(n, "U8", [2, 9], seed=i) for i, n in enumerate(["\u00e9", "e\u0301"])]
    note = "two names that are equal only after Unicode normalization"
    yield encoded("j-2-names-not-normalized", ["J-2"], both, note)
    order = ["\uff5e", "\U0001f600", "z", "Z"]
    tensors = [random_tensor(n, "U8", [2, 9], seed=i) for i, n in enumerate(order)]
    note = "names whose order by code points is not their order by UTF-16 code units"
    yield encoded("w-3-sorted-by-code-point", ["W-3", "J-1"], tensors, note)

    look = ["w.endor.index", "v.endor.bitmap", "wx", "x.endor.", "W.endor.index", "endor.index"]
    plain = [Tensor(n, "U8", [1], bytes([i])) for i, n in enumerate([*look, "v.endor.index"])]
    t = random_tensor("other", "U8", [4, 4], seed=9)
    note = "names that look like parts but belong to no key: plain tensors"
    yield mixed("t-3-plain-names-like-parts", ["T-3", "T-6"], [t, *plain], 1, note)
    near = ["w.endorbitmap", "w.Endor.bitmap", "w.endor", "w."]
    plain = [Tensor(n, "U8", [1], b"n") for n in near]
    t = random_tensor("w", "U8", [4, 4], seed=9)
    note = "names that only begin almost like those of the parts of w"
    yield mixed("t-3-plain-names-near-parts", ["T-3"], [t, *plain], 1, note)


def several() -> Iterator[Case]:
    tensors = [random_tensor(f"layer.{i}", d, [5, 11], seed=i) for i, d in enumerate(ENCODABLE[:6])]
    tensors += [random_tensor("norm", "F32", [7], 100), Tensor("f4", "F4", [2], b"\x21")]
    note = "four encoded tensors and four plain ones, plain ones by falling size of the element"
    yield mixed("w-5-several-tensors", ["W-5", "T-2"], tensors, 4, note)
    note = "an Endor file in which no tensor is encoded"
    yield mixed("w-3-none-encoded", ["W-3", "M-3"], tensors[4:], 0, note)
    yield mixed("m-3-no-tensors", ["M-3"], [], 0, "no tensors")
    t = random_tensor("w", "F16", [9, 9], seed=77)
    user = {"format": "np", "note": 'a "quoted" \u2603\n', "zzz": "", "__metadata__": "{}"}
    note = "other members of the metadata belong to the user, whatever they hold"
    case = encoded("w-3-user-metadata", ["C-7", "W-3"], [t], note)
    case.content = canonical([t], {"w"}, user)
    yield case
