"""Adapter for the `safetensors` package: what it makes of the container alone (level L0).

    python conformance/run.py --level L0 --batch \
        --expect conformance/adapters/stock_safetensors.expected.json \
        -- python conformance/adapters/stock_safetensors.py

`deserialize` gives the bytes of every tensor whatever its dtype, which the front doors for NumPy
and PyTorch do not. Its reasons are text and name no rules.
"""

from __future__ import annotations

import json
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, deserialize

ACCEPT, REJECT, NOT_IMPLEMENTED = 0, 1, 64


def decode(path: str) -> tuple[int, dict[str, Any]]:
    try:
        tensors = deserialize(Path(path).read_bytes())
    except SafetensorError as error:
        return REJECT, {"result": "reject", "rule": None, "message": str(error)}
    listed = [
        {
            "name": name,
            "dtype": t["dtype"],
            "shape": t["shape"],
            "sha256": sha256(t["data"]).hexdigest(),
        }
        for name, t in tensors
    ]
    return ACCEPT, {"result": "accept", "tensors": listed}


def answer(args: list[str]) -> tuple[int, dict[str, Any]]:
    if args[0] != "decode":
        return NOT_IMPLEMENTED, {}
    return decode(args[1])


def batch() -> None:
    for line in sys.stdin:
        code, output = answer(json.loads(line)["args"])
        print(json.dumps({"exit": code, "output": output}), flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["batch"]:
        batch()
    else:
        status, document = answer(sys.argv[1:])
        print(json.dumps(document))
        raise SystemExit(status)
