"""Wanda (arXiv 2306.11695): pruning by the weights times the norms of what they are multiplied with.

Text goes in, through the model, block by block as the paper does it: the inputs of every linear layer of a
block are observed by forward hooks, the block is pruned, and what it then puts out is what the next block
gets. One block is in memory at a time, besides what surrounds the blocks (embeddings) and the hidden states
of all texts. What comes out are the norms; :func:`pyendor.prune.prune` writes the files with them.

    options = Options(sparsity=0.5, group="row")
    inputs = collect(source, options, Calibration.from_file(Path("text.txt")))
    prune(source, destination, options, inputs=inputs)

Needs the extra ``pyendor[transformers]``, and a tokenizer beside the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import init_empty_weights
from torch import Tensor
from torch.utils._pytree import tree_map_only
from transformers.pytorch_utils import Conv1D

from pyendor import dtypes, file, selection
from pyendor.errors import UsageError, quote
from pyendor.prune import Inputs, Options, check_source, converted, prune_bytes
from pyendor.torch import read
from pyendor.torch_bytes import BY_TORCH, from_bytes, to_bytes

__all__ = ["Calibration", "collect"]

SAMPLES = 128
LENGTH = 2048


@dataclass(frozen=True)
class Calibration:
    """The texts that a model is shown, and how.

    Attributes:
        texts: one for each sample, like those that the model is for.
        length: tokens of a text that are used, at most; fewer where the model takes no more.
        device: where the model runs, as PyTorch calls it.
    """

    texts: Sequence[str]
    length: int = LENGTH
    device: str = "cpu"

    @classmethod
    def from_file(
        cls, path: Path, samples: int = SAMPLES, length: int = LENGTH, device: str = "cpu"
    ) -> Calibration:
        """Lines of a text file, spread evenly over it; empty ones do not count.

        Args:
            path: the file, in UTF-8, a sample a line.
            samples: how many lines are taken; all of them if there are fewer. The paper takes 128.
            length: tokens of a line that are used, at most.
            device: where the model runs.

        Returns:
            The texts, in their order.

        Raises:
            UsageError: it has no lines, or is not UTF-8.
            OSError: it cannot be read.
        """
        try:
            lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except UnicodeDecodeError as error:
            raise UsageError(f"{quote(str(path))} is no text in UTF-8: {error.reason}") from error
        if not lines:
            raise UsageError(f"{quote(str(path))} has no lines of text")
        count = min(samples, len(lines))
        return cls([lines[i * len(lines) // count] for i in range(count)], length, device)


@torch.no_grad()
def collect(
    source: Path,
    options: Options,
    calibration: Calibration,
    *,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Inputs]:
    """The inputs of all matrices that are to be pruned, by their names in the checkpoint.

    Args:
        source: a directory with dense weights, config and tokenizer; it is only read.
        options: what :func:`pyendor.prune.prune` will be given; ``group`` is ``row`` in the paper.
        calibration: the texts.
        progress: called with the dense bytes of every block that is done.

    Returns:
        By name the L2 norms of the inputs of every matrix over all tokens, ``float32 [inputs]``; ones where
        no token went, as may be with experts, which are then pruned by magnitude.

    Raises:
        UsageError: the model is none that is a chain of blocks, has no tokenizer, or matrices whose inputs
            are not seen, such as experts that transformers has fused; the texts have no tokens; nothing is
            selected; the source is Endor, or quantized.
        FormatError: the source breaks a rule.
        OSError: it cannot be read.
    """
    check_source(source, options)
    if not source.is_dir():
        raise UsageError(f"{quote(str(source))} is a file: Wanda runs the model, and needs its directory")
    with _Model.open(source, options, calibration) as model:
        chain = _Chain(model.blocks)
        found: dict[str, Inputs] = {}
        for name, block in model.blocks.items():
            model.fill(block, name)
            with _observed(block) as seen:
                for sample in model.samples:
                    chain.run(model, name, sample)
            found |= model.prune(block, name, seen)
            for place, sample in enumerate(model.samples):
                chain.outputs[place] = chain.run(model, name, sample)
            if progress is not None:
                progress(sum(parameter.nbytes for parameter in block.parameters()))
            block.to("meta")
    return found


@dataclass
class _Sample:
    """The tokens of a text."""

    place: int
    tokens: dict[str, Tensor]


@dataclass
class _Model:
    """A model without weights, which are filled in block by block."""

    module: Any
    places: Mapping[str, file.File]
    options: Options
    device: str
    samples: list[_Sample]
    blocks: dict[str, torch.nn.Module] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32

    @classmethod
    @contextmanager
    def open(cls, source: Path, options: Options, calibration: Calibration) -> Iterator[_Model]:
        """The model of a directory, all but its blocks filled in."""
        config = transformers.AutoConfig.from_pretrained(source)
        if getattr(config, "is_encoder_decoder", False):
            raise UsageError("Wanda knows no models of encoder and decoder; use llm-compressor")
        config.use_cache = False
        with init_empty_weights(include_buffers=False):
            module = transformers.AutoModel.from_config(config).eval()
        samples = _samples(source, config, calibration)
        with ExitStack() as stack:
            places = stack.enter_context(selection.open_weights(source)).places
            model = cls(module, places, options, calibration.device, samples)
            model._split()
            yield model

    def _split(self) -> None:
        """Finds the blocks, and fills in what is around them."""
        for name, _ in self.module.named_parameters():
            if self._selected(name):
                parts = name.split(".")
                number = next((at for at, part in enumerate(parts) if part.isdecimal()), None)
                if number is None:
                    raise UsageError(f"{quote(name)} is in no numbered layer: Wanda goes layer by layer")
                block = ".".join(parts[: number + 1])
                self.blocks[block] = self.module.get_submodule(block)
        chosen = {name for name, opened in self.places.items() if self._chosen(name, opened)}
        rest = chosen - {self._source(name) for name, _ in self.module.named_parameters()}
        if rest:
            raise UsageError(
                f"the model that transformers {transformers.__version__} makes has no parameter for "
                f"{quote(min(rest))}, or has fused it: exclude it, or use llm-compressor"
            )
        kinds = {self.options.result(self.places[name].tensor(name).dtype) for name in chosen}
        if len(kinds) > 1:
            raise UsageError(f"the matrices are of {', '.join(sorted(kinds))}: say in which with --dtype")
        self.dtype = getattr(torch, str(dtypes.BY_NAME[min(kinds)].torch))
        inside = {id(parameter) for block in self.blocks.values() for parameter in block.parameters()}
        for name, parameter in list(self.module.named_parameters()):
            # A head that is not in the checkpoint is not needed either.
            if id(parameter) not in inside and self._source(name) is not None:
                self._fill_one(name)
        for module in self.module.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None and parameter.device.type != "meta":
                    module._parameters[name] = torch.nn.Parameter(
                        parameter.to(self.device), requires_grad=False
                    )
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = buffer.to(self.device)

    def _source(self, name: str) -> str | None:
        """The tensor of the checkpoint that a parameter is."""
        prefix = self.module.base_model_prefix
        candidates = (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}."))
        return next((one for one in candidates if one in self.places), None)

    def _chosen(self, source: str, opened: file.File) -> bool:
        tensor = opened.tensor(source)
        return self.options.selects(source, tensor.dtype, tensor.shape)

    def _selected(self, name: str) -> bool:
        source = self._source(name)
        return source is not None and self._chosen(source, self.places[source])

    def _fill_one(self, name: str) -> None:
        source = self._source(name)
        if source is None:
            raise UsageError(
                f"the checkpoint has no tensor for the parameter {quote(name)}; if transformers fuses it "
                "from others, as it does experts, Wanda cannot be had here: use llm-compressor"
            )
        opened = self.places[source]
        tensor, found = read(opened, source), opened.tensor(source).dtype
        wanted = dtypes.BY_NAME[self.options.result(found)]
        if wanted.name != found:
            data = converted(to_bytes(tensor), dtypes.BY_NAME[found], wanted, source)
            tensor = from_bytes(data, getattr(torch, str(wanted.torch)), tensor.shape)
        tensor = tensor.to(self.dtype) if tensor.is_floating_point() else tensor
        path, _, last = name.rpartition(".")
        self.module.get_submodule(path)._parameters[last] = torch.nn.Parameter(tensor, requires_grad=False)

    def fill(self, block: torch.nn.Module, prefix: str) -> None:
        """Reads the weights of a block."""
        for name, _ in list(block.named_parameters()):
            self._fill_one(f"{prefix}.{name}")
        block.to(self.device)

    def prune(
        self, block: torch.nn.Module, prefix: str, seen: Mapping[torch.nn.Module, Tensor]
    ) -> dict[str, Inputs]:
        """Prunes a block, and gives what it was pruned by."""
        found = {}
        for path, module in block.named_modules():
            for last, parameter in module._parameters.items():
                name = ".".join(filter(None, (prefix, path, last)))
                if parameter is None or not self._selected(name):
                    continue
                source = self._source(name)
                assert source is not None
                if module not in seen or last != "weight":
                    raise UsageError(f"the inputs of {quote(source)} are not seen: exclude it")
                axis = 0 if isinstance(module, Conv1D) else 1
                inputs = Inputs(seen[module].sqrt().float().cpu().numpy(), axis)
                if not inputs.norms.any():  # an expert that no token went to: by magnitude
                    inputs = Inputs(inputs.norms + 1, inputs.axis)
                row, shape = BY_TORCH[parameter.dtype], tuple(parameter.shape)
                data = prune_bytes(
                    to_bytes(parameter), row, shape, self.options.sparsity, self.options.group, inputs
                )
                parameter.copy_(from_bytes(data, parameter.dtype, shape))
                found[source] = inputs
        return found


class _Chain:
    """Runs a model up to one block, with what it is known that those before it put out.

    The model itself is run, so that every block gets what the model gives it besides the hidden states:
    masks, positions, whatever differs from one block to another.
    """

    def __init__(self, blocks: Mapping[str, torch.nn.Module]) -> None:
        self.outputs: dict[int, Any] = {}
        self._order = {name: place for place, name in enumerate(blocks)}
        self._goal = ""
        self._place = 0
        for name, block in blocks.items():
            block.forward = self._guarded(name, block.forward)

    def run(self, model: _Model, goal: str, sample: _Sample) -> Any:
        """What a block puts out for a text."""
        self._goal, self._place = goal, sample.place
        try:
            model.module(**sample.tokens)
        except _Reached as reached:
            return reached.output
        raise UsageError(f"the model does not run {quote(goal)}: Wanda needs a chain of blocks")

    def _guarded(self, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            if self._order[name] < self._order[self._goal]:
                return self.outputs[self._place]
            if name != self._goal:
                raise UsageError(f"the model runs {quote(name)} before {quote(self._goal)}: it is no chain")
            raise _Reached(forward(*args, **kwargs))

        return run


class _Reached(Exception):  # noqa: N818  no error
    """That a block has been run."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = tree_map_only(Tensor, Tensor.detach, output)


@contextmanager
def _observed(block: torch.nn.Module) -> Iterator[dict[torch.nn.Module, Tensor]]:
    """The sums of squares of the inputs of all linear layers, over all tokens, as they are run."""
    seen: dict[torch.nn.Module, Tensor] = {}

    def observe(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        inputs = args[0].reshape(-1, args[0].shape[-1]).double()
        seen[module] = seen[module].to(inputs.device) + inputs.square().sum(0)

    with ExitStack() as stack:
        for module in block.modules():
            if isinstance(module, torch.nn.Linear | Conv1D):
                stack.callback(module.register_forward_pre_hook(observe).remove)
                inputs = module.in_features if isinstance(module, torch.nn.Linear) else module.nx
                seen[module] = torch.zeros(inputs, dtype=torch.float64, device="cpu")
        yield seen


def _samples(source: Path, config: Any, calibration: Calibration) -> list[_Sample]:
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, ImportError) as error:
        raise UsageError(f"{quote(str(source))} has no tokenizer that can be loaded: {error}") from error
    limits = (getattr(config, "max_position_embeddings", None), tokenizer.model_max_length)
    length = min(calibration.length, *(limit for limit in limits if limit))
    samples: list[_Sample] = []
    for text in calibration.texts:
        tokens = tokenizer(text, truncation=True, max_length=length, return_tensors="pt")
        if tokens["input_ids"].numel():
            moved = {name: tensor.to(calibration.device) for name, tensor in tokens.items()}
            samples.append(_Sample(len(samples), moved))
    if not samples:
        raise UsageError("the texts have no tokens")
    return samples
