"""The JSON of a checkpoint: indices (spec 11, K-1) and configs (K-7, K-8)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyendor import jsontext
from pyendor.errors import FormatError, UnsupportedError, UsageError, quote
from pyendor.naming import CONFIG, METHOD, is_no_name
from pyendor.stamps import Stamp

LONGEST_JSON = 100_000_000


def read_index(path: Path, stamp: Stamp | None = None, *, below: bool = False) -> dict[str, str]:
    """The ``weight_map`` of an index: file names by physical tensor (K-1).

    With its stamp, it has to be what it was. With ``below`` files may be in folders.
    """
    weight_map = read_object(path, stamp).get("weight_map")
    if not isinstance(weight_map, dict):
        raise FormatError("K-1", "the index has no object 'weight_map'", path=path)
    for tensor, name in weight_map.items():
        parts = name.split("/") if below and jsontext.is_string(name) else [name]
        if any(not jsontext.is_string(one) or is_no_name(one) for one in parts):
            found = f"the index names {quote(str(name))}, which is no file of its directory"
            raise FormatError("K-1", found, tensor=tensor, path=path)
    return weight_map


def read_dense_index(path: Path, stamp: Stamp | None = None) -> dict[str, str]:
    """The ``weight_map`` of a dense index, in the JSON that Hugging Face libraries accept.

    Files may lie below the directory, never outside of it. With its stamp, it has to be what it was.
    """
    try:
        weight_map = json.loads(_text(path, stamp))["weight_map"]
        files = set(weight_map.values())
    except UsageError:  # a ValueError too
        raise
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise FormatError("K-1", f"not an index with an object 'weight_map': {error!r}", path=path) from error
    for name in files:
        parts = name.split("/") if isinstance(name, str) else [""]
        if any(is_no_name(part) for part in parts):
            found = f"the index names {quote(str(name))}, which is no file below its directory"
            raise FormatError("K-1", found, path=path)
    return dict(weight_map)


def read_object(path: Path, stamp: Stamp | None = None) -> dict[str, Any]:
    """A small JSON file that is one object, strictly read; numbers come as text."""
    try:
        return jsontext.parse(_text(path, stamp))
    except UnicodeDecodeError as error:
        raise FormatError("K-1", f"not UTF-8: {error.reason}", offset=error.start, path=path) from error
    except FormatError as error:
        raise error.located(path=path) from None


def index_text(weight_map: Mapping[str, str], metadata: Mapping[str, Any]) -> str:
    """The text of an index, laid out as Hugging Face libraries do it."""
    ordered = dict(sorted(weight_map.items()))
    return json.dumps({"metadata": dict(metadata), "weight_map": ordered}, indent=2) + "\n"


def read_config(path: Path, stamp: Stamp | None = None) -> dict[str, Any]:
    """A ``config.json`` (K-8). Other software writes it, so what Python's reader admits is admitted.

    With its stamp, it has to be what it was.
    """
    try:
        config = json.loads(_text(path, stamp))
    except UsageError:  # a ValueError too
        raise
    except (ValueError, RecursionError) as error:
        raise FormatError("K-8", f"not JSON: {error}", path=path) from error
    if not isinstance(config, dict):
        raise FormatError("K-8", "not a JSON object", path=path)
    return config


def quantization(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The ``quantization_config`` of a config, None if there is none."""
    found = config.get("quantization_config")
    return found if isinstance(found, dict) else None


def endor_config(config: Mapping[str, Any], version: str) -> dict[str, Any]:
    """A dense config with our ``quantization_config``, one that was there kept inside (K-7).

    ``version`` is the highest format version of the weights.
    """
    ours: dict[str, Any] = {"quant_method": METHOD, "version": version}
    inner = config.get("quantization_config")
    if inner is not None:
        ours["inner"] = inner
    return {**config, "quantization_config": ours}


def dense_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The reverse of :func:`endor_config`, for a checkpoint that has lost the original."""
    restored = {key: value for key, value in config.items() if key != "quantization_config"}
    inner = (quantization(config) or {}).get("inner")
    return restored if inner is None else {**restored, "quantization_config": inner}


def config_text(config: Mapping[str, Any]) -> str:
    """The text of a config, laid out as Hugging Face libraries do it."""
    try:
        return json.dumps(config, indent=2) + "\n"
    except RecursionError:
        raise UnsupportedError(f"{CONFIG} is nested too deep for this build") from None


def _text(path: Path, stamp: Stamp | None = None) -> str:
    with open(path if stamp is None else stamp.open(), encoding="utf-8") as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > LONGEST_JSON:
            raise UnsupportedError(f"{quote(str(path))} has {size} bytes, more than this build reads")
        return stream.read()
