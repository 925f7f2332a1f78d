"""That a checkpoint holds exactly the weights of a model: the one check of all that load whole models."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from pyendor.errors import UsageError, quote

_SHOWN = 5


def unexpected(model: Any, surplus: Collection[str]) -> list[str]:
    """Of the tensors that a model has no use for those that transformers would call unexpected.

    Args:
        model: a module; one of transformers names patterns of what its checkpoints may hold besides.
        surplus: names, as transformers renames them.
    """
    patterns = list(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())
    # Buffers that old checkpoints hold and today's models compute.
    buffers = [name for name, _ in model.named_buffers()]
    if any(name.endswith("rotary_emb.inv_freq") for name in buffers):
        patterns.append(r"rotary_emb\.inv_freq")
    if any(name.endswith("position_ids") for name in buffers):
        patterns.append(r"(^|\.)position_ids$")
    return sorted(name for name in surplus if not any(re.search(pattern, name) for pattern in patterns))


def require(
    path: str,
    *,
    missing: Collection[str] = (),
    surplus: Collection[str] = (),
    mismatched: Collection[Any] = (),
    errors: Collection[str] = (),
    advice: str = "Name the model_class that it is of, or take what is there with strict=False",
) -> None:
    """Require that nothing is missing, left over or of another shape.

    Args:
        path: of the checkpoint.
        missing: weights of the model that the checkpoint lacks.
        surplus: tensors that the model has no use for.
        mismatched: weights of another shape, as names or as tuples that begin with the name.
        errors: what else transformers reports.
        advice: what to do about it.

    Raises:
        UsageError: there are any.
    """
    faults = [
        f"{what}: {', '.join(quote(str(key[0] if isinstance(key, tuple) else key)) for key in keys[:_SHOWN])}"
        + (f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else "")
        for what, keys in (
            ("it lacks", sorted(missing)),
            ("it has besides", sorted(surplus)),
            ("of another shape are", sorted(mismatched, key=str)),
            ("errors", sorted(errors)),
        )
        if keys
    ]
    if faults:
        raise UsageError(
            f"{quote(path)} does not hold exactly the weights of the model; {'; '.join(faults)}. {advice}"
        )
