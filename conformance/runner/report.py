"""Results in words and as JSON."""

from __future__ import annotations

from typing import Any

from runner.corpus import LEVELS
from runner.judge import FAIL, KNOWN, NOT_OFFERED, PASS, WRONG_RULE, Outcome, expected

Json = dict[str, Any]


def failed(outcome: Outcome, strict_rules: bool) -> bool:
    return outcome.status == FAIL or (strict_rules and outcome.status == WRONG_RULE)


def apply_known(outcomes: list[Outcome], known: dict[str, Json]) -> None:
    """A known divergence must come exactly as it is written down; then it counts no more."""
    for outcome in outcomes:
        entry = known.get(outcome.case["id"])
        if entry is None:
            continue
        if outcome.status == FAIL and outcome.result == entry["got"]:
            outcome.status, outcome.got = KNOWN, f"{outcome.got}. Known: {entry['why']}"
        else:
            got = "pass" if outcome.status == PASS else outcome.got
            outcome.fail(f"{got}, where the known divergence is {entry['got']}")


def line(outcome: Outcome) -> str:
    case = outcome.case
    return (
        f"{outcome.status.upper()}  {case['id']}: expected {expected(case)}; "
        f"got {outcome.got}.  [{case['notes']}]"
    )


def levels(outcomes: list[Outcome], strict_rules: bool) -> dict[str, Json]:
    """Known divergences fail a level: they are listed, not hidden."""
    table: dict[str, Json] = {}
    for level in LEVELS:
        own = [o for o in outcomes if o.case["level"] == level]
        bad = [o for o in own if failed(o, strict_rules) or o.status in (KNOWN, NOT_OFFERED)]
        if own:
            row = {"cases": len(own), "passed": len(own) - len(bad), "pass": not bad}
            missing = sum(o.status == NOT_OFFERED for o in own)
            table[level] = row | ({"not_offered": missing} if missing else {})
    return table


def grade(table: dict[str, Json]) -> str:
    """The highest level that is passed together with all below it."""
    best = "none"
    for level in LEVELS:
        if not table.get(level, {}).get("pass"):
            break
        best = level
    return best


def text(outcomes: list[Outcome], strict_rules: bool, verbose: bool) -> str:
    quiet = (PASS, NOT_OFFERED) if verbose else (PASS, NOT_OFFERED, KNOWN)
    lines = [line(o) for o in outcomes if o.status not in quiet]
    if lines:
        lines.append("")
    statuses = [PASS, WRONG_RULE, KNOWN, NOT_OFFERED, FAIL]
    lines.append(f"{'category':<14}" + "".join(f"{s:>12}" for s in statuses) + f"{'all':>8}")
    for category in dict.fromkeys(o.case["category"] for o in outcomes):
        own = [o for o in outcomes if o.case["category"] == category]
        counts = [sum(o.status == s for o in own) for s in statuses]
        lines.append(f"{category:<14}" + "".join(f"{n:>12}" for n in counts) + f"{len(own):>8}")
    lines.append("")
    table = levels(outcomes, strict_rules)
    for level, row in table.items():
        lost = row["cases"] - row["passed"] - row.get("not_offered", 0)
        state = "pass" if row["pass"] else "FAIL" if lost else "not offered"
        lines.append(f"{level}: {state}, {row['passed']} of {row['cases']}")
    lines.append(f"grade: {grade(table)}")
    return "\n".join(lines)


def as_json(outcomes: list[Outcome], name: str, version: str, strict_rules: bool, complete: bool) -> Json:
    table = levels(outcomes, strict_rules)
    rows = []
    for o in outcomes:
        row = {key: o.case[key] for key in ("id", "category", "level", "expect", "rules")}
        row |= {"status": o.status, "got": o.got, "seconds": round(o.seconds, 3)}
        if o.peak_mib is not None:
            row["peak_mib"] = round(o.peak_mib, 1)
        rows.append(row)
    return {
        "implementation": name,
        "specification": "endor-1",
        "version": version,
        "complete": complete,
        "grade": grade(table),
        "levels": table,
        "cases": rows,
    }
