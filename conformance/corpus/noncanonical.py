"""Files that are not in canonical form and that a reader accepts all the same (L1)."""

from __future__ import annotations

from collections.abc import Iterator

from corpus.build import (
    Physical,
    Raw,
    Sketch,
    Tensor,
    container,
    plain_file,
    random_tensor,
    tensor_of,
    to_json,
)
from corpus.case import NONCANONICAL, Case, listing
from corpus.change import Change, around, endor, entry, text, without

W = random_tensor("w", "BF16", [5, 31], seed=41)
PLAIN = random_tensor("bias", "U8", [3], density=100, seed=42)


def cases() -> Iterator[Case]:
    yield from layouts()
    yield from metadata()
    yield from texts()


def accept(name: str, rules: list[str], data: bytes, notes: str, *tensors: Tensor) -> Case:
    listed = listing(list(tensors or (W,)))
    return Case("noncanonical", name, rules, data, NONCANONICAL, "L1", notes, tensors=listed)


def rendered(change: Change) -> bytes:
    sketch = Sketch().add(W)
    change(sketch)
    return sketch.render()


def layouts() -> Iterator[Case]:
    def reverse(s: Sketch) -> None:
        s.physical.reverse()

    yield accept("w-5-parts-reversed", ["W-5", "C-12"], rendered(reverse), "parts in another order")

    for size in (1, 3):
        sketch = Sketch(pad=1)
        sketch.physical = [Physical("bias", "U8", [size], b"abc"[:size])]
        sketch.add(W)
        note = f"parts at odd addresses: {size} byte(s) of a plain tensor before them"
        bias = Tensor("bias", "U8", [size], b"abc"[:size])
        yield accept(f"w-2-unaligned-by-{size}", ["W-2", "W-5"], sketch.render(), note, W, bias)

    v = random_tensor("v", "F32", [2, 40], seed=43)
    sketch = Sketch().add(W).add(PLAIN, encode=False).add(v)
    order = [0, 4, 3, 1, 6, 2, 5]
    sketch.physical = [sketch.physical[i] for i in order]
    note = "the parts of two tensors and a plain tensor in disorder"
    yield accept("w-5-parts-interleaved", ["W-5", "C-12"], sketch.render(), note, W, v, PLAIN)

    sketch = Sketch().add(W).add(PLAIN, encode=False)
    at = 0
    for p in sketch.physical:
        p.offsets, at = [at, at + len(p.data)], at + len(p.data)
    data = sketch.data()
    sketch.physical.reverse()
    note = "the header lists the tensors in another order than that of their data"
    yield accept("w-4-header-order", ["W-4"], container(sketch.header(), data), note, W, PLAIN)

    sketch = Sketch().add(W)
    body = sketch.header().removeprefix('{"__metadata__":' + to_json(sketch.metadata()) + ",")
    header = body[:-1] + ',"__metadata__":' + to_json(sketch.metadata()) + "}"
    yield accept(
        "w-4-metadata-last",
        ["W-4"],
        container("{" + header, sketch.data()),
        "the member __metadata__ is the last one",
    )
    data = container(sketch.header() + " " * 4099, sketch.data())
    yield accept("w-2-long-padding", ["W-2", "C-5"], data, "more spaces after the header than needed")
    data = container(sketch.header(), sketch.data())
    yield accept("w-2-no-padding", ["W-2"], data, "no spaces after the header")
    # In the endor object quotes are escaped, so this touches the header alone.
    spaced = sketch.header().replace(',"', ' ,\r\n\t"').replace("],", "] ,")
    note = "white space between the members of the header"
    yield accept("w-4-white-space", ["W-4", "J-1"], container(spaced, sketch.data()), note)
    named = sketch.header().replace('"w', r'"\u0077').replace('"dtype"', r'"dt\u0079pe"')
    note = "member names of the header written with escapes"
    yield accept("w-4-escaped-names", ["W-4", "J-2"], container(named, sketch.data()), note)
    beside = random_tensor("\ud7ff\ue000\U00010000\U0010ffff", "F16", [5, 3], seed=97)
    escaped = Sketch().add(beside, encode=False)
    text = escaped.header().replace(beside.name, r"\ud7ff\uE000\ud800\udc00\uDBFF\uDFFF")
    note = "escapes at the edges of the surrogates, none of them lone"
    data = container(text, escaped.data())
    yield accept("j-3-beside-surrogates", ["J-3"], data, note, beside)
    hidden = sketch.header().replace("__metadata__", r"\u005f_metadata_\u005F")
    note = "the name __metadata__ written with escapes"
    yield accept("w-4-escaped-metadata", ["C-7"], container(hidden, sketch.data()), note)

    bools = Tensor("w", "BOOL", [2, 3], bytes([0, 1, 2, 0, 255, 1]))
    note = "BOOL bytes other than 0 and 1: bit patterns are copied and not interpreted"
    yield accept("b-1-bool-other-bytes", ["B-1"], Sketch().add(bools).render(), note, bools)
    user = {"format": "pt", "total": "1"}
    data = plain_file([Physical("w", "U8", [2], b"ab", extra={"x": {"y": [1, None]}})], user, pad=1)
    case = accept("c-6-unknown-members", ["C-6"], data, "members of a tensor that mean nothing")
    case.tensors, case.level = listing([Tensor("w", "U8", [2], b"ab")]), "L0"
    yield case
    data = container("{}   ")
    case = accept("c-5-trailing-spaces", ["C-5"], data, "spaces after the header's object")
    case.tensors, case.level = [], "L0"
    yield case
    header = '{\n\t"w" :\r{"shape":[ 2 ], "data_offsets":[0 ,2],"dtype":"U8"}\n}'
    note = "white space inside the header's object, its members in another order"
    case = accept("c-6-white-space", ["J-1", "C-6"], container(header, b"ab"), note)
    case.tensors, case.level = listing([Tensor("w", "U8", [2], b"ab")]), "L0"
    yield case


def metadata() -> Iterator[Case]:
    for version in ("1.1", "1.7", "1.10", "1.999999999"):
        data = rendered(endor(version=version))
        yield accept(f"v-2-version-{version}", ["V-2", "M-2"], data, "a newer minor version")
    data = rendered(without("digest"))
    yield accept("w-6-no-digest", ["W-6", "M-4"], data, "an entry without a digest")
    extra = {"future": {"x": [1, {"y": None}], "z": Raw("-0.5e-7")}, "flag": True}
    data = rendered(endor(**extra))
    yield accept("m-6-unknown-members-object", ["M-6"], data, "unknown members of the endor object")
    data = rendered(entry(**extra))
    yield accept("m-6-unknown-members-entry", ["M-6"], data, "unknown members of an entry")
    deep = Raw("[" * 13 + "]" * 13)
    data = rendered(entry(x=deep))
    # The endor object, `tensors` and the entry are depths 1 to 3.
    yield accept("j-4-endor-depth-16", ["J-4", "M-6"], data, "depth 16 in the endor object")
    data = rendered(entry(x=Raw("8" * 5000)))
    note = "an unknown member with a number of 5000 digits"
    yield accept("j-5-endor-long-number", ["J-5", "M-6"], data, note)
    data = rendered(lambda s: s.user.clear())
    yield accept("w-3-no-format", ["W-3"], data, "no member `format` in the metadata")
    data = rendered(lambda s: s.user.update(endorsed="x", Endor="{"))
    yield accept("w-3-metadata-near-names", ["M-1"], data, "metadata with names like endor")
    t = tensor_of("w", "U8", [1], [1])
    note = "so small a tensor would be left plain by W-7; readers do not care"
    yield accept("w-7-not-worth-it", ["W-7"], Sketch().add(t).render(), note, t)


def texts() -> Iterator[Case]:
    for name, before, after in [
        ("before", " \t\r\n", ""),
        ("after", "", " \t\r\n"),
        ("both", "\n", "\n"),
    ]:
        data = rendered(around(before, after))
        note = f"white space around the endor object ({name})"
        yield accept(f"m-1-white-space-{name}", ["M-1"], data, note)
    data = rendered(loose)
    yield accept("m-1-white-space-inside", ["M-1", "J-1"], data, "white space in the endor object")
    edit = {'"w"': r'"\u0077"', '"bitmap"': r'"b\u0069tmap"', '"version"': r'"versio\u006e"'}

    def escaped(t: str) -> str:
        for old, new in edit.items():
            t = t.replace(old, new)
        return t

    data = rendered(text(escaped))
    note = "names and values in the endor object written with escapes"
    yield accept("m-1-escapes", ["M-1", "J-2"], data, note)
    smile = random_tensor("\U0001f600", "U8", [3, 9], seed=44)
    sketch = Sketch().add(smile)
    sketch.edit = lambda t: t.replace("\U0001f600", r"\ud83d\uDE00")
    note = "the name in the endor object is a pair of escapes, in the header it is UTF-8"
    yield accept("j-3-endor-surrogate-pair", ["J-3", "T-2"], sketch.render(), note, smile)
    data = rendered(text(unsorted))
    yield accept("w-3-unsorted", ["W-3"], data, "members of the endor object not sorted")


def loose(sketch: Sketch) -> None:
    sketch.entry("w").pop("digest")  # it has a colon inside a string
    sketch.edit = lambda t: t.replace(",", " ,\n").replace(":", " :\t")


def unsorted(t: str) -> str:
    return '{"version":"1.0",' + t.removesuffix(',"version":"1.0"}').removeprefix("{") + "}"
