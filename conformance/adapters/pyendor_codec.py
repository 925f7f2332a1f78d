"""Adapter for the codecs of pyendor, through its library: ``PYENDOR_BACKEND`` chooses one."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from contract import Answer, overall, serve

from pyendor import checkpoint, convert, dtypes
from pyendor.errors import FormatError, UnsupportedError, UsageError
from pyendor.file import File


def answer(args: list[str]) -> Answer | None:
    commands = {"decode": decode, "slice": slice_of, "encode": encode}
    command = commands.get(args[0])
    if command is None:
        return None
    try:
        return command(*args[1:])
    except FormatError as error:
        where = {"tensor": error.tensor, "offset": error.offset}
        return {"result": "reject", "rule": error.rule, **where, "message": error.found}
    except (UnsupportedError, UsageError) as error:
        return {"result": "unsupported", "reason": str(error), "tensors": []}


def decode(path: str, *options: str) -> Answer:
    root = Path(path)
    tensors = []
    for opened in checkpoint.open_all(root):
        tensors += [tensor_of(opened, name, "--digests" in options) for name in opened.layout.tensors]
    return overall(tensors)


def tensor_of(opened: File, name: str, digests: bool) -> Answer:
    tensor = opened.tensor(name)
    if tensor.unsupported is not None:
        return {"name": name, "unsupported": tensor.unsupported}
    about: Answer = {"name": name, "dtype": tensor.dtype, "shape": list(tensor.shape)}
    about["sha256"] = sha256(opened.get_bytes(name)).hexdigest()
    if digests and tensor.meta is not None:
        try:
            opened.get_encoded(name).check_digest()
        except UnsupportedError:
            about["unverified"] = (tensor.meta.digest or "").split(":")[0]
    return about


def slice_of(path: str, name: str, start: str, stop: str) -> Answer:
    """Decodes the blocks that elements start to stop - 1 lie in, and no others."""
    first, last = int(start), int(stop)
    for opened in checkpoint.open_all(Path(path)):
        if name not in opened.layout.tensors:
            continue
        tensor = opened.tensor(name)
        tensor.require_supported()
        bits = dtypes.BY_NAME[tensor.dtype].bits
        if not 0 <= first <= last <= tensor.numel or first * bits % 8 or last * bits % 8:
            raise UsageError(f"elements {first} to {last} are no slice of the tensor")
        if bits % 8:
            data = opened.get_bytes(name)[first * bits // 8 : last * bits // 8]
        else:
            data = opened.cut(name, first, [last - first], [1])
        return {"result": "accept", "sha256": sha256(data).hexdigest()}
    raise UsageError(f"no tensor {name!r}")


def encode(source: str, target: str, *options: str) -> Answer:
    values = options[1] if options[:1] == ("--values",) else "auto"
    convert.compress(Path(source), Path(target), values=values)
    return {"result": "accept"}


if __name__ == "__main__":
    raise SystemExit(serve(answer))
