"""Adapter for the ``endor`` command: what people run, not the library below it.

``endor verify --sums --json`` tells of every tensor what the contract asks for. The command runs in this
process, so that batch mode spares its start.
"""

from __future__ import annotations

import contextlib
import io
import json

from contract import Answer, overall, serve

from pyendor import cli


def endor(*arguments: str) -> tuple[int, Answer]:
    """Exit code and JSON of a run of the command."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            code = cli.app([*arguments, "--json"], standalone_mode=False)
        except SystemExit as ended:
            code = ended.code
    return int(code or 0), json.loads(out.getvalue())


def answer(args: list[str]) -> Answer | None:
    if args[0] == "decode":
        return decode(args[1], "--digests" in args[2:])
    if args[0] == "encode":
        code, output = endor(
            "compress", *args[1:]
        )  # the last two are --values and what they are, or there are none
        return {"result": "accept"} if code == 0 else failed(output)
    return None


def decode(path: str, digests: bool) -> Answer:
    code, found = endor("verify", path, "--sums", "--digests" if digests else "--no-digests")
    if "error" in found:
        return failed(found)
    assert code == (0 if found["ok"] else 1)
    for problem in found["problems"]:
        if problem["kind"] == "invalid":
            where = {key: problem[key] for key in ("rule", "tensor", "offset", "message")}
            return {"result": "reject", **where}
    problems = {problem["tensor"]: problem["message"] for problem in found["problems"]}
    tensors: list[Answer] = []
    for one in found["sums"]:
        reason = problems.pop(one["name"], None)
        # It decodes, and yet there is something that this build lacks: its digest could not be checked.
        tensors.append(one if reason is None else one | {"unverified": reason.split("'")[-2]})
    whole = problems.pop(None, None)
    tensors += [{"name": name, "unsupported": reason} for name, reason in problems.items()]
    return overall(tensors, whole)


def failed(output: Answer) -> Answer:
    error = output["error"]
    if error["type"] == "FormatError":
        return {"result": "reject", **{key: error[key] for key in ("rule", "tensor", "offset", "message")}}
    return {"result": "unsupported", "reason": error["message"], "tensors": []}


if __name__ == "__main__":
    raise SystemExit(serve(answer))
