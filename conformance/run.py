"""Holds a decoder against the corpus and grades it.

    python conformance/run.py [options] -- COMMAND...

COMMAND is an adapter: `COMMAND decode PATH` prints one JSON document; README.md has the contract.
Exit status: 0 if all that was asked for passed, 1 if not, 2 if the corpus itself is damaged or the
command line is wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from runner import report
from runner.adapter import Answer, Batch, OneShot
from runner.corpus import LEVELS, VERSIONS, Case, CorpusError, load, verify
from runner.judge import Outcome, judge

HERE = Path(__file__).resolve().parent
SMALLEST = HERE / "cases" / "valid" / "c-13-no-tensors.safetensors"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Hold a decoder against the Endor conformance corpus.",
        usage="run.py [options] -- COMMAND...",
    )
    parser.add_argument("--level", choices=LEVELS, default="L4", help="all levels up to this one")
    parser.add_argument(
        "--version", choices=VERSIONS, default=VERSIONS[-1], help="what it knows of the format"
    )
    parser.add_argument("--category", help="only this category")
    parser.add_argument("--case", default="*", metavar="GLOB", help="only cases with such an id")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the results there")
    parser.add_argument("--name", help="name of the implementation (default: the command's)")
    parser.add_argument("--batch", action="store_true", help="one process for many cases")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="cases at a time")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds for a case")
    parser.add_argument("--slow", type=float, default=1.0, help="a factor for all time budgets")
    parser.add_argument("--strict-rules", action="store_true", help="a wrong rule fails the case")
    parser.add_argument("--expect", type=Path, metavar="FILE", help="known divergences")
    parser.add_argument("--quiet", action="store_true", help="do not list known divergences")
    parser.add_argument("command", nargs="+", help=argparse.SUPPRESS)
    return parser.parse_args()


class Runner:
    """Asks adapters in several threads, each with a batch process of its own if need be."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.local = threading.local()
        self.batches: list[Batch] = []
        self.one_shot = OneShot(args.command)
        self.baseline_mib = 0.0

    def timeout(self, case: Case) -> float:
        seconds = case.get("budgets", {}).get("seconds", self.args.timeout)
        return float(seconds) * float(self.args.slow)

    def adapter(self) -> OneShot | Batch:
        if not self.args.batch:
            return self.one_shot
        if not hasattr(self.local, "batch"):
            self.local.batch = Batch(self.args.command)
            self.batches.append(self.local.batch)
        batch: Batch = self.local.batch
        return batch

    def run(self, case: Case) -> Outcome:
        timeout = self.timeout(case)

        def ask(request: list[str]) -> Answer:
            return self.adapter().ask(request, timeout)

        return judge(case, ask, 0.0, self.args.slow)

    def run_limited(self, case: Case) -> Outcome:
        """A process of its own, also in batch mode: else its memory could not be told apart."""
        timeout = self.timeout(case)

        def ask(request: list[str]) -> Answer:
            return self.one_shot.ask(request, timeout, limited=True)

        return judge(case, ask, self.baseline_mib, self.args.slow)

    def run_all(self, cases: list[Case]) -> list[Outcome]:
        limited = [case for case in cases if "budgets" in case]
        others = [case for case in cases if "budgets" not in case]
        with ThreadPoolExecutor(max(1, self.args.jobs)) as pool:
            outcomes = list(pool.map(self.run, others))
        if limited:
            # Start-up is no fault of the case: its memory does not count.
            smallest = self.one_shot.ask(["decode", str(SMALLEST)], 60.0, limited=True)
            self.baseline_mib = smallest.peak_mib or 0.0
        outcomes += map(self.run_limited, limited)
        order = {case["id"]: i for i, case in enumerate(cases)}
        return sorted(outcomes, key=lambda o: order[o.case["id"]])

    def close(self) -> None:
        for batch in self.batches:
            batch.close()


def main() -> int:
    args = arguments()
    cases = load(args.level, args.category, args.case, args.version)
    if not cases:
        print("no case is like that", file=sys.stderr)
        return 2
    known = json.loads(args.expect.read_text("utf-8")) if args.expect else {}
    strangers = known.keys() - {case["id"] for case in load("L4", None, "*")}
    if strangers:
        print(f"{args.expect} names cases that do not exist: {sorted(strangers)}", file=sys.stderr)
        return 2
    runner = Runner(args)
    try:
        verify(cases)
        outcomes = runner.run_all(cases)
    except (CorpusError, OSError) as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 2
    finally:
        runner.close()
    report.apply_known(outcomes, known)
    complete = args.category is None and args.case == "*"
    name = args.name or " ".join(args.command)
    if args.json:
        result = report.as_json(outcomes, name, args.version, args.strict_rules, complete)
        args.json.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    print(report.text(outcomes, args.strict_rules, not args.quiet))
    return int(any(report.failed(o, args.strict_rules) for o in outcomes))


if __name__ == "__main__":
    raise SystemExit(main())
