"""Writes the checkpoints beside this file with real old releases of compressed-tensors.

    python -m venv old
    old/bin/pip install torch==2.13.0
    old/bin/pip install transformers==4.51.3 accelerate pydantic
    for release in 0.5.0 0.8.1 0.9.4; do
      old/bin/pip install --no-deps --target old/$release compressed-tensors==$release
      PYTHONPATH=old/$release old/bin/python tests/compressed-tensors/make.py
    done

Each is a model that the release's own ``ModelCompressor`` has written, as those of its users were; beside it
is ``NAME.dense.safetensors``, what the release's own decompressor makes of every tensor. The single files
``tensors-*.safetensors`` have what models seldom have: odd sizes, empty rows, NaN, -0.0.
"""

from __future__ import annotations

import json
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.config import BitmaskConfig
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

RELEASE = version("compressed-tensors")
HERE = Path(__file__).parent
NEW = RELEASE.startswith("0.9.")


def model(dtype: torch.dtype, hidden: int) -> LlamaForCausalLM:
    """A Llama of a few hundred weights, half of those in its layers zero, two of every four."""
    torch.manual_seed(24)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=hidden + 2,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=8,
        max_position_embeddings=16,
        torch_dtype=dtype,
    )
    made = LlamaForCausalLM(config).to(dtype)
    for name, weight in made.named_parameters():
        if "proj" in name:
            groups = weight.data.reshape(-1, 4)
            low = groups.abs().topk(2, dim=1, largest=False).indices
            groups.scatter_(1, low, 0.0)
            groups[0] = 0.0  # of which sparse-24-bitmask keeps two all the same
            weight.data = groups.reshape(weight.shape)
    return made


def save(name: str, made: LlamaForCausalLM, compressor: ModelCompressor, shard: int = 1 << 30) -> None:
    """Writes a model compressed, and its dense tensors."""
    root = HERE / name
    shutil.rmtree(root, ignore_errors=True)
    compressed = compressor.compress(made)
    made.save_pretrained(root, state_dict=compressed, max_shard_size=shard)
    if shard != 1 << 30:
        scatter(root)
    compressor.update_config(str(root))
    (root / "generation_config.json").unlink()
    parts = roles(compressor.sparsity_compressor)
    dense = {key: value for key, value in read(root).items() if key.rpartition(".")[2] not in parts}
    for tensor, value in compressor.sparsity_compressor.decompress(str(root)):
        dense[tensor] = value.contiguous()
    save_file(dense, HERE / f"{name}.dense.safetensors", {"format": "pt"})


def roles(compressor: object) -> list[str]:
    """How the names of its parts end."""
    old = getattr(compressor, "COMPRESSION_PARAM_NAMES", None)
    return old or compressor.compression_param_names


def read(root: Path) -> dict[str, torch.Tensor]:
    """All tensors of a directory."""
    found = {}
    for path in sorted(root.glob("*.safetensors")):
        with safe_open(path, "pt") as opened:
            found |= {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    return found


def odd_tensors() -> None:
    """Tensors that models seldom have, through the compressor of tensors."""
    torch.manual_seed(16)
    dtypes = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
    dense = {}
    for name, dtype in dtypes.items():
        for shape in ((5, 11), (3, 8), (1, 1), (19,), (2, 3, 5)):
            value = torch.randn(shape).to(dtype)
            value[torch.rand(shape) < 0.5] = 0
            dense[f"{name}.{'x'.join(map(str, shape))}.weight"] = value
    rows = torch.zeros(4, 9)
    rows[2, 8] = 1
    dense |= {
        "rows.empty.weight": rows,
        "all.zero.weight": torch.zeros(3, 7, dtype=torch.float16),
        "no.columns.weight": torch.zeros(3, 0),
        "special.weight": torch.tensor([[float("nan"), -0.0, 0.0, float("-inf"), 1e-45, -1.0]]),
        "int8.weight": torch.tensor([[0, -128, 127], [0, 0, 1]], dtype=torch.int8),
    }
    if NEW:
        dense["fp8.weight"] = (torch.randn(6, 10) * (torch.rand(6, 10) < 0.4)).to(torch.float8_e4m3fn)
        dense["kept.bias"] = torch.randn(4)
    else:
        dense["q.bias"] = torch.tensor([0.0, 1.5, 0.0])
        dense["scalar.weight_scale"] = torch.tensor(2.5)
    from compressed_tensors.compressors.sparse_compressors import BitmaskCompressor

    compressor = BitmaskCompressor(config=BitmaskConfig())
    both(compressor, f"tensors-{RELEASE}", dense)
    if not NEW:
        return
    from compressed_tensors.compressors.sparse_compressors import Sparse24BitMaskCompressor
    from compressed_tensors.config import Sparse24BitMaskConfig

    dense = {}
    for name, dtype in (dtypes | {"fp8": torch.float8_e4m3fn}).items():
        for shape in ((2, 6), (3, 8), (4, 12), (5, 840)):  # the last of more than a block of Endor
            value = torch.randn(shape)
            value.view(-1, 4)[:, 1::2] = 0
            value.view(-1, 4)[::3] = 0
            if value.numel() < 100 or name == "fp8":
                dense[f"{name}.{'x'.join(map(str, shape))}.weight"] = value.to(dtype)
    dense |= {
        "all.zero.weight": torch.zeros(4, 4),
        "no.rows.weight": torch.zeros(0, 4),
        "special.weight": torch.tensor([[float("nan"), 0.0, 0.0, -0.0], [0.0, float("-inf"), -0.0, 0.0]]),
    }
    both(Sparse24BitMaskCompressor(config=Sparse24BitMaskConfig()), f"tensors-24-{RELEASE}", dense)


def both(compressor: object, name: str, dense: dict[str, torch.Tensor]) -> None:
    """Writes tensors compressed, and what the release makes of them: the same but for -0.0."""
    path = HERE / f"{name}.safetensors"
    save_file(compressor.compress(dict(dense)), path)
    restored = {key: value for key, value in dense.items() if not key.endswith("weight")}
    for key, value in dense.items():
        if not value.ndim:
            continue  # written, but not read again by the release
        prefix = key.removesuffix(".weight") if NEW else key
        parts = {}
        with safe_open(path, "pt") as opened:
            for role in roles(compressor):
                if f"{prefix}.{role}" in opened.keys():  # noqa: SIM118
                    parts[role] = opened.get_tensor(f"{prefix}.{role}")
        if parts:
            restored[key] = compressor.decompress_weight(parts).contiguous()
            assert torch.equal(restored[key].float().nan_to_num(7), value.float().nan_to_num(7)), key
    save_file(dense | restored, HERE / f"{name}.dense.safetensors")


def quantized() -> None:
    """FP8 weights with a scale for each row, and 2:4 on top of that."""
    from compressed_tensors.config import Sparse24BitMaskConfig
    from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config

    made = model(torch.bfloat16, 12)
    weights = {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True}
    config = QuantizationConfig.model_validate(
        {
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
            "ignore": ["lm_head"],
            "format": "float-quantized",
        }
    )
    apply_quantization_config(made, config)
    for module in made.modules():
        if hasattr(module, "weight_scale"):
            scale = module.weight.data.abs().amax(dim=1, keepdim=True).float() / 448
            module.weight_scale.data = scale.clamp(min=1e-6).to(module.weight_scale.dtype)
    sparsity = Sparse24BitMaskConfig(targets=["Linear"], ignore=["lm_head"])
    compressor = ModelCompressor(sparsity_config=sparsity, quantization_config=config)
    save(f"{RELEASE}-24-fp8", made, compressor)


def scatter(root: Path) -> None:
    """That the shards part a tensor, as those of large models do."""
    index = json.loads((root / "model.safetensors.index.json").read_text())["weight_map"]
    stems = {}
    for name, shard in index.items():
        stems.setdefault(name.rpartition(".")[0], set()).add(shard)
    assert any(len(shards) > 1 for shards in stems.values())


def main() -> None:
    """Writes what this release can write."""
    torch.Tensor.cuda = lambda self: self  # to where 0.9.4 sends FP8 that it has decompressed, for no reason
    if RELEASE == "0.5.0":
        made = model(torch.float32, 4)
        save(RELEASE, made, ModelCompressor(sparsity_config=BitmaskConfig()))
    elif RELEASE == "0.8.1":
        made = model(torch.float16, 12)
        save(RELEASE, made, ModelCompressor(sparsity_config=BitmaskConfig()), 1200)
        odd_tensors()
    elif RELEASE == "0.9.4":
        from compressed_tensors.config import Sparse24BitMaskConfig

        targets = {"targets": ["Linear"], "ignore": ["lm_head"]}
        made = model(torch.bfloat16, 12)
        save(RELEASE, made, ModelCompressor(sparsity_config=BitmaskConfig(**targets)), 700)
        made = model(torch.float16, 12)
        save(f"{RELEASE}-24", made, ModelCompressor(sparsity_config=Sparse24BitMaskConfig(**targets)))
        quantized()
        odd_tensors()
    else:
        sys.exit(f"compressed-tensors {RELEASE} is none of those")


if __name__ == "__main__":
    main()
