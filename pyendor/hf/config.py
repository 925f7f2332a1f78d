"""What transformers knows of Endor: a quantization config, which says how a checkpoint is to be loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers.quantizers import auto
from transformers.utils.quantization_config import QuantizationConfigMixin

from pyendor.errors import UnsupportedError, UsageError, quote
from pyendor.hf import files
from pyendor.naming import METHOD


@auto.register_quantization_config(METHOD)
class EndorConfig(QuantizationConfigMixin):
    """How an Endor checkpoint is loaded: the ``quantization_config`` of transformers' ``from_pretrained``.

    A ``QuantizationConfigMixin`` of transformers, with all that such a one has. ``config.json`` holds one too
    (K-7); of that which the caller gives, ``keep_compressed`` and ``verify`` count.

    Args:
        version: highest format version of the weights, as ``"1.1"``; what ``config.json`` says of them,
            informative.
        keep_compressed: keep weights encoded in memory and decode them whenever they are used, instead of
            decoding them once, into a plain dense model.
        verify: check the digests of tensors that are read whole (D-3).
        **_unknown: what else ``config.json`` holds; not looked at.

    Attributes:
        quant_method: ``"endor"``, by which transformers knows such checkpoints.
        version: as given.
        keep_compressed: as given.
        verify: as given.
    """

    def __init__(
        self,
        version: str | None = None,
        keep_compressed: bool = False,
        verify: bool = False,
        **_unknown: Any,
    ) -> None:
        self.quant_method = METHOD
        self.version = version
        self.keep_compressed = keep_compressed
        self.verify = verify

    @property
    def dequantize(self) -> bool:
        """Whether a plain model comes of it, which transformers asks; the opposite of ``keep_compressed``."""
        return not self.keep_compressed

    @classmethod
    def from_dict(
        cls, config_dict: Mapping[str, Any], return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """The config that a ``quantization_config`` of ``config.json`` stands for; transformers calls it.

        Of a model that was quantized before it was compressed (``inner``, K-9) this is the config of that
        method, so that transformers goes on as with the dense checkpoint.

        Args:
            config_dict: the object of ``config.json``; it is not changed.
            return_unused_kwargs: also give back those of the other arguments that were not used.
            **kwargs: values for members of the config, in place of those of the object.

        Returns:
            The config, or that of the method of ``inner``, to which the other arguments do not apply; with
            ``return_unused_kwargs`` that and a dictionary.

        Raises:
            UnsupportedError: transformers does not know the method of ``inner``.
        """
        files.end()
        inner = config_dict.get("inner")
        if inner is None:
            return super().from_dict(dict(config_dict), return_unused_kwargs, **kwargs)
        method = inner.get("quant_method") if isinstance(inner, dict) else inner
        if not isinstance(inner, dict) or not known(inner):
            raise UnsupportedError(
                f"the weights were quantized ({quote(str(method))}) before they were compressed, which "
                "transformers cannot load: decompress the checkpoint and use what can"
            )
        found = auto.AutoQuantizationConfig.from_dict(dict(inner))
        return (found, kwargs) if return_unused_kwargs else found


def known(inner: Mapping[str, Any]) -> bool:
    """Whether transformers has a quantizer for a ``quantization_config``."""
    if "quant_method" not in inner and not {"load_in_8bit", "load_in_4bit"} & inner.keys():
        return False
    return bool(auto.AutoHfQuantizer.supports_quant_method(dict(inner)))


def install() -> None:
    """Lets ``from_pretrained`` take over what an :class:`EndorConfig` that it is given says.

    It does so for some configs of its own, of which there is a fixed list, and leaves others aside with a
    warning.
    """
    stock = auto.AutoHfQuantizer.merge_quantization_configs

    def merge_quantization_configs(
        cls: type, quantization_config: Any, quantization_config_from_args: Any = None
    ) -> Any:
        given = quantization_config_from_args
        if not isinstance(given, EndorConfig):
            return stock(quantization_config, given)
        merged = stock(quantization_config, None)
        if not isinstance(merged, EndorConfig):
            method = getattr(merged.quant_method, "value", merged.quant_method)
            raise UsageError(
                f"the weights of this model are quantized ({quote(str(method))}): it is loaded as that, and "
                "EndorConfig has nothing to say about it; leave it out"
            )
        merged.keep_compressed, merged.verify = given.keep_compressed, given.verify
        return merged

    auto.AutoHfQuantizer.merge_quantization_configs = classmethod(merge_quantization_configs)
