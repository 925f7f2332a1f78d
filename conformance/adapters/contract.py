"""The adapter's side of the contract in Python: arguments or lines in, one JSON document out."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

Answer = dict[str, Any]
EXIT = {"accept": 0, "reject": 1, "unsupported": 2}
NOT_IMPLEMENTED = 64


def serve(answer: Callable[[list[str]], Answer | None]) -> int:
    """Runs an adapter. ``answer`` takes the arguments; None says that it does not offer such a command."""
    if sys.argv[1:] == ["batch"]:
        for line in sys.stdin:
            output = answer(json.loads(line)["args"])
            print(json.dumps({"exit": exit_code(output), "output": output or {}}), flush=True)
        return 0
    output = answer(sys.argv[1:])
    print(json.dumps(output or {}))
    return exit_code(output)


def exit_code(output: Answer | None) -> int:
    return NOT_IMPLEMENTED if output is None else EXIT[output["result"]]


def overall(tensors: list[Answer], reason: str | None = None) -> Answer:
    """The answer over tensors none of which is invalid."""
    unsupported = [t.get("unsupported") or t.get("unverified") for t in tensors]
    reasons = [reason] if reason is not None else [text for text in unsupported if text]
    if reasons:
        return {"result": "unsupported", "reason": reasons[0], "tensors": tensors}
    return {"result": "accept", "tensors": tensors}
