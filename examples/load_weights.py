"""An Endor checkpoint fed to a model as inference engines load theirs: ``load_weights`` of (name, tensor).

vLLM, SGLang and others give a model all tensors of a checkpoint, one by one, under their names there; the
model puts each where it belongs, and fuses what its layers want as one matrix: q, k and v, gate and up. What
they iterate over can be ``pyendor.torch.iter_weights``, and nothing of the model changes:

    model.load_weights(iter_weights("model-endor/"))

The model here is one of theirs in miniature. ``python examples/load_weights.py`` writes a pruned checkpoint
of two layers, loads it, and compares what comes out with the layers as they are in the checkpoint.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyendor.torch import iter_weights, save_file

WIDTH, HEADS, GROUPS, HEAD, INNER, LAYERS, WORDS = 256, 8, 2, 32, 512, 2, 1000
FILE = "model.endor.safetensors"


class Fused(nn.Module):
    """Matrices that are multiplied by the same input, as one; ``sizes`` are the rows of each."""

    def __init__(self, columns: int, sizes: dict[str, int]) -> None:
        super().__init__()
        self.sizes = sizes
        self.weight = nn.Parameter(torch.empty(sum(sizes.values()), columns), requires_grad=False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return functional.linear(x, self.weight).split(list(self.sizes.values()), -1)

    def load(self, which: str, weight: Tensor) -> None:
        """Puts one of the matrices in its rows."""
        before = list(self.sizes)[: list(self.sizes).index(which)]
        start = sum(self.sizes[name] for name in before)
        self.weight.data[start : start + self.sizes[which]].copy_(weight)


class Layer(nn.Module):
    """Attention and a gated MLP, without norms and positions."""

    def __init__(self) -> None:
        super().__init__()
        heads, groups = HEADS * HEAD, GROUPS * HEAD
        self.qkv_proj = Fused(WIDTH, {"q_proj": heads, "k_proj": groups, "v_proj": groups})
        self.o_proj = nn.Linear(heads, WIDTH, bias=False)
        self.gate_up_proj = Fused(WIDTH, {"gate_proj": INNER, "up_proj": INNER})
        self.down_proj = nn.Linear(INNER, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.o_proj(attention(*self.qkv_proj(x)))
        gate, up = self.gate_up_proj(x)
        return x + self.down_proj(functional.silu(gate) * up)


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Of a sequence, ``[length, heads * HEAD]``."""
    q, k, v = (x.unflatten(-1, (-1, HEAD)).transpose(0, 1) for x in (q, k, v))
    k, v = (x.repeat_interleave(HEADS // GROUPS, 0) for x in (k, v))
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(0, 1).flatten(-2)


class Model(nn.Module):
    """A language model whose head is its embedding."""

    # The matrix that a layer has, and those that a checkpoint has instead.
    fused = (
        ("qkv_proj", "q_proj"),
        ("qkv_proj", "k_proj"),
        ("qkv_proj", "v_proj"),
        ("gate_up_proj", "gate_proj"),
        ("gate_up_proj", "up_proj"),
    )

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))

    def forward(self, words: Tensor) -> Tensor:
        x = self.embed(words)
        for layer in self.layers:
            x = layer(x)
        return functional.linear(x, self.embed.weight)

    @torch.no_grad()
    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Takes the tensors of a checkpoint, in any order. Returns the names of what was filled."""
        parameters = dict(self.named_parameters())
        loaded = set()
        for name, weight in weights:
            for own, theirs in self.fused:
                if f".{theirs}." in name:
                    target = name.replace(f".{theirs}.", f".{own}.")
                    self.get_submodule(target.removesuffix(".weight")).load(theirs, weight)
                    break
            else:
                target = name
                parameters[target].copy_(weight)
            loaded.add(target)
        return loaded


def checkpoint(seed: int = 0) -> dict[str, Tensor]:
    """Tensors under the names of a checkpoint, half of each matrix zero."""
    torch.manual_seed(seed)
    heads, groups = HEADS * HEAD, GROUPS * HEAD
    shapes = {"q_proj": (heads, WIDTH), "k_proj": (groups, WIDTH), "v_proj": (groups, WIDTH)}
    shapes |= {"o_proj": (WIDTH, heads), "gate_proj": (INNER, WIDTH), "up_proj": (INNER, WIDTH)}
    shapes |= {"down_proj": (WIDTH, INNER)}
    tensors = {"embed.weight": torch.randn(WORDS, WIDTH)}
    for layer in range(LAYERS):
        for name, shape in shapes.items():
            weight = torch.randn(shape) / 16
            tensors[f"layers.{layer}.{name}.weight"] = weight * (weight.abs() > weight.abs().median())
    return tensors


def expected(tensors: dict[str, Tensor], words: Tensor) -> Tensor:
    """What the model has to give, by the matrices of the checkpoint, one by one."""
    x = tensors["embed.weight"][words]
    for layer in range(LAYERS):
        part = {name.split(".")[2]: tensor for name, tensor in tensors.items() if f"layers.{layer}." in name}
        x = x + attention(*(x @ part[name].T for name in ("q_proj", "k_proj", "v_proj"))) @ part["o_proj"].T
        x = x + (functional.silu(x @ part["gate_proj"].T) * (x @ part["up_proj"].T)) @ part["down_proj"].T
    return x @ tensors["embed.weight"].T


def main(directory: Path) -> None:
    """Writes the checkpoint, loads it, compares."""
    tensors = checkpoint()
    save_file(tensors, directory / FILE)
    model = Model()
    loaded = model.load_weights(iter_weights(directory))
    missing = model.state_dict().keys() - loaded
    assert not missing, missing
    words = torch.arange(0, WORDS, 37)
    with torch.no_grad():
        torch.testing.assert_close(model(words), expected(tensors, words), rtol=1e-4, atol=1e-3)
    stored, dense = (directory / FILE).stat().st_size, sum(tensor.nbytes for tensor in tensors.values())
    print(f"{len(tensors)} tensors, fused into {len(loaded)}")
    print(f"{stored / 1e6:.2f} MB instead of {dense / 1e6:.2f}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(temporary))
