"""Every architecture of transformers, offloaded and loaded, against the dense model, bit for bit.

    python tests/architectures.py                          all, into benchmarks/results/architectures.json
    python tests/architectures.py --only llama,t5 --modes disk,load --out build/some.json
    python tests/architectures.py --table                  the page docs/architectures.md from the results

Of each architecture :mod:`tiny` makes a small model with inputs. It is saved by transformers, compressed, and
loaded in each mode; forward runs twice, then ``generate`` and the methods for parts of a model, and what they
return is compared when all have run. Each architecture runs in a process of its own, forked from one that has
imported all. A run that was interrupted resumes.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import inspect
import json
import os
import platform
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers

sys.path.insert(0, str(Path(__file__).parent))
import tiny

import pyendor.offload
import pyendor.transformers
from pyendor import convert
from pyendor.errors import EndorError, UnsupportedError, UsageError

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/results/architectures.json"
PAGE = ROOT / "docs/architectures.md"

MODES: dict[str, tuple[str, Callable[[Path, Path, Any], Any]]] = {
    "host": (
        "`offload_model`, weights compressed in host memory",
        lambda dense, endor, kind: pyendor.offload.offload_model(endor),
    ),
    "disk": (
        "`offload_model`, compressed on disk",
        lambda dense, endor, kind: pyendor.offload.offload_model(endor, host_memory=0),
    ),
    "plain": (
        "`offload_model`, plain safetensors on disk",
        lambda dense, endor, kind: pyendor.offload.offload_model(dense, host_memory=0),
    ),
    "module": (
        "`offload_model` of a module in memory",
        lambda dense, endor, kind: pyendor.offload.offload_model(kind.from_pretrained(dense)),
    ),
    "load": (
        "`from_pretrained`",
        lambda dense, endor, kind: pyendor.transformers.from_pretrained(endor),
    ),
    "keep": (
        "`from_pretrained(keep_compressed=True)`",
        lambda dense, endor, kind: pyendor.transformers.from_pretrained(endor, keep_compressed=True),
    ),
}
# Outcomes, from good to bad.
EXACT, ALIGNMENT, REFUSED, FAILS, WRONG = "exact", "alignment", "refused", "fails", "wrong"
OUTCOMES = {
    EXACT: "every bit is that of the dense model",
    ALIGNMENT: "differs as the dense model differs from itself when its weights lie elsewhere in memory",
    REFUSED: "a `UsageError` or `UnsupportedError` names what cannot be done",
    FAILS: "running the model raises an exception",
    WRONG: "another result, without an exception",
}
SECONDS = 240  # for one architecture

Observed = dict[str, list[torch.Tensor]]


# One architecture ------------------------------------------------------------------------------------------


def examine(model_type: str, modes: list[str], before: dict[str, Any] | None = None) -> dict[str, Any]:
    """What becomes of one architecture in each mode; ``before`` is what an earlier run found."""
    made = _make(model_type, (before or {}).get("config"))
    if isinstance(made, dict):
        return made
    model, arguments, number = made
    kind = type(model)
    result: dict[str, Any] = {
        "class": kind.__name__,
        "config": number,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "inputs": sorted(arguments),
        "modes": {},
    }
    if not modes:
        return result
    with tempfile.TemporaryDirectory() as folder:
        dense, endor = Path(folder, "dense"), Path(folder, "endor")
        model.save_pretrained(dense)
        del model
        convert.compress(dense, endor)
        reference, info = kind.from_pretrained(dense, output_loading_info=True)
        lacking = {
            key: sorted(map(str, info[key]))[:5] for key in ("missing_keys", "unexpected_keys") if info[key]
        }
        if lacking:
            result["stock"] = lacking
        # PyTorch multiplies in another way by weights that require gradients, without gradients too.
        reference.eval().requires_grad_(False)
        calls = _calls(reference, arguments)
        result["calls"] = sorted(calls)
        wanted = _observe(reference, calls)
        if not _same(wanted, _observe(reference, calls)):
            return {"untested": "the dense model gives another result each time", "class": kind.__name__}
        shifted: list[Observed] = []
        for mode in modes:
            result["modes"][mode] = _outcome(mode, dense, endor, kind, calls, wanted, reference, shifted)
    return result


def _make(model_type: str, known: str | None = None) -> tuple[Any, dict[str, Any], str] | dict[str, Any]:
    """A model with arguments that it runs with, and the number of its config; or why there is none.

    The class and number that are known to do are tried first.
    """
    failures: list[str] = []
    began = time.process_time()
    tries = [(kind, number) for kind in tiny.classes_of(model_type) for number in range(tiny.CONFIGS)]
    tries.sort(key=lambda one: f"{one[0].__name__} {one[1]}" != known)
    for kind, number in tries:
        config = tiny.config(model_type, number)
        if config is not None:
            try:
                model = tiny.build(kind, config)
                arguments = tiny.inputs(model)
                with torch.no_grad():
                    outputs = _tensors(model(**arguments))
                if not any(one.is_floating_point() and one.numel() for one in outputs):
                    raise ValueError("no output")
                return model, arguments, f"{kind.__name__} {number}"
            except ImportError as error:
                found = re.search(r"requires the (\S+) library|No module named '(\S+)'", str(error))
                needs = next(filter(None, found.groups()), "?") if found else str(error)[:80]
                return {"needs": needs}
            except Exception as error:  # what a small model of this kind lacks is not this project's
                where = traceback.extract_tb(error.__traceback__)[-1]
                line = f"{kind.__name__}: {type(error).__name__}: {str(error)[:160]}"
                failures.append(f"{line} ({Path(where.filename).name}:{where.lineno})")
        if time.process_time() - began > SECONDS / 20:
            break
    return {"untested": (failures or ["no class or no config"])[0], "tries": failures[:4] + failures[-1:]}


def _calls(model: Any, arguments: dict[str, Any]) -> dict[str, tuple[str, dict[str, Any]]]:
    """The methods that run on the dense model, by label: which, and with what."""
    calls = {"forward": ("", arguments), "forward again": ("", arguments)}
    methods = [name for name in dir(type(model)) if re.match(r"^(get_.*_features|encode|decode)$", name)]
    for name in methods:
        with contextlib.suppress(Exception):
            accepted = inspect.signature(getattr(model, name)).parameters
            given = {key: value for key, value in arguments.items() if key in accepted}
            if name == "decode":
                codes = model.encode(**arguments)
                given = {"audio_codes": codes.audio_codes}
                if "audio_scales" in accepted:
                    given["audio_scales"] = codes.audio_scales
            _tensors(getattr(model, name)(**given))
            calls[name] = (name, given)
    if callable(getattr(model, "can_generate", None)) and model.can_generate():
        given = {key: value for key, value in arguments.items() if not key.startswith("decoder_")}
        given |= {"max_new_tokens": 3, "do_sample": False}
        if model.config.is_encoder_decoder and model.generation_config.decoder_start_token_id is None:
            given["decoder_start_token_id"] = 1
        with contextlib.suppress(Exception):
            torch.manual_seed(3)
            if _tensors(model.generate(**given)):
                calls["generate"] = ("generate", given)
    return calls


def _observe(model: Any, calls: dict[str, tuple[str, dict[str, Any]]]) -> Observed:
    """What all the calls return; nothing is copied."""
    seen: Observed = {}
    for label, (name, arguments) in calls.items():
        torch.manual_seed(3)
        copied = {key: value.clone() if torch.is_tensor(value) else value for key, value in arguments.items()}
        with torch.no_grad():
            try:
                seen[label] = _tensors(getattr(model, name)(**copied) if name else model(**copied))
            except Exception as error:
                error.add_note(label)
                raise
    return seen


def _tensors(value: Any) -> list[torch.Tensor]:
    """All tensors within a result, those of caches not."""
    if torch.is_tensor(value):
        return [value]
    if isinstance(value, dict):
        return [one for key in value for one in _tensors(value[key])]
    if isinstance(value, (list, tuple)):
        return [one for part in value for one in _tensors(part)]
    return []


def _same(one: Observed, other: Observed) -> bool:
    return all(_equal(a, b) for label in one for a, b in zip(one[label], other[label], strict=True))


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether all bits are alike, those of NaN too."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    first, second = (tensor.detach().contiguous().view(-1) for tensor in (one, other))
    if first.dtype.itemsize and first.numel():
        return torch.equal(first.view(torch.uint8), second.view(torch.uint8))
    return True


def _outcome(
    mode: str,
    dense: Path,
    endor: Path,
    kind: Any,
    calls: dict[str, tuple[str, dict[str, Any]]],
    wanted: Observed,
    reference: Any,
    shifted: list[Observed],
) -> dict[str, Any]:
    """The outcome of one mode, and the details of anything but an exact one."""
    model = None
    try:
        model = MODES[mode][1](dense, endor, kind).eval().requires_grad_(False)
        got = _observe(model, calls)
        differing = _differences(wanted, got)
        if not differing and str(model.device) != "cpu":
            raise AssertionError(f"model.device is {model.device}")
    except Exception as error:
        outcome = REFUSED if isinstance(error, (UnsupportedError, UsageError)) else FAILS
        return {"outcome": outcome, "detail": _described(error).replace(str(endor.parent), "")}
    finally:
        if model is not None:
            with contextlib.suppress(EndorError):
                pyendor.offload.close(model)
    if not differing:
        return {"outcome": EXACT}
    if not shifted:
        shifted += [_observe(moved, calls) for moved in _moved(reference)]
    detail = ", ".join(f"{label}: {size:.3g}" for label, size in differing.items())
    if _by_alignment(wanted, got, shifted):
        return {"outcome": ALIGNMENT, "detail": detail}
    return {"outcome": WRONG, "detail": detail}


def _described(error: Exception) -> str:
    where = traceback.extract_tb(error.__traceback__)[-1]
    label = f"{error.__notes__[-1]}: " if getattr(error, "__notes__", None) else ""
    return f"{label}{type(error).__name__}: {str(error)[:240]} ({Path(where.filename).name}:{where.lineno})"


def _differences(wanted: Observed, got: Observed) -> dict[str, float]:
    """The largest difference of each call that has one; infinite where shapes differ."""
    found = {}
    for label, tensors in wanted.items():
        if len(tensors) != len(got[label]):
            found[label] = float("inf")
            continue
        sizes = [_distance(a, b) for a, b in zip(tensors, got[label], strict=True) if not _equal(a, b)]
        if sizes:
            found[label] = max(sizes)
    return found


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    if one.shape != other.shape or one.dtype != other.dtype:
        return float("inf")
    difference = (one.double() - other.double()).abs()
    return float("inf") if torch.isnan(difference).any() else float(difference.max())


def _moved(reference: Any) -> Iterator[Any]:
    """The dense model with its weights at other addresses: at multiples of a page plus so many bytes."""
    originals = {name: parameter.data for name, parameter in reference.named_parameters()}
    for offset in (0, 256, 64, 32, 16, 4):
        for name, parameter in reference.named_parameters():
            data = originals[name]
            nbytes = data.numel() * data.element_size()
            memory = torch.empty(nbytes + 3 * 4096, dtype=torch.uint8)
            start = -memory.data_ptr() % 4096 + max(offset, data.element_size()) * (offset > 0)
            place = memory[start : start + nbytes].view(data.dtype).view(data.shape)
            parameter.data = place.copy_(data)
        yield reference
    for name, parameter in reference.named_parameters():
        parameter.data = originals[name]


def _by_alignment(wanted: Observed, got: Observed, shifted: list[Observed]) -> bool:
    """True if each tensor is one that the dense model gives too, or as close as these are to each other."""
    for label, tensors in wanted.items():
        for number, one in enumerate(tensors):
            mine = got[label][number]
            others = [seen[label][number] for seen in shifted]
            if _equal(one, mine) or any(_equal(other, mine) for other in others):
                continue
            spread = max(_distance(one, other) for other in others)
            if not one.is_floating_point() or not _distance(one, mine) <= 8 * spread:
                return False
    return True


# All of them -----------------------------------------------------------------------------------------------


def run(names: list[str], modes: list[str], out: Path, workers: int, again: bool) -> dict[str, Any]:
    """Examines architectures, each in a process of its own, and writes each result as it comes."""
    results = json.loads(out.read_text()) if out.is_file() else {}
    results["versions"] = versions()
    found = results.setdefault("architectures", {})
    waiting = [
        name
        for name in names
        if again
        or name not in found
        or not set(modes) <= found[name].get("modes", dict.fromkeys(modes)).keys()
    ]
    running: dict[int, tuple[str, Path, float]] = {}
    # What all of them need is made before they are forked, and is left alone by their collectors.
    with contextlib.suppress(ImportError, AttributeError):
        importlib.import_module("torch._dynamo")
        from transformers import conversion_mapping

        conversion_mapping.get_checkpoint_conversion_mapping("legacy")
    gc.collect()
    gc.freeze()
    with tempfile.TemporaryDirectory() as folder:
        while waiting or running:
            while waiting and len(running) < workers:
                name = waiting.pop(0)
                place = Path(folder, f"{len(waiting)}.json")
                running[_start(name, modes, place, found.get(name))] = (name, place, time.monotonic())
            pid, status = os.wait()
            name, place, began = running.pop(pid)
            result = (
                json.loads(place.read_text())
                if place.is_file()
                else {"untested": f"ended with status {status}"}
            )
            result["seconds"] = round(time.monotonic() - began, 1)
            found[name] = result
            out.parent.mkdir(parents=True, exist_ok=True)
            draft = out.with_suffix(".new")
            draft.write_text(_text(results["versions"], found))
            draft.replace(out)
            print(f"{name}: {brief(result)}", flush=True)
    return results


def _text(about: dict[str, str], found: dict[str, Any]) -> str:
    """JSON with a line for each architecture."""
    lines = (f"  {json.dumps(name)}: {json.dumps(found[name])}" for name in sorted(found))
    return f'{{"versions": {json.dumps(about)}, "architectures": {{\n' + ",\n".join(lines) + "\n}}\n"


def _start(name: str, modes: list[str], place: Path, before: dict[str, Any] | None) -> int:
    """The number of a process that examines one architecture and writes what it finds."""
    pid = os.fork()
    if pid:
        return pid
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    try:
        result = examine(name, modes, before)
    except BaseException as error:
        traceback.print_exc()
        result = {"untested": f"{type(error).__name__}: {str(error)[:240]}"}
    draft = place.with_suffix(".draft")
    draft.write_text(json.dumps(result))
    draft.replace(place)
    os._exit(0)


def versions() -> dict[str, str]:
    """What the results hold for."""
    return {
        "pyendor": pyendor.__version__,
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def brief(result: dict[str, Any]) -> str:
    """A result in one line."""
    if "modes" not in result:
        return f"needs {result['needs']}" if "needs" in result else f"untested: {result['untested']}"
    return ", ".join(f"{mode} {one['outcome']}" for mode, one in result["modes"].items())


def worst(result: dict[str, Any]) -> str:
    """The worst outcome of an architecture in any mode."""
    order = list(OUTCOMES)
    return max((one["outcome"] for one in result["modes"].values()), key=order.index)


def page(results: dict[str, Any]) -> str:
    """The page of the documentation that shows the results."""
    found = results["architectures"]
    tested = {name: one for name, one in found.items() if one.get("modes")}
    needs = {name: one["needs"] for name, one in found.items() if "needs" in one}
    rest = sorted(found.keys() - tested.keys() - needs.keys())
    bad = {name: one for name, one in tested.items() if worst(one) not in {EXACT, ALIGNMENT}}
    near = {name: one for name, one in tested.items() if worst(one) == ALIGNMENT}
    listed = ", ".join(f"{key} {value}" for key, value in results["versions"].items())
    lines = [
        "# Architectures",
        "",
        "<!-- made by tests/architectures.py --table -->",
        "",
        "Offloading and loading of the architectures of Transformers, against the dense model, bit for bit",
        f"({listed}).",
        "A small model of each is made from its default config, saved by Transformers and compressed. It",
        "runs forward twice, generates, and runs its methods for parts (`get_image_features`, `encode`).",
        "The dense model is frozen (`requires_grad_(False)`): PyTorch multiplies in another way by weights",
        "that require gradients. `python tests/architectures.py` repeats the runs.",
        "",
        "| mode | " + " | ".join(OUTCOMES) + " |",
        "| --- |" + " ---: |" * len(OUTCOMES),
    ]
    for mode, (what, _) in MODES.items():
        counts = [
            sum(one["modes"].get(mode, {}).get("outcome") == outcome for one in tested.values())
            for outcome in OUTCOMES
        ]
        lines.append(f"| {what} | " + " | ".join(map(str, counts)) + " |")
    lines += ["", *(f"- **{outcome}**: {what}." for outcome, what in OUTCOMES.items()), ""]
    lines.append(
        f"{len(tested)} architectures were run; {len(tested) - len(bad)} of them are right in every mode."
    )
    if needs:
        packages = sorted(set(needs.values()))
        parts = (f"{', '.join(n for n in sorted(needs) if needs[n] == p)} ({p})" for p in packages)
        lines.append(f"{len(needs)} need a package that was not installed: {'; '.join(parts)}.")
    if rest:
        what = "of which no small model with inputs was made or run, so that nothing is known of them here"
        lines.append(f"There are {len(rest)} {what}: {_listed(rest)}")
    if bad:
        lines += [
            "",
            "## Not right in every mode",
            "",
            "| architecture | modes | outcome |",
            "| --- | --- | --- |",
        ]
        lines += [line for name in sorted(bad) for line in _rows(name, bad[name])]
    if near:
        lines += ["", "## Differ by memory alignment only", ""]
        lines.append(
            "Kernels of PyTorch may add in another order when operands lie elsewhere in memory: the dense"
        )
        lines.append("model gives the same difference when its weights are moved. " + _listed(near))
    lines += ["", "## Right in every mode", ""]
    lines.append(_listed(tested.keys() - bad.keys() - near.keys()))
    return "\n".join(lines) + "\n"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) + "."


def _rows(name: str, result: dict[str, Any]) -> Iterator[str]:
    """Rows of a table, one for each finding."""
    findings: dict[str, list[str]] = {}
    for mode, one in result["modes"].items():
        if one["outcome"] not in {EXACT, ALIGNMENT}:
            detail = re.sub(r"\s+", " ", one["detail"]).replace("|", "/").replace("<", "&lt;")[:200]
            findings.setdefault(f"{one['outcome']}: {detail}", []).append(mode)
    return (f"| {name} | {', '.join(modes)} | {finding} |" for finding, modes in findings.items())


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", help="model types, separated by commas")
    parser.add_argument("--modes", default=",".join(MODES), help="modes, separated by commas")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--again", action="store_true", help="examine also what the results have")
    parser.add_argument("--table", action="store_true", help="make the page from the results")
    options = parser.parse_args()
    if options.table:
        PAGE.write_text(page(json.loads(options.out.read_text())))
        return
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    names = options.only.split(",") if options.only else tiny.model_types()
    run(names, list(filter(None, options.modes.split(","))), options.out, options.workers, options.again)


if __name__ == "__main__":
    main()
