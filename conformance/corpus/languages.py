"""What JSON libraries of common languages get wrong, in files and in canonical text (J, C, M, D-2, W-4).

They escape more than canonical text does, or otherwise; fold the case of member names; keep one of two equal
names; compare what is written instead of what it means; or have no number for what is written.
"""

from __future__ import annotations

from collections.abc import Iterator

from corpus import checksum, noncanonical
from corpus.build import (
    MAX_INT,
    Physical,
    Raw,
    Sketch,
    Tensor,
    container,
    physical,
    plain_file,
    random_tensor,
    to_json,
)
from corpus.case import ACCEPT, REJECT, Case
from corpus.change import endor, entry, replaced
from corpus.encode import few, pair
from corpus.invalid_metadata import changed

# A name of each kind that some writer escapes and canonical text does not, or escapes in its own way.
NAMES = {
    "less-than": ("a<b>c", "`<` and `>`"),
    "ampersand": ("a&b", "`&`"),
    "apostrophe": ("it's=+", "an apostrophe, `=` and `+`"),
    "solidus": ("a/b", "a solidus"),
    "delete": ("a\x7fb", "U+007F"),
    "c1-control": ("a\x85b", "U+0085, a control character past ASCII"),
    "line-separator": ("a\u2028b\u2029c", "U+2028 and U+2029"),
    "byte-order-mark": ("a\ufeffb", "U+FEFF"),
    "latin": ("caf\u00e9", "a letter of Latin-1"),
    "astral": ("a\U0001f600b", "a character above U+FFFF"),
    "noncharacter": ("a\uffffb", "U+FFFF"),
    "short-escapes": ("\b\t\n\f\r", "the five control characters that have escapes of their own"),
    "other-controls": ("\x00\x01\x0b\x0e\x1f", "control characters that have none: escaped as \\u00xx"),
    "quote-backslash": ('"\\', "a quote and a backslash"),
}


def cases() -> Iterator[Case]:
    yield from canonical_text()
    yield from folded()
    yield from duplicates()
    yield from escaped_values()
    yield from numbers()


def canonical_text() -> Iterator[Case]:
    for kind, (name, what) in NAMES.items():
        tensor = random_tensor(name, "U8", [2, 20], 50, seed=3000)
        note = f"the digest covers a name with {what}, as canonical text writes it"
        sketch = Sketch().add(tensor)
        yield checksum.case(f"d-2-name-{kind}", ["D-2"], sketch, ACCEPT, note, tensor)
        tensors = [few(name, "U8", [30, 40], 3001)]
        note = f"a name and metadata with {what}"
        yield pair(f"w-4-name-{kind}", ["W-4"], tensors, {name}, note, {f"key {name}": name})
    written = {
        "\b": r"\u0008",
        "\f": r"\u000C",
        "\n": r"\u000a",
        "\r": r"\u000d",
        "/": r"\/",
        "\x7f": r"\u007f",
    }
    name = "".join(written)
    tensor = random_tensor(name, "U8", [2, 20], 50, seed=3002)
    sketch = Sketch().add(tensor)
    header = sketch.header()
    plain = '"\\b\\f\\n\\r/\x7f'
    assert header.count(plain) == 3  # the parts; in the endor object they are escaped again
    file = container(header.replace(plain, '"' + "".join(written.values())), sketch.data())
    note = "names that have more escapes in the header than they need, and fewer in the endor object"
    yield noncanonical.accept("w-4-longer-escapes", ["W-4", "J-2"], file, note, tensor)
    case = noncanonical.accept("d-2-longer-escapes", ["D-2", "W-4"], file, note, tensor)
    case.category, case.level, case.digests = "checksum", "L2", True
    yield case


def folded() -> Iterator[Case]:
    """Member names that are alike but for case are other names."""
    one = Tensor("w", "U8", [2], b"ab")
    for member, value in [
        ("DTYPE", "F64"),
        ("Shape", [7]),
        ("Data_Offsets", [0, 9]),
        ("dataOffsets", [5, 6]),
    ]:
        note = f"a member {member} of a tensor, which has no meaning"
        for where in ("after", "before"):
            data = plain_file([Physical("w", "U8", [2], b"ab", extra={member: value})], pad=1)
            if where == "before":
                text = (
                    f'{{"w":{{"{member}":{to_json(value)},"dtype":"U8","shape":[2],"data_offsets":[0,2]}}}}'
                )
                data = container(text, b"ab")
            name = f"c-6-{member.replace('_', '-')}-{where}".lower()
            name += "-camel" if member == "dataOffsets" else ""
            case = noncanonical.accept(name, ["C-6"], data, f"{note}, {where} the others", one)
            case.level = "L0"
            yield case
    for member, text in [
        ("dtype", '{"w":{"DType":"U8","shape":[2],"data_offsets":[0,2]}}'),
        ("shape", '{"w":{"dtype":"U8","Shape":[2],"data_offsets":[0,2]}}'),
        ("data_offsets", '{"w":{"dtype":"U8","shape":[2],"DATA_OFFSETS":[0,2]}}'),
    ]:
        note = f"`{member}` is written with capitals, and so is missing"
        name = f"c-6-no-{member.replace('_', '-')}-but-in-capitals"
        data = container(text, b"ab")
        yield Case("malformed", name, ["C-6"], data, REJECT, "L0", note, error_rules=["C-6"])
    note = "__METADATA__ is a tensor like any other"
    other = Tensor("__METADATA__", "U8", [2], b"ab")
    case = noncanonical.accept(
        "c-7-metadata-in-capitals", ["C-7"], plain_file([physical(other)]), note, other
    )
    case.level = "L0"
    yield case
    for member, value in [("Version", "2.0"), ("VERSION", 7), ("Tensors", {}), ("TENSORS", [])]:
        note = f"a member {member} of the endor object, which has no meaning"
        data = noncanonical.rendered(endor(**{member: value}))
        name = f"m-6-object-{member}".lower() + ("-capitals" if member.isupper() else "")
        yield noncanonical.accept(name, ["M-6"], data, note)
    for member, value in [
        ("Dtype", "F64"),
        ("SHAPE", [1]),
        ("NNZ", 0),
        ("Positions", "list"),
        ("VALUES", "split"),
        ("Digest", "x"),
    ]:
        note = f"a member {member} of an entry, which has no meaning"
        data = noncanonical.rendered(entry(**{member: value}))
        yield noncanonical.accept(f"m-6-entry-{member}".lower(), ["M-6"], data, note)
    for member, rule in [
        ("dtype", "M-4"),
        ("shape", "M-4"),
        ("positions", "M-4"),
        ("values", "M-4"),
        ("nnz", "M-5"),
    ]:
        note = f"`{member}` of an entry is written with a capital, and so is missing"
        change = replaced(f'"{member}":', f'"{member.capitalize()}":')
        yield changed(f"{rule.lower()}-no-{member}-but-in-capitals", [rule], note, change)
    for member, rule in [("version", "M-2"), ("tensors", "M-3")]:
        note = f"`{member}` of the endor object is written with a capital, and so is missing"
        change = replaced(f'"{member}":', f'"{member.capitalize()}":')
        yield changed(f"{rule.lower()}-no-{member}-but-in-capitals", [rule], note, change)
    tensors = [Tensor("W", "U8", [2], b"ab"), Tensor("w", "U8", [2], b"cd")]
    data = plain_file([physical(t) for t in tensors])
    note = "two tensors whose names are alike but for case"
    case = noncanonical.accept("j-2-names-by-case", ["J-2"], data, note, *tensors)
    case.level = "L0"
    yield case


def duplicates() -> Iterator[Case]:
    """Equal names far apart, among many others: not found by who compares neighbours or looks at a few."""
    member = '"{}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'
    for count in (20, 400):
        names = [f"t{i}" for i in range(count)]
        for kind, twice in [("first-and-last", "t0"), ("in-the-middle", f"t{count // 2}")]:
            text = "{" + ",".join(member.format(name) for name in [*names, twice]) + "}"
            note = f"{count} tensors and one of them again at the end: {kind.replace('-', ' ')}"
            name = f"j-2-{kind}-of-{count}"
            yield Case("malformed", name, ["J-2"], container(text), REJECT, "L0", note, error_rules=["J-2"])
    many = ",".join(f'"x{i}":{i}' for i in range(100))
    for name, old, new, note in [
        ("entry", '"nnz":', f'"nnz":1,{many},"nnz":', "a member of an entry twice, with 100 others between"),
        (
            "object",
            '"version":',
            f'"version":"1.0",{many},"version":',
            "`version` twice, with 100 members between",
        ),
        ("null", '"nnz":', '"nnz":null,"nnz":', "a member of an entry twice, null at first"),
        (
            "null-after",
            '"nnz":',
            '"x":1,"x":null,"nnz":',
            "a member without meaning twice, null the second time",
        ),
    ]:
        yield changed(f"j-2-endor-{name}-far-apart", ["J-2"], note, replaced(old, new))


def escaped_values() -> Iterator[Case]:
    """Values that mean the same however they are written."""
    for name, old, new in [
        ("dtype", '"BF16"', r'"\u0042F\u00316"'),
        ("positions", '"bitmap"', r'"bitma\u0070"'),
        ("values", '"raw"', r'"\u0072\u0061\u0077"'),
        ("version", '"1.0"', r'"\u0031\u002e\u0030"'),
        ("digest", '"xxh3_64:', r'"\u0078xh3\u005f64\u003A'),
    ]:
        note = f"the value of `{name}` in the endor object is written with escapes"
        data = noncanonical.rendered(replaced(old, new))
        yield noncanonical.accept(f"m-1-escaped-{name}", ["M-1", "J-1"], data, note)
    case = noncanonical.accept(
        "d-2-escaped-digest",
        ["D-2", "M-1"],
        noncanonical.rendered(replaced('"xxh3_64:', r'"\u0078xh3\u005f64\u003A')),
        "a digest that is written with escapes is checked",
    )
    case.category, case.level, case.digests = "checksum", "L2", True
    yield case
    one = Tensor("w", "U8", [2], b"ab")
    data = container(r'{"w":{"dtype":"\u0055\u0038","shape":[2],"data_offsets":[0,2]}}', b"ab")
    case = noncanonical.accept("c-6-escaped-dtype", ["C-6"], data, "a dtype written with escapes", one)
    case.level = "L0"
    yield case


def numbers() -> Iterator[Case]:
    one = Tensor("w", "U8", [2], b"ab")
    for name, written in [
        ("2-to-the-53-plus-1", str(MAX_INT + 2)),
        ("2-to-the-63", str(2**63)),
        ("2-to-the-64", str(2**64)),
        ("minus-2-to-the-63-minus-1", str(-(2**63) - 1)),
        ("1e308-and-more", "1.8e308"),
        ("1e999999999", "1e999999999"),
        ("1e-999999999", "1e-999999999"),
        ("exponent-of-30-digits", "1e" + "9" * 30),
        ("exponent-with-zeros", "1e+0001"),
        ("fraction-of-400-digits", "0." + "3" * 400),
        ("minus-zero-fraction", "-0.0"),
        ("zero-exponent", "0e0"),
    ]:
        text = f'{{"w":{{"dtype":"U8","shape":[2],"data_offsets":[0,2],"x":{written}}}}}'
        note = f"a number without meaning: {written if len(written) < 40 else name.replace('-', ' ')}"
        case = noncanonical.accept(f"j-5-{name}", ["J-5", "C-6"], container(text, b"ab"), note, one)
        case.level = "L0"
        yield case
        data = noncanonical.rendered(entry(x=Raw(written)))
        yield noncanonical.accept(f"j-5-endor-{name}", ["J-5", "M-6"], data, f"in an entry, {note}")
