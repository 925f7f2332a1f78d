"""The quantizer that transformers calls while it loads an Endor checkpoint.

Decoding is not done here but where files are opened (:mod:`pyendor.hf.files`). What is left is to
say how, to keep encoded what is to stay encoded, and otherwise to leave a plain model behind.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers.quantizers import auto
from transformers.quantizers.base import HfQuantizer

from pyendor import choice
from pyendor.choice import MIN_SAVING
from pyendor.encoded import EncodedTensor, take_survey
from pyendor.errors import UsageError
from pyendor.hf import files
from pyendor.hf.config import EndorConfig
from pyendor.naming import METHOD
from pyendor.torch_bytes import BY_TORCH, to_bytes
from pyendor.torch_tensor import EndorTensor


@auto.register_quantizer(METHOD)
class EndorQuantizer(HfQuantizer):
    """Loads Endor checkpoints, and encodes dense ones in memory if asked to keep weights encoded."""

    requires_calibration = False
    quantization_config: EndorConfig

    def __init__(self, quantization_config: EndorConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        self._saving = False

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        """Called before any file is opened, by the thread that will."""
        files.begin(self)

    @property
    def keep_compressed(self) -> bool:
        """Whether weights stay encoded."""
        return self.quantization_config.keep_compressed

    @property
    def verify(self) -> bool:
        """Whether digests are checked."""
        return self.quantization_config.verify

    def get_new_dtype(self, converter: Any, param: Any, dtype: torch.dtype | None) -> torch.dtype | None:
        """As without a quantizer: whatever the model wants."""
        return dtype

    def update_unexpected_keys(self, model: Any, unexpected_keys: list[str]) -> list[str]:
        """Transformers 4 asks the index, which lists parts, for the names of a sharded checkpoint."""
        return [key for key in unexpected_keys if f".{METHOD}." not in key]

    def update_weight_conversions(
        self, weight_conversions: list[Any], *args: Any, **kwargs: Any
    ) -> list[Any]:
        """Encodes anew what transformers fuses, tensor by tensor, so that experts stay encoded.

        Releases differ in what else they pass.
        """
        conversions = super().update_weight_conversions(weight_conversions, *args, **kwargs)
        if not self.keep_compressed:
            return list(conversions)
        return [_encoding(conversion) for conversion in conversions]

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        return model

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        files.end()
        if self.keep_compressed:
            keep(model)
        elif getattr(model.config, "quantization_config", None) is not None:  # transformers 4
            self.remove_quantization_config(model)
        return model

    @contextmanager
    def saving(self) -> Iterator[None]:
        """While this lasts, ``save_pretrained`` of the model writes it dense."""
        self._saving = True
        try:
            yield
        finally:
            self._saving = False

    def is_serializable(self, safe_serialization: bool | None = None) -> bool:
        """True while :func:`pyendor.transformers.save_pretrained` saves the model.

        Raises:
            UsageError: it is saved by ``save_pretrained`` of transformers, which knows no encoded weights.
        """
        if not self._saving:
            raise UsageError(
                "the weights of this model are encoded, and its own save_pretrained does not know such: "
                "call pyendor.transformers.save_pretrained(model, path)"
            )
        return True

    def get_state_dict_and_metadata(
        self, model: Any, safe_serialization: bool | None = None
    ) -> tuple[dict[str, Tensor], dict[str, str]]:
        """What to save: all weights, decoded; those that share memory still do."""
        dense: dict[int, Tensor] = {}
        state: dict[str, Tensor] = {}
        for name, tensor in model.state_dict(keep_vars=True).items():
            if id(tensor) not in dense:
                dense[id(tensor)] = decoded(tensor.detach())
            state[name] = dense[id(tensor)]
        return state, {}

    @property
    def is_trainable(self) -> bool:
        return False


def decoded(tensor: Tensor) -> Tensor:
    """The tensor, dense."""
    return tensor.decode() if isinstance(tensor, EndorTensor) else tensor


def encoded(tensor: Tensor) -> Tensor:
    """The tensor, encoded if that makes it smaller to the degree that files ask for."""
    row = BY_TORCH.get(tensor.dtype)
    plain = type(tensor) in {Tensor, torch.nn.Parameter} and tensor.device.type != "meta"
    if row is None or not row.encodable or not plain:
        return tensor
    data, shape = to_bytes(tensor.contiguous()), tuple(tensor.shape)
    meta = choice.choose(row.name, shape, take_survey(data, row.name, "auto", None), "auto", MIN_SAVING)
    if meta is None:
        return tensor
    made = EncodedTensor.filled("", replace(meta, digest=None), data, digest=False)
    return EndorTensor.from_encoded(made).to(tensor.device)


def keep(model: torch.nn.Module) -> None:
    """Encodes all weights of a model that are still dense and become smaller; tied ones stay tied."""
    done: dict[int, torch.nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in done:
                tensor = encoded(parameter.detach()) if not isinstance(parameter, EndorTensor) else parameter
                made = parameter
                if isinstance(tensor, EndorTensor):
                    made = torch.nn.Parameter(tensor.detach(), requires_grad=False)
                    made.__dict__.update(
                        {key: value for key, value in parameter.__dict__.items() if key not in made.__dict__}
                    )
                done[id(parameter)] = made
                done[id(made)] = made
            module._parameters[name] = done[id(parameter)]


def _encoding(conversion: Any) -> Any:
    """A conversion of transformers 5 whose results are encoded; renamings convert nothing."""
    if not getattr(conversion, "operations", None):
        return conversion
    changed = copy.deepcopy(conversion)
    changed.operations = [*changed.operations, _operation(encoded, decoded)]
    return changed


def _operation(function: Any, reverse: Any) -> Any:
    """An operation of transformers 5 that is done to every tensor."""
    from transformers.core_model_loading import ConversionOps  # not in transformers 4

    class Each(ConversionOps):
        def convert(self, input_dict: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
            return {
                name: [function(one) for one in value] if isinstance(value, list) else function(value)
                for name, value in input_dict.items()
            }

        @property
        def reverse_op(self) -> Any:
            return _operation(reverse, function)

    return Each()
