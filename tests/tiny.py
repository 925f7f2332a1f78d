"""A small model of every architecture of transformers, made from its default config, and inputs for it.

Widths are divided by one power of two all over a config and its parts, so that what was equal stays equal;
depths, experts and vocabularies become few. Inputs follow the signature of forward. Architectures that need
more than that have a line in ``SPECIAL``.
"""

from __future__ import annotations

import copy
import inspect
import math
import re
from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig
from transformers.models.auto import configuration_auto, modeling_auto

BATCH, LENGTH, VOCABULARY, LAYERS = 2, 12, 512, 2
LIMIT = 16_000_000  # parameters

# Which class of a model to take: the first of these that there is, else the base model.
_HEADS = (
    *(
        "MULTIMODAL_LM",
        "IMAGE_TEXT_TO_TEXT",
        "SPEECH_SEQ_2_SEQ",
        "SEQ_TO_SEQ_CAUSAL_LM",
        "CAUSAL_LM",
        "MASKED_LM",
    ),
    *(
        "CTC",
        "ZERO_SHOT_IMAGE_CLASSIFICATION",
        "PRETRAINING",
        "OBJECT_DETECTION",
        "UNIVERSAL_SEGMENTATION",
        "INSTANCE_SEGMENTATION",
    ),
    *("SEMANTIC_SEGMENTATION", "DEPTH_ESTIMATION", "IMAGE_CLASSIFICATION", "VIDEO_CLASSIFICATION"),
    *("TEXT_TO_SPECTROGRAM", "TEXT_TO_WAVEFORM", "TIME_SERIES_PREDICTION", "MASK_GENERATION"),
)

_WIDTH = re.compile(
    r"^(hidden_sizes?|d_model|n_embd|embed_dims?|.*_embed_dims?|dim|.*_dims?|.*intermediate_sizes?|.*_hidden_sizes?"
    r"|dims|.*hidden_sizes?|embedding_size|.*_rank|d_kv|d_ff|d_inner|n_inner|ffn_hidden_size|decoder_.*_size"
    r"|encoder_hidden_size|classifier_proj_size|output_hidden_size|pooler_hidden_size|lru_width|width"
    r"|.*_width|channels|out_channels|.*_channels?|num_filters|vision_embed_size|projection_size"
    r"|backbone_channel_list|upsample_groups|.*_hidden_dimension|coordinate_size|shape_size|d_latents|.*projector_.*size|entity_emb_size|pooler_output_size|d_rel)$"
)
_NOT_WIDTH = re.compile(
    r"^(num_channels|(?!num_filters)num_.*|in_channels|in_chans|audio_channels|image_channels|num_.*_channels|input_channels|input_dim"
    r"|.*kernel.*|.*patch_size|.*window.*|.*chunk.*|.*codebook_size|vocab_size|.*_vocab_size|.*image_size"
    r"|.*block_size|.*conv_dim|linear_conv_kernel_dim|.*pool_.*|.*max_.*|.*stride.*|mlp_ratio"
    r"|.*_num_.*)$"
)
_DEPTH = re.compile(
    r"^((num_)?(.*_)?(hidden_|encoder_|decoder_)?layers|n_layers?|(.*_)?depth|num_(.*_)?blocks|num_encoder_blocks"
    r"|n_head_layers)$"
)
_NOT_DEPTH = re.compile(
    r"^(.*first_k.*|num_kv_shared_layers|mlp_only_layers|no_rope_layers|no_bias.*|max_window_layers|num_nextn.*"
    r"|num_dense_layers|num_feat_extract_layers|num_encoder_blocks|.*loop.*layers|.*_idx.*)$"
)
# The largest values of what there need not be many of.
_MOST = {
    r"(num_(local_|routed_)?experts|n_routed_experts|moe_num_experts|num_expert)$": 4,
    r"(num_experts_per_tok|moe_topk|moe_k|top_k_experts|num_experts_per_token)$": 2,
    r"(n_group|topk_group|num_expert_groups?|first_k_dense_replace|num_dense_layers)$": 1,
    r"(?!type_).*vocab_size": VOCABULARY,
    r"num_queries$": 10,
    r"max_position_embeddings$": 1024,
}
# Numbers of layers.
_PLACES = {"out_indices", "vision_feature_layer", "deepstack_visual_indexes", "fullatt_block_indexes"}
_TOKEN = re.compile(r"^.*token_(id|index)$|^.*_token_ids?$")


def model_types() -> list[str]:
    """Every architecture, by its model type."""
    return sorted(set(modeling_auto.MODEL_MAPPING_NAMES) | set(SPECIAL))


def classes_of(model_type: str) -> list[Any]:
    """The classes to try for an architecture, the most complete first."""
    if model_type in SPECIAL and "classes" in SPECIAL[model_type]:
        return [getattr(transformers, name) for name in SPECIAL[model_type]["classes"]]
    names: list[str] = []
    for head in _HEADS:
        found = getattr(modeling_auto, f"MODEL_FOR_{head}_MAPPING_NAMES", {}).get(model_type, ())
        names += [found] if isinstance(found, str) else list(found)
    found = modeling_auto.MODEL_MAPPING_NAMES.get(model_type, ())
    names += [found] if isinstance(found, str) else list(found)
    return [getattr(transformers, name) for name in dict.fromkeys(names) if hasattr(transformers, name)]


_DIVISORS = (16, 32, 64, 8, 4, 2, 1)
# Layers, and whether lists with a value for each layer are cut.
_CUTS = ((LAYERS, False), (LAYERS, True), (2 * LAYERS, False), (2 * LAYERS, True), (0, False))
CONFIGS = len(_DIVISORS) * len(_CUTS)


def config(model_type: str, number: int) -> PreTrainedConfig | None:
    """A small config of an architecture, one of ``CONFIGS``; None if its class does not take it."""
    kind = getattr(transformers, configuration_auto.CONFIG_MAPPING_NAMES[model_type])
    special = SPECIAL.get(model_type, {})
    divisor, (layers, lists) = _DIVISORS[number // len(_CUTS)], _CUTS[number % len(_CUTS)]
    if divisor not in special.get("divisors", _DIVISORS):
        return None
    try:
        wanted = _smaller(kind(**special.get("base", {})), divisor, layers, lists)
        _merge(wanted, special.get("config", {}))
        return kind(**special.get("base", {}) | wanted)
    except Exception:  # a value that this class refuses
        return None


def _merge(wanted: dict[str, Any], more: dict[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(wanted.get(key), dict):
            _merge(wanted[key], value)
        else:
            wanted[key] = value


def _smaller(config: PreTrainedConfig, divisor: int, layers: int, lists: bool) -> dict[str, Any]:
    """What to change in a config, its parts as dictionaries."""
    changed: dict[str, Any] = {}
    attributes = {key: value for key, value in vars(config).items() if not key.startswith("_")}
    depths = {value for key, value in attributes.items() if _is_depth(key, value)}
    for key, value in attributes.items():
        if isinstance(value, PreTrainedConfig):
            given = value.to_diff_dict() | {"model_type": value.model_type}
            changed[key] = given | _smaller(value, divisor, layers, lists)
        elif _is_depth(key, value):
            if layers:
                changed[key] = min(value, layers)
        else:
            smaller = _smaller_value(key, value, divisor, layers)
            if smaller is not None:
                changed[key] = smaller
    mine = getattr(config, "vocab_size", None)
    small = min(VOCABULARY, mine) if isinstance(mine, int) else VOCABULARY
    following = small - 1 if small > 1 else VOCABULARY - 1
    for key, value in attributes.items():
        if _TOKEN.match(key) and isinstance(value, int) and not isinstance(value, bool) and value >= small:
            changed[key] = following
            following -= 1
    _divide_heads(attributes, changed)
    vision, text = changed.get("vision_config"), changed.get("text_config")
    if vision and text and hasattr(config.vision_config, "out_hidden_size") and "hidden_size" in text:
        vision["out_hidden_size"] = text["hidden_size"]  # which differ in some defaults
    if layers and lists:
        # What there is one of for each layer, where the config does not derive that.
        for key, value in attributes.items():
            if key not in changed and isinstance(value, list) and len(value) in depths:
                changed[key] = _varied(value, layers)
    return changed


def _smaller_value(key: str, value: Any, divisor: int, layers: int) -> Any:
    """What to change a single value to; None to leave it."""
    if isinstance(value, dict) and "mrope_section" in value:
        sections = [max(one // divisor, 1) for one in value["mrope_section"]]
        sections[-1] += sum(value["mrope_section"]) // divisor - sum(sections)
        return {**value, "mrope_section": sections}
    numbers = [value] if isinstance(value, int) else value
    if isinstance(value, bool) or not isinstance(numbers, (list, tuple)) or not numbers:
        return None
    if not all(isinstance(one, int) for one in numbers):
        return None
    most = next((most for pattern, most in _MOST.items() if re.match(pattern, key)), None)
    if key in _PLACES and layers and len(numbers) > 1 and max(numbers) >= layers:
        found = [min(one, layers - 1) for one in numbers][:layers]
    elif key == "depths":
        found = [min(one, 2) for one in numbers]
    elif most is not None:
        found = [min(one, most) for one in numbers]
    elif _WIDTH.match(key) and not _NOT_WIDTH.match(key):
        least = 2 * divisor if isinstance(value, int) else 8
        found = [one if one < least else max(one // divisor, 1) for one in numbers]
    else:
        return None
    return found[0] if isinstance(value, int) else type(value)(found)


def _divide_heads(attributes: dict[str, Any], changed: dict[str, Any]) -> None:
    """Fewer heads, where what is left of a width cannot be divided among them."""
    for heads, width in (
        *(("num_attention_heads", one) for one in ("hidden_size", "embed_dim", "d_model", "hidden_dim")),
        *(("num_heads", one) for one in ("hidden_size", "embed_dim", "dim", "encoder_hidden_dim")),
        *((f"{half}_attention_heads", "d_model") for half in ("encoder", "decoder")),
        *((f"{half}_attention_heads", "hidden_size") for half in ("encoder", "decoder")),
        ("n_head", "n_embd"),
        ("n_heads", "dim"),
    ):
        count, whole = attributes.get(heads), changed.get(width)
        divisible = not isinstance(count, int) or not isinstance(whole, int) or whole % (4 * count) == 0
        if not divisible and not {"head_dim", "num_key_value_heads"} & attributes.keys():
            changed[heads] = max(math.gcd(count, whole // 4), 1)


def _varied(values: list[Any], count: int) -> list[Any]:
    """So many of the values, as many different ones as there are."""
    try:
        different = list(dict.fromkeys(values))
    except TypeError:
        different = []
    return (different + values)[:count]


def _is_depth(key: str, value: Any) -> bool:
    plain = isinstance(value, int) and not isinstance(value, bool) and value > 1
    return plain and _DEPTH.match(key) is not None and _NOT_DEPTH.match(key) is None


def build(kind: Any, config: PreTrainedConfig) -> Any:
    """A model with weights that are random, half of each matrix zeros, and none of them all alike."""
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in kind(copy.deepcopy(config)).parameters())
    if size > LIMIT:
        raise ValueError(f"{size} parameters")
    torch.manual_seed(1)
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.is_floating_point() or not parameter.numel():
                continue
            first = parameter.view(-1)[0]
            if (parameter == first).all() and (parameter.ndim > 1 or first == 0):
                parameter.add_(torch.randn_like(parameter) * 0.05)
            if parameter.ndim > 1:
                magnitude = parameter.abs().flatten()
                if magnitude.numel() > 1:
                    parameter[parameter.abs() < magnitude.median()] = 0
    return model


# What inputs are made of -----------------------------------------------------------------------------------


def find(config: Any, *names: str, default: Any = None, within: tuple[str, ...] = ()) -> Any:
    """The value of the first of these attributes that a config or one of its parts has."""
    parts = [config]
    for part in parts:
        mine = [value for key, value in vars(part).items() if isinstance(value, PreTrainedConfig)]
        parts += mine
    if within:
        inner = [
            getattr(config, key) for key in within if isinstance(getattr(config, key, None), PreTrainedConfig)
        ]
        parts = inner + parts
    for part in parts:
        for name in names:
            value = getattr(part, name, None)
            if value is not None:
                return value
    return default


_VISION = (
    "vision_config",
    "image_config",
    "vision_encoder_config",
    "encoder_config",
    "backbone_config",
    "vit_config",
)
_AUDIO = ("audio_config", "audio_encoder_config", "encoder_config", "speech_config", "sound_config")


def inputs(model: Any) -> dict[str, Any]:
    """Arguments for forward."""
    config, model_type = model.config, model.config.model_type
    generator = torch.Generator().manual_seed(2)
    special = SPECIAL.get(model_type, {})
    if "inputs" in special:
        made: dict[str, Any] = special["inputs"](model, generator)
        return made
    names = inspect.signature(model.forward).parameters
    required = {
        name
        for name, one in names.items()
        if one.default is one.empty and one.kind in {one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY}
    }
    given: dict[str, Any] = {}
    if "grid_thw" in required:
        return _patches(config, model, generator)
    for name, maker in _MAKERS.items():
        if name in names and (name in required or name in _ALWAYS or name == model.main_input_name):
            given[name] = maker(config, generator)
    if "decoder_input_ids" in names and getattr(config, "is_encoder_decoder", False):
        given["decoder_input_ids"] = _ids(config, generator)
    if "pixel_values" in given and "input_ids" in given:
        _place_images(model, given, generator)
    if "input_features" in given and "input_ids" in given:
        _place_audio(model, given)
    if "input_features" in given and "input_features_mask" in names and "input_ids" not in given:
        given["input_features_mask"] = torch.ones(given["input_features"].shape[:2], dtype=torch.bool)
    if "bbox" in names and "input_ids" in given:
        given["bbox"] = torch.tensor([1, 2, 30, 40]).repeat(*given["input_ids"].shape, 1)
    return given


def _ids(config: Any, generator: torch.Generator, length: int = LENGTH) -> torch.Tensor:
    size = find(config, "vocab_size", default=VOCABULARY)
    size = size if isinstance(size, int) and size > 8 else 64
    # Past the ids that mean padding and the like, and before those that were moved to the end.
    low, high = (4, max(size - 40, size // 2)) if size > 60 else (0, size)
    return torch.randint(low, high, (BATCH, length), generator=generator)


def image_side(config: Any) -> int:
    """Height and width of an image."""
    size = find(config, "image_size", "img_size", "input_size", within=_VISION, default=64)
    size = (
        size[0]
        if isinstance(size, (list, tuple))
        else size.get("height", 64)
        if isinstance(size, dict)
        else size
    )
    return int(size)


def _pixels(config: Any, generator: torch.Generator) -> torch.Tensor:
    channels = find(config, "num_channels", "in_channels", "in_chans", within=_VISION, default=3)
    side = image_side(config)
    return torch.randn(BATCH, channels if isinstance(channels, int) else 3, side, side, generator=generator)


def _features(config: Any, generator: torch.Generator) -> torch.Tensor:
    names = (
        "num_mel_bins",
        "input_feat_per_channel",
        "feature_size",
        "n_mels",
        "input_dim",
        "feature_projection_input_dim",
    )
    bins = find(config, *names, within=_AUDIO, default=80)
    length = 2 * find(config, "max_source_positions", within=_AUDIO, default=50)
    if getattr(config, "model_type", "") in {"speech_to_text"} or length > 3000:
        length = 100
    transposed = getattr(config, "model_type", "") in _FEATURES_FIRST
    shape = (BATCH, length, bins) if transposed else (BATCH, bins, length)
    return torch.randn(*shape, generator=generator)


_FEATURES_FIRST = {
    *("nemotron3_5_transcribe_asr_audio", "nemotron3_5_asr", "nemotron3_diarization", "gemma4_audio"),
    *("nemotron3_diarization_audio", "nemotron3_5_transcribe_audio", "nemotron_asr_streaming"),
    *("nemotron_asr_streaming_encoder", "granite_speech5_ctc", "granite_speech5_encoder"),
    *(
        "speech_to_text",
        "wav2vec2-bert",
        "seamless_m4t",
        "seamless_m4t_v2",
        "parakeet_ctc",
        "parakeet_encoder",
    ),
    *(
        "canary",
        "cohere_asr",
        "lasr_ctc",
        "lasr_encoder",
        "granite_speech",
        "phi4_multimodal",
        "parakeet_tdt",
        "parakeet_rnnt",
    ),
}


def _patches(config: Any, model: Any, generator: torch.Generator) -> dict[str, Any]:
    """Patches of two images, for the vision part of a model alone."""
    patch, merge = find(config, "patch_size", default=14), find(config, "spatial_merge_size", default=2)
    frames = find(config, "temporal_patch_size", default=1)
    channels = find(config, "in_channels", "in_chans", "num_channels", default=3)
    side = 2 * merge
    name = (
        "hidden_states" if "hidden_states" in inspect.signature(model.forward).parameters else "pixel_values"
    )
    patches = torch.randn(BATCH * side * side, channels * frames * patch * patch, generator=generator)
    return {name: patches, "grid_thw": torch.tensor([[1, side, side]] * BATCH)}


def _owner(model: Any, name: str) -> Any:
    """What has a method with its arguments: the model within, where there is one."""
    return model.model if hasattr(getattr(model, "model", None), name) else model


def _place_images(model: Any, given: dict[str, Any], generator: torch.Generator) -> None:
    """As many image tokens in the text as the images have features; no images if that is not known."""
    config = model.config
    names = inspect.signature(model.forward).parameters
    token = getattr(config, "image_token_id", None) or getattr(config, "image_token_index", None)
    if "image_grid_thw" in names:
        vision = getattr(config, "vision_config", config)
        patch = find(vision, "patch_size", default=14)
        merge = find(vision, "spatial_merge_size", "merge_size", default=2)
        frames = find(vision, "temporal_patch_size", default=1)
        channels = find(vision, "in_channels", "in_chans", "num_channels", default=3)
        side = 2 * merge if isinstance(merge, int) else 4
        rows = BATCH * side * side
        given["pixel_values"] = torch.randn(rows, channels * frames * patch * patch, generator=generator)
        given["image_grid_thw"] = torch.tensor([[1, side, side]] * BATCH)
        if "mm_token_type_ids" in names:
            given["mm_token_type_ids"] = None
    if token is None:
        return
    owner = _owner(model, "get_image_features")
    try:
        wanted = inspect.signature(owner.get_image_features).parameters
        more = {key: value for key, value in given.items() if key in wanted}
        if "image_sizes" in wanted:
            side = image_side(config)
            given["image_sizes"] = more["image_sizes"] = torch.tensor([[side, side]] * BATCH)
        with torch.no_grad():
            found = owner.get_image_features(**more)
        found = (
            getattr(found, "pooler_output", None)
            if not isinstance(found, (torch.Tensor, tuple, list))
            else found
        )
        if isinstance(found, torch.Tensor):
            count = found.numel() // found.shape[-1] // BATCH
        else:
            count = sum(one.numel() // one.shape[-1] for one in found) // BATCH
    except Exception:
        for name in ("pixel_values", "image_grid_thw", "image_sizes", "mm_token_type_ids"):
            given.pop(name, None)
        return
    ids = given["input_ids"]
    images = torch.full((BATCH, count), token, dtype=ids.dtype)
    given["input_ids"] = torch.cat([ids[:, :3], images, ids[:, 3:]], dim=1)
    if "mm_token_type_ids" in given:
        given["mm_token_type_ids"] = (given["input_ids"] == token).int()
    if "token_type_ids" in names and model.config.model_type in {"gemma3", "gemma4", "paligemma", "gemma3n"}:
        given["token_type_ids"] = (given["input_ids"] == token).int()


def _place_audio(model: Any, given: dict[str, Any]) -> None:
    config = model.config
    token = getattr(config, "audio_token_id", None) or getattr(config, "audio_token_index", None)
    if token is None:
        return
    owner = _owner(model, "get_audio_features")
    names = inspect.signature(model.forward).parameters
    for mask in ("feature_attention_mask", "input_features_mask"):
        if mask in names:
            length = given["input_features"].shape[-1]
            given[mask] = torch.ones(BATCH, length, dtype=torch.long)
    try:
        wanted = inspect.signature(owner.get_audio_features).parameters
        with torch.no_grad():
            found = owner.get_audio_features(**{key: value for key, value in given.items() if key in wanted})
        found = (
            getattr(found, "pooler_output", None)
            if not isinstance(found, (torch.Tensor, tuple, list))
            else found
        )
        if isinstance(found, torch.Tensor):
            count = found.numel() // found.shape[-1] // BATCH
        else:
            count = sum(one.numel() // one.shape[-1] for one in found) // BATCH
    except Exception:
        for name in ("input_features", "feature_attention_mask", "input_features_mask"):
            given.pop(name, None)
        return
    ids = given["input_ids"]
    sounds = torch.full((BATCH, count), token, dtype=ids.dtype)
    given["input_ids"] = torch.cat([ids[:, :3], sounds, ids[:, 3:]], dim=1)


def _series(config: Any, generator: torch.Generator) -> torch.Tensor:
    length = getattr(config, "context_length", 32)
    lags = max(getattr(config, "lags_sequence", None) or [0])
    channels = getattr(config, "num_input_channels", getattr(config, "input_size", 1))
    shape = (BATCH, length + lags) if channels == 1 and lags else (BATCH, length + lags, channels)
    return torch.randn(*shape, generator=generator)


def _time(config: Any, generator: torch.Generator, length: int) -> torch.Tensor:
    return torch.randn(BATCH, length, getattr(config, "num_time_features", 1), generator=generator)


def _before(config: Any) -> int:
    return int(config.context_length) + max(getattr(config, "lags_sequence", None) or [0])


def _video(config: Any, generator: torch.Generator) -> torch.Tensor:
    side = image_side(config)
    frames = find(config, "num_frames", "frames_per_clip", default=4)
    return torch.randn(BATCH, frames, 3, side, side, generator=generator)


def _wave(config: Any, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(BATCH, 3200, generator=generator)


_MAKERS: dict[str, Callable[[Any, torch.Generator], Any]] = {
    "input_ids": _ids,
    "pixel_values": _pixels,
    "pixel_values_videos": _video,
    "input_features": _features,
    "input_values": _wave,
    "past_values": _series,
    "past_time_features": lambda config, generator: _time(config, generator, _before(config)),
    "past_observed_mask": lambda config, generator: torch.ones_like(_series(config, generator)),
    "freq": lambda config, generator: torch.zeros(BATCH, 1, dtype=torch.long),
}
_ALWAYS = {"input_ids", "pixel_values", "input_features"}


def _noise(*shape: int) -> Callable[..., dict[str, Any]]:
    return lambda model, generator: {
        model.main_input_name: torch.randn(BATCH, *shape, generator=generator),
    }


def _resnet(stages: int = 4, out: tuple[str, ...] = ("stage4",)) -> Any:
    sizes = [8, 8, 16, 16][:stages]
    return transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=sizes, depths=[1] * stages, out_features=list(out)
    )


def _detr(**more: Any) -> dict[str, Any]:
    return {"base": {"use_timm_backbone": False, "backbone": None, "backbone_config": _resnet(), **more}}


def _forecast(model: Any, generator: torch.Generator) -> dict[str, Any]:
    config = model.config
    before, after = _before(config), config.prediction_length
    past = torch.rand(BATCH, before, generator=generator)
    return {
        "past_values": past,
        "past_time_features": torch.rand(BATCH, before, config.num_time_features, generator=generator),
        "past_observed_mask": torch.ones_like(past),
        "future_values": torch.rand(BATCH, after, generator=generator),
        "future_time_features": torch.rand(BATCH, after, config.num_time_features, generator=generator),
    }


def _queries(model: Any, generator: torch.Generator) -> dict[str, Any]:
    config = model.config
    return {
        "query_embeds": torch.randn(BATCH, 4, config.hidden_size, generator=generator),
        "encoder_hidden_states": torch.randn(BATCH, 6, config.encoder_hidden_size, generator=generator),
    }


def _decisions(model: Any, generator: torch.Generator) -> dict[str, Any]:
    config = model.config
    return {
        "states": torch.randn(BATCH, 5, config.state_dim, generator=generator),
        "actions": torch.randn(BATCH, 5, config.act_dim, generator=generator),
        "rewards": torch.randn(BATCH, 5, 1, generator=generator),
        "returns_to_go": torch.randn(BATCH, 5, 1, generator=generator),
        "timesteps": torch.arange(5).repeat(BATCH, 1),
        "attention_mask": torch.ones(BATCH, 5),
    }


def _pairs(model: Any, generator: torch.Generator) -> dict[str, Any]:
    return {"pixel_values": torch.randn(BATCH, 2, 3, 64, 64, generator=generator)}


def _regions(model: Any, generator: torch.Generator) -> dict[str, Any]:
    return {
        "input_ids": _ids(model.config, generator),
        "visual_feats": torch.randn(BATCH, 5, model.config.visual_feat_dim, generator=generator),
        "visual_pos": torch.rand(BATCH, 5, 4, generator=generator),
    }


# What single architectures need: classes, config (overrides), base, divisors, layers, inputs.
SPECIAL: dict[str, dict[str, Any]] = {
    "detr": _detr(),
    "conditional_detr": _detr(),
    "table-transformer": _detr(),
    "dab-detr": _detr(),
    "deformable_detr": _detr(num_feature_levels=1),
    **{
        name: {
            "divisors": (16,),
            "config": {
                "text_config": {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}}
            },
        }
        for name in ("glm4v", "glm4v_moe", "glm46v", "glmga", "qwen2_5_vl")
    },
    **{
        name: {
            "base": {"prediction_length": 4, "context_length": 16, "lags_sequence": [1, 2]},
            "inputs": _forecast,
        }
        for name in ("autoformer", "informer", "time_series_transformer")
    },
    "qwen2_vl": {
        "divisors": (16,),
        "config": {
            "text_config": {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
            "vision_config": {"hidden_size": 512},  # that of the text
        },
    },
    **{
        key: {"inputs": _noise(1, 3840)}
        for key in (
            *(
                "mimi_encoder",
                "omniasr_audio",
                "omniasr_ctc",
                "pe_audio_encoder",
                "pocket_tts_audio_tokenizer",
            ),
            "pocket_tts_audio_tokenizer_encoder",
        )
    },
    "muse_spark_audio": {"inputs": _noise(3840)},
    **{
        key: {"base": {"head_dim": 128}}
        for key in ("hunyuan_v1_dense", "hunyuan_v1_moe", "hunyuan_vl_text", "ministral")
    },
    "nemotron": {"base": {"num_key_value_heads": 8}},
    **{
        key: {
            "divisors": (16,),
            "config": {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
        }
        for key in ("glm4v_text", "glm_image_text", "paddleocr_vl_text", "qwen2_vl_text", "qwen2_5_vl_text")
    },
    "lfm2_moe": {"base": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2}},
    **{
        key: {"config": {"vision_config": {"image_size": 56}}}
        for key in ("mistral3", "lighton_ocr", "mistral_large4")
    },
    "pixtral": {"config": {"image_size": 56}},
    **{key: {"inputs": _pairs} for key in ("lightglue", "efficientloftr", "superglue")},
    "lxmert": {"inputs": _regions},
    "glm_ocr": {
        "divisors": (8,),
        "config": {"text_config": {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}}},
    },
    "glm_ocr_text": {
        "divisors": (8,),
        "config": {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
    },
    "gemma3": {"config": {"mm_tokens_per_image": 4}},
    "aria": {"base": {"projector_patch_to_query_dict": {"49": 4, "196": 8}}},
    "bamba": {"base": {"attn_layer_indices": [1]}},
    "blip-2": {"base": {"image_token_index": 500}},
    "instructblip": {"base": {"image_token_index": 500}},
    "blip_2_qformer": {"inputs": _queries},
    "decision_transformer": {"inputs": _decisions},
    "deepseek_v2": {"base": {"num_experts_per_tok": 2, "n_routed_experts": 4, "topk_method": "greedy"}},
    "dots1": {"base": {"num_experts_per_tok": 2, "n_routed_experts": 4, "n_shared_experts": 1}},
    "esm": {"base": {"vocab_size": 64, "pad_token_id": 1, "mask_token_id": 32}},
    "voxtral": {"base": {"audio_token_id": 500}},
    "step3p7": {"config": {"text_config": {"sliding_window": 8}}},
    "perceiver": {"config": {"num_self_attends_per_block": 2, "num_latents": 16}},
    "efficientnet": {"base": {"width_coefficient": 0.3, "depth_coefficient": 0.2}, "divisors": (1,)},
    "encodec": {"inputs": _noise(1, 3200)},
    "dac": {"inputs": _noise(1, 3200)},
    "mimi": {"inputs": _noise(1, 3840), "config": {"codebook_size": 64, "num_quantizers": 4}},
    "audio-spectrogram-transformer": {"inputs": _noise(1024, 128)},
}
