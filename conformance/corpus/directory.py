"""Checkpoint directories (L4; rules K): an index, shards, and what must not be beside them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from corpus.build import (
    Pairs,
    Physical,
    Raw,
    Sketch,
    Tensor,
    encoded_as,
    plain_file,
    random_tensor,
    to_json,
)
from corpus.case import (
    ACCEPT,
    NONCANONICAL,
    REJECT,
    UNSUPPORTED,
    Case,
    Json,
    hidden,
    listing,
)

INDEX = "model.safetensors.index.endor.json"
SHARDS = ["model.endor-00001-of-00002.safetensors", "model.endor-00002-of-00002.safetensors"]
A = random_tensor("a", "BF16", [5, 31], seed=101)
B = random_tensor("b", "U8", [9, 9], seed=102)
BIAS = random_tensor("bias", "F32", [5], density=100, seed=103)
ALL = [A, BIAS, B]

Files = dict[str, bytes]


def cases() -> Iterator[Case]:
    yield from good()
    yield from index_text()
    yield from index_paths()
    yield from files_of_the_index()
    yield from map_and_shards()
    yield from parts_across_shards()
    yield from side_by_side()
    yield from config()
    yield from other_names()
    yield from single_files()


def sketches() -> list[Sketch]:
    return [Sketch().add(A).add(BIAS, encode=False), Sketch().add(B)]


def weight_map(shards: list[Sketch], names: list[str] | None = None) -> dict[str, Any]:
    names = names or SHARDS
    return {p.name: n for s, n in zip(shards, names, strict=True) for p in s.physical}


def index_json(mapped: Any, shards: list[Sketch], **more: Any) -> bytes:
    total = sum(len(p.data) for s in shards for p in s.physical)
    return (to_json({"metadata": {"total_size": total}, "weight_map": mapped, **more})).encode()


def checkpoint(shards: list[Sketch] | None = None, mapped: Any = None) -> Files:
    """Two shards and their index; `mapped` is the weight map if it is to be another."""
    shards = shards or sketches()
    mapped = weight_map(shards) if mapped is None else mapped
    files = {n: s.render() for n, s in zip(SHARDS, shards, strict=True)}
    return {INDEX: index_json(mapped, shards), **files}


def accept(
    name: str,
    rules: list[str],
    files: Files,
    notes: str,
    tensors: list[Tensor] | None = None,
    expect: str = ACCEPT,
) -> Case:
    listed = listing(ALL if tensors is None else tensors)
    return Case("directory", name, rules, files, expect, "L4", notes, tensors=listed)


def reject(name: str, rules: list[str], files: Files, notes: str) -> Case:
    return Case("directory", name, rules, files, REJECT, "L4", notes, error_rules=rules)


def good() -> Iterator[Case]:
    yield accept("k-3-two-shards", ["K-1", "K-2", "K-3", "K-4"], checkpoint(), "two shards")
    single = {"model.endor.safetensors": Sketch().add(A).add(BIAS, encode=False).add(B).render()}
    yield accept("k-5-single-file", ["K-5"], single, "one file and no index")
    variant = {"model.endor.fp16.safetensors": Sketch().add(A).render()}
    yield accept("k-5-single-file-variant", ["K-5"], variant, "the variant fp16, one file", [A])
    shard = sketches()[1]
    one = {
        INDEX: index_json(weight_map([shard], ["model.endor-00001-of-00001.safetensors"]), [shard]),
        "model.endor-00001-of-00001.safetensors": shard.render(),
    }
    yield accept("k-2-one-shard", ["K-2"], one, "an index of one shard", [B])
    names = [n.replace("endor-", "endor.fp16-") for n in SHARDS]
    variant = {n: s.render() for n, s in zip(names, sketches(), strict=True)}
    index = index_json(weight_map(sketches(), names), sketches())
    variant["model.safetensors.index.endor.fp16.json"] = index
    yield accept("k-2-variant", ["K-2"], variant, "the variant fp16, two shards")
    others = {
        "config.json": b'{"quantization_config":{"quant_method":"endor","version":"1.0"}}',
        "config.dense.json": b"{}",
        "model.safetensors.index.dense.json": kept(),
        "tokenizer.json": b"{}",
        "adapter_model.safetensors": plain_file([Physical("lora", "U8", [1], b"x")]),
        "text_encoder/model.safetensors": plain_file([Physical("enc", "U8", [1], b"x")]),
    }
    note = "files that are none of the checkpoint's weights are let alone, weights or not"
    yield accept("k-5-other-files", ["K-5", "K-2"], checkpoint() | others, note)
    spaced = checkpoint()
    spaced[INDEX] = b"\n" + spaced[INDEX].replace(b",", b" ,\r\n\t").replace(b'"a"', b'"\\u0061"')
    note = "white space and escapes in the index"
    yield accept("k-1-white-space", ["K-1"], spaced, note, expect=NONCANONICAL)
    mapped = weight_map(sketches())
    extended = checkpoint()
    extended[INDEX] = index_json(mapped, sketches(), x=[1, {"y": None}], y=Raw("1e400"))
    note = "members of the index that mean nothing"
    yield accept("k-1-unknown-members", ["K-1"], extended, note, expect=NONCANONICAL)
    deep = checkpoint()
    deep[INDEX] = index_json(mapped, sketches(), x=Raw("[" * 15 + "]" * 15))
    note = "depth 16 in the index"
    yield accept("k-1-depth-16", ["K-1", "J-4"], deep, note, expect=NONCANONICAL)
    bare = checkpoint()
    bare[INDEX] = to_json({"weight_map": mapped}).encode()
    note = "an index without `metadata`, which readers ignore"
    yield accept("k-1-no-metadata", ["K-1"], bare, note, expect=NONCANONICAL)
    named = {"model.endorsed.safetensors.txt": b"x", "config.json": b'{"a": [1e400, -0]}\n'}
    named |= {"models.safetensors": b"x", "model_fp16.safetensors": b"x", "my-model.safetensors": b"x"}
    note = "names that only begin like those of weights, and a config of any content"
    yield accept("k-5-names-alike", ["K-5", "K-8"], checkpoint() | named, note)


def kept(**changed: Any) -> bytes:
    """A dense index of two shards, as it was before compressing."""
    mapped: dict[str, Any] = {"a": SHARDS[0], "bias": SHARDS[0], "b": SHARDS[1]}
    dense = {name: shard.replace(".endor", "") for name, shard in mapped.items()}
    return to_json({"weight_map": {**dense, **changed}}).encode()


def index_text() -> Iterator[Case]:
    value: Any

    def with_index(name: str, rules: list[str], text: bytes, notes: str) -> Case:
        return reject(name, rules, checkpoint() | {INDEX: text}, notes)

    whole = checkpoint()[INDEX]
    mapped = weight_map(sketches())

    def extra(value: str) -> bytes:
        return index_json(mapped, sketches(), x=Raw(value))

    for name, rule, text, note in [
        ("empty", "J-1", b"", "an index of no bytes"),
        ("cut", "J-1", whole[:-1], "the index does not end"),
        ("array", "J-1", b"[]", "the index is an array"),
        ("trailing", "J-1", whole + b"x", "a letter after the index"),
        ("byte-order-mark", "J-1", b"\xef\xbb\xbf" + whole, "a byte order mark"),
        ("not-utf-8", "J-1", whole[:-1] + b',"\xff":1}', "the index is not UTF-8"),
        ("nan", "J-1", extra("NaN"), "the literal NaN in the index"),
        ("comment", "J-1", b"// index\n" + whole, "a comment before the index"),
        ("surrogate", "J-3", extra(r'"\ud800"'), "a lone surrogate in the index"),
        ("depth-17", "J-4", extra("[" * 16 + "]" * 16), "depth 17 in the index"),
        ("duplicate-ignored", "J-2", extra('{"a":1,"a":1}'), "a duplicate in the index"),
    ]:
        yield with_index(f"k-1-{name}", ["K-1", rule], text, note)
    twice = Pairs([*mapped.items(), ("a", mapped["a"])])
    text = to_json({"weight_map": twice}).encode()
    yield with_index("k-1-duplicate-tensor", ["K-1", "J-2"], text, "a tensor twice in the map")
    text = whole[:-1] + b',"weight_map":{}}'
    yield with_index("k-1-duplicate-map", ["K-1", "J-2"], text, "`weight_map` twice")
    for name, value in [("array", []), ("null", None), ("string", SHARDS[0])]:
        text = index_json(value, sketches())
        yield with_index(f"k-1-map-{name}", ["K-1"], text, "weight_map is not an object")
    text = to_json({"metadata": {"total_size": 0}}).encode()
    yield with_index("k-1-no-map", ["K-1"], text, "no weight_map")
    for name, value in [("null", None), ("number", 1), ("array", [SHARDS[0]])]:
        text = index_json({**mapped, "a": value}, sketches())
        yield with_index(f"k-1-file-{name}", ["K-1"], text, "a value of the map is not a string")


def index_paths() -> Iterator[Case]:
    for name, path in [
        ("empty", ""),
        ("dot", "."),
        ("dot-dot", ".."),
        ("absolute", "/etc/hostname"),
        ("backslash", "sub\\" + SHARDS[1]),
        ("drive", "C:\\" + SHARDS[1]),
        ("colon", "C:" + SHARDS[1]),
        ("control-character", SHARDS[1] + "\x1b"),
        ("nul", SHARDS[1] + "\0"),
        ("trailing-slash", SHARDS[1] + "/"),
        ("dot-slash", "./" + SHARDS[1]),
    ]:
        shards = sketches()
        mapped = {**weight_map(shards), **dict.fromkeys((p.name for p in shards[1].physical), path)}
        note = f"a file of the index is {path!r}"
        # A name that no file has, or that is not that of a shard, also breaks K-2 and K-3.
        yield reject(f"k-1-path-{name}", ["K-1", "K-2", "K-3"], checkpoint(shards, mapped), note)
    shards = sketches()
    for name, root, path, place in [
        ("leaves-the-directory", "model", "../" + SHARDS[1], ""),
        ("subdirectory", "", "sub/" + SHARDS[1], "sub/"),
        ("there-and-back", "model", "../model/" + SHARDS[1], "model/"),
    ]:
        mapped = {**weight_map(shards), **dict.fromkeys((p.name for p in shards[1].physical), path)}
        inside = checkpoint(shards, mapped)
        moved = inside.pop(SHARDS[1])
        files = {f"{root}/{n}" if root else n: data for n, data in inside.items()}
        files[place + SHARDS[1]] = moved
        note = f"the file {path}, which exists and is right, is named by its path"
        case = reject(f"k-1-path-{name}", ["K-1"], files, note)
        case.root = root
        yield case


def files_of_the_index() -> Iterator[Case]:
    files = checkpoint()
    files.pop(SHARDS[1])
    yield reject("k-2-missing-shard", ["K-2"], files, "a shard of the index does not exist")
    files = checkpoint()
    files.pop(INDEX)
    yield reject("k-2-no-index", ["K-2"], files, "shards without an index")
    third = {"model.endor-00003-of-00003.safetensors": Sketch().add(A).render()}
    note = "a shard that the index does not name"
    yield reject("k-2-unnamed-shard", ["K-2"], checkpoint() | third, note)
    shards = sketches()
    mapped = {**weight_map(shards), **dict.fromkeys((p.name for p in shards[1].physical), "b.bin")}
    misnamed = checkpoint(shards, mapped)
    misnamed["b.bin"] = misnamed.pop(SHARDS[1])
    note = "a shard whose name is not that of Endor weights"
    yield reject("k-2-misnamed-shard", ["K-2"], misnamed, note)
    empty = {"model.endor-00003-of-00003.safetensors": Sketch().render()}
    note = "a shard without tensors that the index does not name"
    yield reject("k-2-unnamed-empty-shard", ["K-2"], checkpoint() | empty, note)


def map_and_shards() -> Iterator[Case]:
    mapped = weight_map(sketches())
    for name, changed, note in [
        ("tensor-not-listed", {k: v for k, v in mapped.items() if k != "bias"}, "one is missing"),
        (
            "part-not-listed",
            {k: v for k, v in mapped.items() if k != "a.endor.index"},
            "a part is missing",
        ),
        ("tensor-not-there", {**mapped, "ghost": SHARDS[0]}, "one too many"),
        ("wrong-shard", {**mapped, "bias": SHARDS[1]}, "one is in another shard"),
        ("part-in-wrong-shard", {**mapped, "a.endor.index": SHARDS[1]}, "a part is in another"),
        ("shards-swapped", {k: SHARDS[v == SHARDS[0]] for k, v in mapped.items()}, "all are"),
        (
            "logical-names",
            {k: v for k, v in mapped.items() if ".endor." not in k},
            "it lists logical tensors, not physical ones",
        ),
    ]:
        what = f"the map and the shards disagree: {note}"
        yield reject(f"k-3-{name}", ["K-3"], checkpoint(mapped=changed), what)
    shards = sketches()
    shards[1].add(BIAS, encode=False)
    note = "a tensor in both shards"
    yield reject("k-3-tensor-in-both", ["K-3"], checkpoint(shards, mapped), note)
    shards = sketches()
    shards[1].add(Tensor("a", "BF16", [2], b"abcd"), encode=False)
    note = "an encoded tensor in one shard, and a plain one of its name in the other"
    yield reject("k-3-encoded-and-plain", ["K-3"], checkpoint(shards, mapped), note)


def parts_across_shards() -> Iterator[Case]:
    for suffix in (".endor.bitmap", ".endor.index"):
        shards = sketches()
        shards[1].physical.append(shards[0].drop("a" + suffix))
        note = f"a{suffix} is in the other shard"
        name = f"k-4-part-in-the-other-shard{suffix.replace('.', '-')}"
        yield reject(name, ["K-4", "T-2"], checkpoint(shards), note)
    shards = sketches()
    shards[1].physical.append(Physical("a.endor.scales", "U8", [3], b"abc"))
    note = "the other shard has a tensor that is named like a part of a; a itself is whole"
    yield reject("k-4-extra-part-in-the-other-shard", ["K-4"], checkpoint(shards), note)
    shards = sketches()
    parts, _ = encoded_as(Tensor("a", A.dtype, A.shape, A.data))
    shards[1].physical.append(parts[1])
    mapped = {**weight_map(shards), "a.endor.bitmap": SHARDS[0]}
    note = "both shards have a.endor.bitmap"
    yield reject("k-4-part-in-both", ["K-4", "K-3"], checkpoint(shards, mapped), note)


def side_by_side() -> Iterator[Case]:
    dense = plain_file([Physical("a", "U8", [1], b"x")])
    for name, file, data in [
        ("model", "model.safetensors", dense),
        ("shard", "model-00001-of-00002.safetensors", dense),
        ("variant", "model.fp16.safetensors", dense),
        ("name-alike", "model.endorsed.safetensors", dense),
        ("index", "model.safetensors.index.json", kept()),
        ("index-name-alike", "model.safetensors.index.endorsed.json", kept()),
        ("index-of-a-variant", "model.safetensors.index.fp16.json", kept()),
        ("pytorch", "pytorch_model.bin", b"PK"),
        ("pytorch-shard", "pytorch_model-00001-of-00002.bin", b"PK"),
    ]:
        note = f"dense weights, {file}, beside Endor weights"
        yield reject(f"k-5-dense-{name}", ["K-5"], checkpoint() | {file: data}, note)
    single = {"model.endor.safetensors": Sketch().add(A).render(), "model.safetensors": dense}
    note = "model.safetensors beside model.endor.safetensors"
    yield reject("k-5-dense-single-file", ["K-5"], single, note)


def config() -> Iterator[Case]:
    for name, text, note in [
        ("cut", b'{"model_type":', "config.json does not end"),
        ("array", b"[{}]", "config.json is an array"),
        ("empty", b"", "config.json has no bytes"),
    ]:
        yield reject(f"k-8-{name}", ["K-8"], checkpoint() | {"config.json": text}, note)
    dense = {"config.json": b"{}", "config.dense.json": b"[]"}
    note = "config.dense.json is an array"
    yield reject("k-8-dense", ["K-8"], checkpoint() | dense, note)
    kept_index = "model.safetensors.index.dense.json"
    good = checkpoint() | {kept_index: kept()}
    yield accept("k-10-kept-index", ["K-10"], good, "the index of the dense checkpoint is kept")
    for name, rules, changed, note in [
        ("leaves-the-directory", ["K-10", "K-1"], {"a": "../model-00001-of-00002.safetensors"}, "a path"),
        ("other-shard", ["K-10"], {"a": "model-00003-of-00003.safetensors"}, "a shard that is not there"),
        ("endor-shard", ["K-10"], {"a": SHARDS[0]}, "an Endor shard"),
        ("null", ["K-10", "K-1"], {"a": None}, "null for a file"),
    ]:
        files = checkpoint() | {kept_index: kept(**changed)}
        yield reject(f"k-10-{name}", rules, files, f"the kept dense index has {note}")


def other_names() -> Iterator[Case]:
    """Dense weights that are not named after ``model`` (K-11)."""
    kept_index = "model.safetensors.index.dense.json"

    def called(name: str, dense: str | None) -> Files:
        files = {n.replace(SHARDS[1], name): data for n, data in checkpoint().items()}
        mapped = {one: shard.replace(SHARDS[1], name) for one, shard in weight_map(sketches()).items()}
        files[INDEX] = index_json(mapped, sketches())
        return files | ({kept_index: kept(b=dense)} if dense is not None else {})

    for title, name, dense, note in [
        ("other-name", "mtp", "mtp.safetensors", "weights that are called mtp.safetensors"),
        ("folder", "weights%2Fb", "weights/b.safetensors", "weights in a folder"),
        ("percent", "a%252Fb", "a%2Fb.safetensors", "a percent sign in a name"),
        (
            "like-a-shard",
            "pytorch_model-00002-of-00002",
            "pytorch_model-00002-of-00002.safetensors",
            "a shard",
        ),
        (
            "like-an-endor-name",
            "model-b.file",
            "model-b.file.safetensors",
            "a name of the form that K-11 gives",
        ),
        ("model-in-a-folder", "x%2Fmodel", "x/model.safetensors", "model.safetensors in a folder"),
        ("unicode", "\u00e9 \u4e2d", "\u00e9 \u4e2d.safetensors", "letters that are not ASCII, and a space"),
    ]:
        files = called(f"model.endor-{name}.file.safetensors", dense)
        yield accept(f"k-11-{title}", ["K-11", "K-10"], files, note)
    files = called("model.endor-mtp.file.safetensors", None)
    yield accept("k-11-no-kept-index", ["K-11"], files, "weights of another name, and no index is kept")
    plain = {"model.endor.mtp.file.safetensors": Sketch().add(A).render()}
    yield accept("k-11-variant", ["K-11"], plain, "a variant whose name ends with .file", [A])
    for title, name, note in [
        ("lower-case", "a%2fb", "an escape in lower case"),
        ("unneeded", "a%62", "an escape of a letter"),
        ("percent-alone", "a%", "a percent sign without digits"),
        ("one-digit", "a%2", "a percent sign with one digit"),
        ("parent", "..%2Fb", "a path that leaves the directory"),
        ("there-and-back", "a%2F..%2Fb", "a path that goes back"),
        ("here", "a%2F.%2Fb", "a path with a dot"),
        ("absolute", "%2Fb", "an absolute path"),
        ("folder-alone", "b%2F", "a path that ends with a slash"),
        ("two-slashes", "a%2F%2Fb", "two slashes"),
        ("backslash", "a%5Cb", "a backslash"),
        ("colon", "C%3Ab", "a colon"),
        ("control-character", "a%1Bb", "a control character"),
        ("needs-none", "model", "model.safetensors, whose Endor name is model.endor.safetensors"),
        ("needs-none-shard", "model-00002-of-00002", "a shard that is named as such"),
        ("needs-none-variant", "model.fp16", "a variant"),
    ]:
        files = called(f"model.endor-{name}.file.safetensors", None)
        yield reject(f"k-11-{title}", ["K-11"], files, f"a name that stands for no dense weights: {note}")
    stray = "model-00003-of-00003.safetensors"
    there = checkpoint() | {kept_index: kept(ghost=stray), f"{stray}.dense": b"not read"}
    yield accept("k-10-kept-file", ["K-10"], there, "the kept index names a file that is kept as it is")
    files = called("model.endor-mtp.file.safetensors", "weights/../mtp.safetensors")
    note = "the kept dense index has a path that goes back"
    yield reject("k-10-there-and-back", ["K-10", "K-1"], files, note)
    files = called("model.endor-mtp.file.safetensors", "model-mtp.file.safetensors")
    yield reject(
        "k-10-not-unescaped", ["K-10"], files, "the kept dense index has the Endor name without .endor"
    )


def single_files() -> Iterator[Case]:
    """What holds for a file holds for each file of a directory."""
    shards = sketches()
    shards[1].flip("b.endor.bitmap", 0).seal("b")
    note = "an invalid tensor in the second shard"
    yield reject("b-6-in-a-shard", ["B-6"], checkpoint(shards), note)
    shards = sketches()
    shards[1].entry("b")["digest"] = "xxh3_64:0123456789abcdef"
    note = "a wrong digest in the second shard"
    case = reject("d-2-in-a-shard", ["D-2"], checkpoint(shards), note)
    case.digests = True
    yield case
    loose = {"model.endor-1-of-1.safetensors": Sketch().add(A).render()}
    note = "a file that is not named as a shard, having too few digits, needs no index"
    yield accept("k-2-few-digits", ["K-2"], loose, note, [A])
    files = checkpoint()
    files[SHARDS[1]] = files[SHARDS[1]][:-1]
    rules = ["C-9", "C-13"]
    yield reject("c-9-shard-cut", rules, files, "the second shard is cut short by a byte")
    files = checkpoint()
    files[SHARDS[1]] = b""
    yield reject("c-1-shard-empty", ["C-1"], files, "the second shard has no bytes")
    files = checkpoint()
    files[SHARDS[1]] = plain_file(sketches()[1].physical)
    note = "the second shard has lost its metadata"
    yield reject("t-6-shard-stripped", ["T-6"], files, note)
    shards = sketches()
    shards[1].entry("b")["positions"] = "list"
    tensors: list[Json] = [*listing([A, BIAS]), *hidden("b")]
    note = "a tensor of the second shard has an unknown encoding"
    rules, files = ["M-7"], checkpoint(shards)
    yield Case("directory", "m-7-in-a-shard", rules, files, UNSUPPORTED, "L4", note, tensors=tensors)
