"""Runs a case and compares the answer with what the manifest expects."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from runner.adapter import Answer
from runner.corpus import HERE, Case, path_of

Ask = Callable[[list[str]], Answer]
PASS, WRONG_RULE, FAIL, KNOWN = "pass", "wrong rule", "fail", "known"
NOT_OFFERED = "not offered"


@dataclass
class Outcome:
    case: Case
    status: str
    got: str
    result: str = ""
    seconds: float = 0.0
    peak_mib: float | None = None

    def fail(self, got: str) -> None:
        self.status, self.got = FAIL, got


def judge(case: Case, ask: Ask, baseline_mib: float, slow: float) -> Outcome:
    with path_of(case) as path:
        if case["category"] == "encode":
            return judge_encode(case, ask, path)
        if case["category"] == "slice":
            return judge_slices(case, ask, path)
        answer = ask(["decode", str(path), *(["--digests"] if case.get("digests") else [])])
    outcome = judge_decode(case, answer)
    check_budgets(outcome, baseline_mib, slow)
    return outcome


def wanted_results(case: Case) -> list[str]:
    if case["expect"] == "either":
        return list(case["answers"])
    return ["accept" if case["expect"] == "accept-noncanonical" else case["expect"]]


def expected(case: Case) -> str:
    """What is expected, in words."""
    words = " or ".join(wanted_results(case))
    if case["category"] == "encode":
        return "the canonical file"
    if case["category"] == "slice":
        outcomes = {"accept": "right", "reject": "rejected", "unsupported": "unsupported"}
        return f"every slice {outcomes[case['expect']]}"
    return words + (f" ({' '.join(case['error_rules'])})" if "error_rules" in case else "")


def judge_decode(case: Case, answer: Answer) -> Outcome:
    outcome = Outcome(case, PASS, describe(answer), answer.result, answer.seconds, answer.peak_mib)
    if answer.result not in wanted_results(case):
        outcome.status = FAIL
    elif answer.result == "reject":
        rule = answer.output.get("rule")
        if rule is not None and rule not in case.get("error_rules", []):
            outcome.status = WRONG_RULE
    else:
        difference = compare(case.get("tensors", []), answer.output.get("tensors", []))
        if difference:
            outcome.fail(f"{answer.result}, but {difference}")
    return outcome


def describe(answer: Answer) -> str:
    if answer.not_implemented:
        return "not implemented"
    if answer.crash:
        return f"crash: {answer.crash}"
    if answer.result == "reject":
        rule = answer.output.get("rule") or "no rule"
        return f"reject ({rule}) {ascii(answer.output.get('message') or '')[1:-1][:120]}".rstrip()
    return answer.result


def compare(wanted: list[Any], got: Any) -> str:
    """The first difference in words; the order of the tensors does not matter."""
    if not isinstance(got, list) or not all(isinstance(t, dict) and "name" in t for t in got):
        return "`tensors` is not a list of objects with names"
    by_name = {t["name"]: t for t in got}
    if len(by_name) != len(got):
        return "a name is listed twice"
    for tensor in wanted:
        name = ascii(tensor["name"])
        if tensor["name"] not in by_name:
            return f"tensor {name} is missing"
        other = by_name.pop(tensor["name"])
        if bool(tensor.get("unsupported")) != bool(other.get("unsupported")):
            return f"tensor {name} is {'' if other.get('unsupported') else 'not '}unsupported"
        if tensor.get("unsupported"):
            continue
        for key in ("dtype", "shape", "sha256", "unverified"):
            if tensor.get(key) != other.get(key):
                return f"tensor {name}: {key} {other.get(key)!a}, not {tensor.get(key)!a}"
    return f"there is no tensor {next(iter(by_name))!a}" if by_name else ""


def check_budgets(outcome: Outcome, baseline_mib: float, slow: float) -> None:
    budgets = outcome.case.get("budgets", {})
    if "seconds" in budgets and outcome.seconds > budgets["seconds"] * slow:
        outcome.fail(f"{outcome.got}, after {outcome.seconds:.1f} s")
    if "memory_mib" in budgets and outcome.peak_mib is not None:
        used = outcome.peak_mib - baseline_mib
        if used > budgets["memory_mib"]:
            budget = budgets["memory_mib"]
            outcome.fail(f"{outcome.got}, with {used:.0f} MiB of memory, not {budget}")


def judge_slices(case: Case, ask: Ask, path: Path) -> Outcome:
    outcome = Outcome(case, PASS, "as expected", case["expect"])
    for name, start, stop, digest in case["slices"]:
        answer = ask(["slice", str(path), name, str(start), str(stop)])
        outcome.seconds += answer.seconds
        if answer.not_implemented:
            outcome.status, outcome.got = NOT_OFFERED, describe(answer)
            break
        what = f"slice {name!a} {start} {stop}: {describe(answer)}"
        if digest is None and answer.result == case["expect"]:
            continue
        if digest is None or answer.result != "accept":
            outcome.result = answer.result
            outcome.fail(what)
        elif answer.output.get("sha256") != digest:
            outcome.result = "accept"
            outcome.fail(f"{what}, but other bytes")
    return outcome


def judge_encode(case: Case, ask: Ask, path: Path) -> Outcome:
    with TemporaryDirectory(prefix="endor-conformance-") as folder:
        target = Path(folder) / "out.endor.safetensors"
        values = ["--values", case["values"]] if "values" in case else []
        answer = ask(["encode", str(path), str(target), *values])
        outcome = Outcome(case, PASS, "as expected", answer.result, answer.seconds)
        if answer.not_implemented:
            outcome.status, outcome.got = NOT_OFFERED, describe(answer)
        elif answer.result != "accept":
            outcome.fail(describe(answer))
        elif not target.is_file():
            outcome.fail("accept, but there is no output")
        else:
            difference = first_difference((HERE / case["expected_file"]).read_bytes(), target)
            if difference:
                outcome.fail(difference)
    return outcome


def first_difference(wanted: bytes, target: Path) -> str:
    got = target.read_bytes()
    if got == wanted:
        return ""
    both = zip(wanted, got, strict=False)
    at = next((i for i, (a, b) in enumerate(both) if a != b), min(len(wanted), len(got)))
    return f"another file: {len(got)} bytes, not {len(wanted)}; they differ from byte {at} on"
