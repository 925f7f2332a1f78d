"""Containers whose header is wrong as text: lengths, UTF-8, JSON (rules C-1 to C-5, J)."""

from __future__ import annotations

from collections.abc import Iterator
from struct import pack

from corpus.build import Physical as P
from corpus.build import container, plain_file
from corpus.case import REJECT, Case, Recipe

DATA = b"x"
MEMBER = '"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}'
WITH = '{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":%s}}'


def cases() -> Iterator[Case]:
    yield from lengths()
    yield from utf8()
    yield from around()
    yield from syntax()
    yield from duplicates()
    yield from surrogates()
    yield from depth()


def reject(name: str, rules: list[str], data: bytes | Recipe, notes: str) -> Case:
    """The first rule is the one that the case is about; a decoder may name any of them."""
    return Case("malformed", name, rules, data, REJECT, "L0", notes, error_rules=rules)


def text(name: str, rules: list[str], header: str, notes: str) -> Case:
    return reject(name, rules, container(header, DATA), notes)


def lengths() -> Iterator[Case]:
    whole = plain_file([P("a", "U8", [5], b"abcde"), P("b", "U16", [2], b"ABCD")])
    header_end = len(whole) - 9
    for n in (0, 1, 7):
        yield reject(f"c-1-{n}-bytes", ["C-1"], whole[:n], f"the file has {n} bytes")
    for n, where in [
        (8, "right after N"),
        (9, "after the first byte of the header"),
        (header_end // 2, "amid the header"),
        (header_end - 1, "one byte before the end of the header"),
    ]:
        name = "c-3-cut-" + where.split(" the header")[0].replace(" ", "-").lower()
        yield reject(name, ["C-3"], whole[:n], f"the file ends {where}")
    for n, where in [
        (header_end, "after the header"),
        (header_end + 1, "amid the first tensor"),
        (header_end + 5, "between the tensors"),
        (len(whole) - 1, "one byte before its end"),
    ]:
        name = "c-9-cut-" + where.replace(" ", "-")
        yield reject(name, ["C-9", "C-13"], whole[:n], f"the file ends {where}")
    yield reject("c-13-one-byte-more", ["C-13"], whole + b"\0", "one byte after the last tensor")

    small = container("{}")
    for name, n in [
        ("c-3-n-one-too-high", 3),
        ("c-3-n-at-the-limit", 100_000_000),
        ("c-2-n-past-the-limit", 100_000_001),
        ("c-2-n-2-to-the-32", 2**32 + 2),
        ("c-2-n-2-to-the-63", 2**63 + 2),
        ("c-2-n-wraps-around", 2**64 - 8),
        ("c-2-n-all-ones", 2**64 - 1),
    ]:
        rules = ["C-3"] if name.startswith("c-3") else ["C-2", "C-3"]
        yield reject(name, rules, pack("<Q", n) + small[8:], f"N = {n}, although the header has 2")
    swapped = pack(">Q", 2) + small[8:]
    yield reject("c-2-n-big-endian", ["C-2", "C-3"], swapped, "N is written big-endian")
    yield reject("c-5-n-zero", ["C-5", "J-1"], container("", n=0), "N = 0: there is no header")
    short = pack("<Q", header_end - 8 - 64) + whole[8:]
    note = "N is 64 too small, so the header ends amid a member"
    yield reject("j-1-n-too-low", ["J-1"], short, note)


def utf8() -> Iterator[Case]:
    for name, bad, note in [
        ("continuation-alone", b"\x80", "a continuation byte on its own"),
        ("sequence-cut", b"\xe2\x82", "a sequence of three bytes of which one is missing"),
        ("overlong-nul", b"\xc0\x80", "U+0000 in two bytes"),
        ("overlong-slash", b"\xe0\x80\xaf", "U+002F in three bytes"),
        ("overlong-4", b"\xf0\x82\x82\xac", "U+20AC in four bytes"),
        ("surrogate", b"\xed\xa0\x80", "U+D800, encoded"),
        ("surrogate-pair", b"\xed\xa0\xbd\xed\xb8\x80", "U+1F600 as two encoded surrogates"),
        ("past-10ffff", b"\xf4\x90\x80\x80", "U+110000"),
        ("byte-ff", b"\xff", "0xFF"),
        ("latin-1", b"\xe9", "e acute in Latin-1"),
    ]:
        header = (WITH % '"?"').encode().replace(b"?", bad)
        yield reject(f"c-4-{name}", ["C-4"], container(header, DATA), f"not UTF-8: {note}")
    for at in (4096, 65536):
        # The character, or what is wrong, stands right where a decoder that works in pieces cuts.
        header = (WITH % '"?"').encode()
        before = header.index(b"?")
        long = header.replace(b"?", b"." * (at - before - 1) + b"\xff")
        note = f"not UTF-8: 0xFF at byte {at - 1} of the header"
        yield reject(f"c-4-byte-{at - 1}", ["C-4"], container(long, DATA), note)
    bom = b"\xef\xbb\xbf" + (WITH % "1").encode()
    note = "a byte order mark before the header"
    yield reject("c-4-byte-order-mark", ["C-4", "C-5", "J-1"], container(bom, DATA), note)
    wide = (WITH % "1").encode("utf-16-le")
    note = "the header is UTF-16, with bytes that are UTF-8 too"
    yield reject("j-1-utf-16", ["J-1"], container(wide, DATA), note)
    key = b'{"w\xff":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    yield reject("c-4-name", ["C-4"], container(key, DATA), "not UTF-8 in the name of a tensor")


def around() -> Iterator[Case]:
    good = "{" + MEMBER + "}"
    for name, before in [("space", " "), ("newline", "\n"), ("tab", "\t")]:
        note = f"a {name} before the header's object"
        yield text(f"c-5-leading-{name}", ["C-5"], before + good, note)
    for name, after in [("newline", "\n"), ("tab", "\t"), ("carriage-return", "\r")]:
        note = f"a {name} after the header's object, where only spaces may be"
        yield text(f"c-5-trailing-{name}", ["C-5"], good + " " + after, note)
    for name, after in [("nul", "\0" * 8), ("object", "{}"), ("letter", " x"), ("brace", "}")]:
        note = f"after the header's object: {after!r}"
        yield text(f"c-5-trailing-{name}", ["C-5", "J-1"], good + after, note)
    for name, whole in [("array", "[]"), ("string", '"w"'), ("null", "null"), ("spaces", "    ")]:
        data = container(whole)
        yield reject(f"c-5-{name}", ["C-5", "J-1"], data, f"the header is not an object: {name}")


def syntax() -> Iterator[Case]:
    for name, value, note in [
        ("nan", "NaN", "the literal NaN"),
        ("infinity", "Infinity", "the literal Infinity"),
        ("minus-infinity", "-Infinity", "the literal -Infinity"),
        ("leading-zero", "01", "a number with a leading zero"),
        ("plus", "+1", "a number with a plus"),
        ("point-first", ".5", "a number that begins with its point"),
        ("point-last", "1.", "a number that ends with its point"),
        ("exponent-empty", "1e", "an exponent without digits"),
        ("minus-alone", "-", "a minus on its own"),
        ("hexadecimal", "0x10", "a hexadecimal number"),
        ("underscore", "1_0", "a number with an underscore"),
        ("digits-not-ascii", "\u0661", "a digit that is not ASCII"),
        ("true-capital", "True", "a literal in capitals"),
        ("word", "nul", "a literal cut short"),
        ("word-true", "trux", "a literal with another last letter"),
        ("word-false", "falsy", "a literal with other last letters"),
        ("word-null", "nulL", "a literal with a capital"),
        ("digit-before-0", "1/2", "the character before 0 in a number"),
        ("digit-after-9", "1:2", "the character after 9 in a number"),
        ("escape-before-0", r'"\u00/0"', "the character before 0 in an escape"),
        ("escape-after-9", r'"\u00:0"', "the character after 9 in an escape"),
        ("escape-after-f", r'"\u00g0"', "the character after f in an escape"),
        ("unit-separator-in-string", '"a\x1fb"', "an unescaped U+001F in a string"),
        ("quote-other", '{xa":1}', "another character for the first quote of a name"),
        ("single-quotes", "'a'", "a string in single quotes"),
        ("tab-in-string", '"a\tb"', "an unescaped tab in a string"),
        ("newline-in-string", '"a\nb"', "an unescaped line feed in a string"),
        ("nul-in-string", '"a\0b"', "an unescaped NUL in a string"),
        ("escape-unknown", r'"\x41"', "an escape that JSON does not have"),
        ("escape-not-hex", r'"\u12G4"', "an escape whose digits are not hexadecimal"),
        ("escape-short", r'"\u123"', "an escape with three digits"),
        ("escape-plus", r'"\u+123"', "an escape with a sign among its digits"),
        ("comma-last-array", "[1,]", "a comma after the last item"),
        ("comma-last-object", '{"a":1,}', "a comma after the last member"),
        ("comma-missing", "[1 2]", "no comma between items"),
        ("comma-twice", "[1,,2]", "two commas between items"),
        ("colon-missing", '{"a" 1}', "no colon in a member"),
        ("colon-other", '{"a"=1}', "an equals sign for a colon"),
        ("comma-other", "[1;2]", "a semicolon for a comma"),
        ("comma-other-object", '{"a":1;"b":2}', "a semicolon for a comma between members"),
        ("name-not-string", "{1:2}", "a member whose name is a number"),
        ("name-bare", "{a:2}", "a member whose name has no quotes"),
        ("comment", "1 /* one */", "a comment"),
        ("line-comment", "1 // one\n", "a comment up to the end of the line"),
        ("form-feed", "\f1", "a form feed, which is no white space in JSON"),
        ("no-break-space", "\u00a01", "U+00A0, which is no white space in JSON"),
        ("mismatch", "[1}", "an array that ends like an object"),
        ("empty", "", "a member without a value"),
    ]:
        yield text(f"j-1-{name}", ["J-1"], WITH % value, note)
    good = "{" + MEMBER + "}"
    for name, header, note in [
        ("no-end", good[:-1], "the object does not end"),
        ("string-no-end", '{"w', "a string does not end"),
        ("comma-last", "{" + MEMBER + ",}", "a comma after the last tensor"),
        ("comma-first", "{," + MEMBER + "}", "a comma before the first tensor"),
    ]:
        yield text(f"j-1-{name}", ["J-1"], header, note)


def duplicates() -> Iterator[Case]:
    other = '"w":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}'
    both = container("{" + MEMBER + "," + other + "}", b"xy")
    yield reject("j-2-two-tensors", ["J-2"], both, "two tensors of one name")
    same = "{" + MEMBER + "," + MEMBER + "}"
    yield text("j-2-tensor-twice", ["J-2"], same, "a tensor described twice in the same way")
    escaped = "{" + MEMBER + "," + MEMBER.replace("w", r"\u0077") + "}"
    note = "two names that are equal after their escapes are resolved"
    yield text("j-2-by-escape", ["J-2"], escaped, note)
    dtype = "{" + MEMBER.replace('"dtype":"U8"', '"dtype":"I8","dtype":"U8"') + "}"
    yield text("j-2-dtype", ["J-2"], dtype, "`dtype` twice in a tensor")
    shape = "{" + MEMBER.replace('"shape":[1]', '"shape":[1],"shape":[1,1]') + "}"
    yield text("j-2-shape", ["J-2"], shape, "`shape` twice in a tensor")
    offsets = "{" + MEMBER.replace("}", ',"data_offsets":[0,1]}') + "}"
    yield text("j-2-data-offsets", ["J-2"], offsets, "`data_offsets` twice in a tensor")
    ignored = WITH % '[{"a":1,"b":2,"a":1}]'
    note = "a duplicate inside a member that has no meaning"
    yield text("j-2-ignored-member", ["J-2"], ignored, note)
    ignored = WITH % '1,"x":1'
    yield text("j-2-ignored-twice", ["J-2"], ignored, "a member without meaning twice")
    metadata = '{"__metadata__":{"a":"1","a":"2"},' + MEMBER + "}"
    yield text("j-2-metadata-key", ["J-2"], metadata, "a key of the metadata twice")
    metadata = '{"__metadata__":{},' + MEMBER + ',"__metadata__":{}}'
    yield text("j-2-metadata-twice", ["J-2"], metadata, "`__metadata__` twice")


def surrogates() -> Iterator[Case]:
    for name, value, note in [
        ("high", r"\ud83d", "a high surrogate on its own"),
        ("low", r"\ude00", "a low surrogate on its own"),
        ("reversed", r"\ude00\ud83d", "a pair in the wrong order"),
        ("high-then-letter", r"\uD83DA", "a high surrogate and a letter"),
        ("high-then-escape", r"\ud83d\u0041", "a high surrogate and another escape"),
        ("high-then-newline", r"\ud83d\n\ude00", "an escape between the two of a pair"),
        ("two-high", r"\ud83d\ud83d\ude00", "a high surrogate before a pair"),
        ("two-low", r"\ud83d\ude00\ude00", "a low surrogate after a pair"),
        ("lowest-low", r"\udc00", "the lowest low surrogate"),
        ("highest-high", r"\udbff", "the highest high surrogate"),
        ("high-then-highest-high", r"\ud800\udbff", "a high surrogate and the highest high one"),
        ("high-then-e000", r"\ud800\ue000", "a high surrogate and what follows the low ones"),
    ]:
        yield text(f"j-3-{name}", ["J-3"], WITH % f'"{value}"', f"in a string: {note}")
    name = "{" + MEMBER.replace("w", r"\udfff") + "}"
    yield text("j-3-tensor-name", ["J-3"], name, "a lone surrogate in the name of a tensor")
    member = WITH % r'{"\udbff":1}'
    note = "a lone surrogate in the name of a member that has no meaning"
    yield text("j-3-ignored-name", ["J-3"], member, note)
    metadata = r'{"__metadata__":{"a":"\ud800"},' + MEMBER + "}"
    yield text("j-3-metadata", ["J-3"], metadata, "a lone surrogate in the metadata")


def depth() -> Iterator[Case]:
    # The header and the description of w are depths 1 and 2.
    deep = WITH % ("[" * 15 + "]" * 15)
    yield text("j-4-depth-17", ["J-4"], deep, "arrays nested to depth 17, one too deep")
    deep = WITH % ('{"a":' * 15 + "1" + "}" * 15)
    yield text("j-4-depth-17-objects", ["J-4"], deep, "objects nested to depth 17")
    deep = WITH % ('[{"a":' * 7 + "[]" + "}]" * 7)
    yield text("j-4-depth-17-mixed", ["J-4"], deep, "arrays and objects nested to depth 17")
    deep = WITH % ("[[]," * 7 + "[" * 8 + "]" * 15)
    yield text("j-4-depth-17-after-closed", ["J-4"], deep, "depth 17 after arrays that ended")
