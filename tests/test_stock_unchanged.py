"""Importing the plug-ins changes nothing about checkpoints that are not Endor: results, files and errors.

The same program runs twice, in processes of their own, with stock transformers and accelerate and with
``pyendor.transformers`` and ``pyendor.accelerate`` imported, and says what each step gave.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")

PROGRAM = r'''
import hashlib, json, re, shutil, struct, sys, warnings
from pathlib import Path

root, plugins = Path(sys.argv[1]), sys.argv[2] == "with"
if plugins:
    import pyendor.accelerate, pyendor.transformers
import accelerate, safetensors, safetensors.torch, torch, transformers

warnings.simplefilter("ignore")
transformers.logging.set_verbosity_error()
said = {}


def digest(tensor):
    data = tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()
    return f"{tensor.dtype} {list(tensor.shape)} {hashlib.sha256(data).hexdigest()}"


def state(model):
    tensors = model.state_dict().items()
    return {name: digest(tensor) for name, tensor in tensors if tensor.device.type != "meta"}


def files(path):
    return {
        str(one.relative_to(path)): hashlib.sha256(one.read_bytes()).hexdigest()
        for one in sorted(path.rglob("*"))
        if one.is_file()
    }


def step(name, function):
    """What a step gives, or the error that it ends in."""
    try:
        said[name] = function()
    except Exception as error:
        text = re.sub(r"0x[0-9a-f]+", "0x", str(error)).replace(str(root), "ROOT")
        said[name] = [type(error).__module__ + "." + type(error).__qualname__, text]


sizes = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, vocab_size=64)
torch.manual_seed(3)
model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, tie_word_embeddings=False)).eval()
ids = torch.arange(7)[None]
single, sharded, half = root / "single", root / "sharded", root / "half"
step("save", lambda: model.save_pretrained(single) or files(single))
step("save in shards", lambda: model.save_pretrained(sharded, max_shard_size="20KB") or files(sharded))
step("save in half", lambda: model.to(torch.bfloat16).save_pretrained(half, variant="fp16") or files(half))
Llama, Auto = transformers.LlamaForCausalLM, transformers.AutoModelForCausalLM


def loaded(path, kind=Llama, **options):
    model = kind.from_pretrained(path, **options)
    with torch.no_grad():
        return [state(model), digest(model(ids).logits), str(model.dtype)]


for path in (single, sharded):
    for kind in (Llama, Auto, transformers.LlamaModel, transformers.AutoModel):
        step(f"load {path.name} {kind.__name__}", lambda: state(kind.from_pretrained(path)))
    for name, options in {
        "dtype": {"dtype": torch.bfloat16},
        "auto": {"dtype": "auto"},
        "device_map": {"device_map": "cpu"},
        "no low memory": {"low_cpu_mem_usage": False},
        "safetensors": {"use_safetensors": True},
        "disk": {"device_map": {"model": "cpu", "lm_head": "disk"}, "offload_folder": str(root / "off")},
        "unknown option": {"nonsense": 1},
        "info": {"output_loading_info": False},
    }.items():
        step(f"load {path.name} {name}", lambda: loaded(path, **options))
step("load variant", lambda: loaded(half, variant="fp16"))
step("load without the variant", lambda: loaded(half))
step("load another class", lambda: sorted(transformers.GPT2Model.from_pretrained(single).state_dict()))
step("missing directory", lambda: loaded(root / "nowhere"))


def spoiled(name, change):
    """A copy of a checkpoint that a function has changed."""
    path = root / name.replace(" ", "-")
    shutil.copytree(sharded if "shard" in name else single, path)
    change(path)
    step(name, lambda: loaded(path))


def header(path, change):
    file = path / "model.safetensors"
    data = file.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    text = change(data[8 : 8 + size])
    file.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])


def without_metadata(text):
    header = json.loads(text)
    header.pop("__metadata__")
    return json.dumps(header).encode()


whole = (single / "model.safetensors").read_bytes()
for name, data in {"cut file": whole[:900], "empty file": b"", "text": b"version https://git-lfs"}.items():
    spoiled(name, lambda path: (path / "model.safetensors").write_bytes(data))
spoiled("header not JSON", lambda path: header(path, lambda text: b"[" + text[1:]))
spoiled("no metadata", lambda path: header(path, without_metadata))
spoiled("missing shard", lambda path: sorted(path.glob("*.safetensors"))[0].unlink())
spoiled("missing index of shards", lambda path: (path / "model.safetensors.index.json").unlink())
spoiled("index not JSON of shards", lambda path: (path / "model.safetensors.index.json").write_text("{"))
spoiled("no weights", lambda path: (path / "model.safetensors").unlink())
spoiled("config not JSON", lambda path: (path / "config.json").write_text("{"))


def config(path, **members):
    found = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**found, **members}))


spoiled("other sizes", lambda path: config(path, intermediate_size=64))
spoiled("fewer layers", lambda path: config(path, num_hidden_layers=1))
spoiled("more layers", lambda path: config(path, num_hidden_layers=3))
spoiled("unknown quantizer", lambda path: config(path, quantization_config={"quant_method": "nonsense"}))
spoiled("unknown model", lambda path: config(path, model_type="nonsense"))


def pickled(path):
    torch.save(safetensors.torch.load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()


spoiled("pickle", pickled)
step("pickle refused", lambda: loaded(root / "pickle", use_safetensors=True))
other = {"pretrained_model_name_or_path": root / "other-sizes", "ignore_mismatched_sizes": True}
step("ignored sizes", lambda: sorted(state(Llama.from_pretrained(**other))))


def dispatched(path, **options):
    with accelerate.init_empty_weights():
        empty = Llama(transformers.LlamaConfig(**sizes, tie_word_embeddings=False))
    model = accelerate.load_checkpoint_and_dispatch(empty, str(path), **options).eval()
    with torch.no_grad():
        return digest(model(ids).logits)


for path in (single, sharded, single / "model.safetensors", root / "cut-file", root / "nowhere"):
    step(f"dispatch {path.relative_to(root)}", lambda: dispatched(path, device_map={"": "cpu"}))
parts = {"model": "cpu", "lm_head": "disk"}
step("dispatch to disk", lambda: dispatched(sharded, device_map=parts, offload_folder=str(root / "folder")))


def offloaded():
    model = Llama.from_pretrained(single).eval()
    accelerate.disk_offload(model, str(root / "all"), execution_device=torch.device("cpu"))
    with torch.no_grad():
        return [digest(model(ids).logits), files(root / "all")]


step("offload to disk", offloaded)
with safetensors.safe_open(single / "model.safetensors", "pt") as file:
    tensors = {name: digest(file.get_tensor(name)) for name in file.keys()}
    step("safe_open", lambda: [file.metadata(), tensors])
step("save_file", lambda: safetensors.torch.save_file({"w": torch.ones(3)}, root / "w.safetensors"))
step("load_file", lambda: digest(safetensors.torch.load_file(root / "w.safetensors")["w"]))
shared = {"a": ids, "b": ids}
step("save_file of overlaps", lambda: safetensors.torch.save_file(shared, root / "v.safetensors"))
print(json.dumps(said))
'''


def run(root: Path, how: str) -> dict[str, object]:
    root.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(root), how], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    said: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return said


def test_importing_the_plug_ins_changes_nothing(tmp_path: Path) -> None:
    stock, ours = (run(tmp_path / how, how) for how in ("without", "with"))
    assert len(stock) >= 60
    failed = [name for name, what in stock.items() if isinstance(what, list) and "Error" in str(what[0])]
    assert len(failed) > 10  # failures are among what is compared
    for name, what in stock.items():
        assert ours[name] == what, name
    assert ours.keys() == stock.keys()
