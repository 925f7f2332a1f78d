"""The names of the files of a checkpoint (spec 11): dense to Endor and back."""

from __future__ import annotations

import re

METHOD = "endor"
CONFIG = "config.json"
DENSE_CONFIG = "config.dense.json"
WEIGHTS = re.compile(r"model(?:[.-].*)?\.safetensors", re.DOTALL)
ENDOR_WEIGHTS = re.compile(r"model\.endor(?:[.-].*)?\.safetensors", re.DOTALL)
SHARD = re.compile(r"model(|\..*)-[0-9]{5}-of-[0-9]{5}\.safetensors", re.DOTALL)
INDEX = re.compile(r"model\.safetensors\.index(|\..*)\.json", re.DOTALL)
_UNSAFE = re.compile(r"[/\\:\x00-\x1f]")
# What stands for dense weights that are called otherwise (K-11).
OTHERWISE = re.compile(r"model\.endor-(.+)\.file\.safetensors", re.DOTALL)
_ESCAPED = re.compile(r"[%/\\:\x00-\x1f]")
SUFFIX = ".safetensors"
# The end of the name under which a file that belongs to no copy of the model is kept (K-12).
KEPT = ".dense"


def endor_name(name: str) -> str:
    """The Endor name of a dense weights file or index (K-11)."""
    if not is_index(name) and not _is_expressible(name):
        escaped = _ESCAPED.sub(lambda match: f"%{ord(match[0]):02X}", name.removesuffix(SUFFIX))
        return f"model.{METHOD}-{escaped}.file{SUFFIX}"
    stem = _stem(name)
    return f"{stem}.{METHOD}{name[len(stem) :]}"


def dense_name(name: str) -> str:
    """The dense name of an Endor weights file or index (K-11)."""
    match = OTHERWISE.fullmatch(name)
    if match is not None:
        return re.sub(r"%([0-9A-F]{2})", lambda code: chr(int(code[1], 16)), match[1]) + SUFFIX
    stem = _stem(name)
    return stem + name.removeprefix(f"{stem}.{METHOD}")


def _is_expressible(name: str) -> bool:
    """Whether a dense weights file is named so that ``.endor`` can be put into its name, and taken out."""
    if WEIGHTS.fullmatch(name) is None or ENDOR_WEIGHTS.fullmatch(name) is not None:
        return False
    return _UNSAFE.search(name) is None and OTHERWISE.fullmatch(f"model.{METHOD}{name[5:]}") is None


def original_index(name: str) -> str:
    """The name under which the dense index of that name is kept beside Endor weights (K-7)."""
    stem = _stem(name)
    return f"{stem}.dense{name[len(stem) :]}"


def is_index(name: str) -> bool:
    """Whether a file is an index of weights, by its name."""
    return INDEX.fullmatch(name) is not None


def is_kept_original(name: str) -> bool:
    """Whether a file is a dense index or config that is kept beside Endor weights."""
    return name == DENSE_CONFIG or (is_index(name) and is_variant(name, "dense"))


def is_loose(name: str) -> bool:
    """True if a file of that name is weights, and no shard."""
    return WEIGHTS.fullmatch(name) is not None and SHARD.fullmatch(name) is None


def is_no_name(part: str) -> bool:
    """Whether a part of a path is none of the names that files and folders may have in an index."""
    return part in {"", ".", ".."} or _UNSAFE.search(part) is not None


def _stem(name: str) -> str:
    return "model.safetensors.index" if is_index(name) else "model"


def infix(index: str) -> str:
    """What the name of an index has between its stem and ``.json``, such as ``.endor.fp16``."""
    match = INDEX.fullmatch(index)
    return match[1] if match else ""


def is_variant(index: str, variant: str) -> bool:
    """Whether an index is of a variant, or of a variant of that one; ``endorsed`` is none of ``endor``."""
    return f"{infix(index)}.".startswith(f".{variant}.")
