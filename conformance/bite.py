"""How hard the corpus bites: it is held against decoders that were broken on purpose.

    python conformance/bite.py rules      every check of the reference decoder, disabled in turn
    python conformance/bite.py mutants    small changes all over spec/decoder.py

Both run in this process, one fork for each broken decoder, on the cases only that reach the changed line. A
broken decoder that no case tells from a good one is a *survivor*. Of the checks none may survive, of the
mutants at most 5 %, and each of those is explained in ``bite.survivors.json``.
"""

from __future__ import annotations

import argparse
import ast
import importlib.abc
import importlib.util
import json
import os
import pickle
import re
import signal
import sys
import types
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), str(HERE / "adapters"), str(ROOT)]

from runner.adapter import Answer, checked  # noqa: E402
from runner.corpus import Case, load  # noqa: E402
from runner.judge import FAIL, PASS, WRONG_RULE, judge  # noqa: E402

DECODER = ROOT / "spec" / "decoder.py"
SURVIVORS = HERE / "bite.survivors.json"
TIMEOUT = 10  # seconds for one case; a mutant may loop for ever
ENOUGH = 0.95
# Without the check another rule rejects the same files: a wrong rule is named, but the verdict stays.
BY_NAME_ALONE = {"C-3", "M-5"}

Serve = Callable[[list[str]], tuple[int, Any]]


@dataclass(frozen=True)
class Mutant:
    """A change of a source.

    Attributes:
        name: what is changed, and where; stays the same when lines above it come and go.
        line: where.
        code: the changed source, compiled.
    """

    name: str
    line: int
    code: types.CodeType


def cases() -> list[Case]:
    """All but those that are about time and memory: they take too much of both to be run so often."""
    return [case for case in load("L4", None, "*") if case["category"] != "limits"]


def status(case: Case, serve: Serve) -> str:
    """How a case ends: ``pass``, ``wrong rule`` or ``fail``."""

    def ask(args: list[str]) -> Answer:
        try:
            code, output = serve(args)
        except Exception as error:  # whatever a broken decoder does
            return Answer({}, 0.0, repr(error))
        return checked(code, output, 0.0, None, "")

    return judge(case, ask, 0.0, 1.0).status


def bitten(suspects: list[Case], serve: Serve, bad: set[str]) -> str | None:
    """The first case that ends badly."""
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    for case in suspects:
        signal.alarm(TIMEOUT)
        try:
            if status(case, serve) in bad:
                return str(case["id"])
        except KeyboardInterrupt:
            return str(case["id"])
        finally:
            signal.alarm(0)
    return None


def forked(work: Callable[[], Any]) -> Any:
    """The result of a function in a process of its own, so that nothing it does stays."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        with open(os.devnull, "w") as nothing:
            sys.stdout = sys.stderr = nothing
            try:
                result = work()
            except BaseException as error:
                result = f"crash: {error!r}"
        with os.fdopen(write, "wb") as pipe:
            pickle.dump(result, pipe)
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    return pickle.loads(data) if data else "crash"  # noqa: S301  our own child wrote it


# ------------------------------------------------------------- checks of the reference decoder


class Disable(ast.NodeTransformer):
    """Takes out every statement that raises an error of a rule."""

    def __init__(self, rule: str) -> None:
        self.rule = rule
        self.found = 0

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        call = node.exc
        if isinstance(call, ast.Call) and call.args and isinstance(call.args[0], ast.Constant):
            name = ast.unparse(call.func).split(".")[-1]
            if name in {"FormatError", "PartError", "_fault"} and call.args[0].value == self.rule:
                return self.out(node)
        return node

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        call = node.value
        first = call.args[0] if isinstance(call, ast.Call) and call.args else None
        # A check that is told its rule, such as that of padding.
        told = isinstance(first, ast.Constant) and first.value == self.rule
        return self.out(node) if told else node

    def out(self, node: ast.stmt) -> ast.AST:
        self.found += 1
        return ast.copy_location(ast.Pass(), node)


def without_rule(rule: str) -> dict[str, types.CodeType]:
    """The modules of pyendor that check a rule, compiled without those checks."""
    changed = {}
    for path in sorted((ROOT / "pyendor").glob("*.py")):
        source = path.read_text("utf-8")
        # A rule that is an argument of a shared check is raised there under another name.
        source = re.sub(r"raise FormatError\(rule,", f'raise FormatError("{rule}",', source)
        disable = Disable(rule)
        tree = ast.fix_missing_locations(disable.visit(ast.parse(source)))
        if disable.found:
            changed[f"pyendor.{path.stem}"] = compile(tree, str(path), "exec")
    return changed


def reference(changed: dict[str, types.CodeType]) -> Serve:
    """The reference decoder, some of its modules replaced."""
    os.environ["PYENDOR_BACKEND"] = "reference"

    class Loader(importlib.abc.MetaPathFinder, importlib.abc.Loader):
        def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
            return importlib.util.spec_from_loader(name, self) if name in changed else None

        def exec_module(self, module: types.ModuleType) -> None:
            exec(changed[module.__name__], module.__dict__)

    for name in [name for name in sys.modules if name.split(".")[0] == "pyendor"]:
        del sys.modules[name]
    sys.modules.pop("pyendor_codec", None)
    sys.meta_path.insert(0, Loader())
    adapter, contract = (importlib.import_module(name) for name in ("pyendor_codec", "contract"))

    def serve(args: list[str]) -> tuple[int, Any]:
        output = adapter.answer(args)
        return contract.exit_code(output), output

    return serve


def bite_rules() -> int:
    spec = (ROOT / "spec" / "endor-1.md").read_text("utf-8")
    rules = re.findall(r"^\*\*([A-Z]-\d+)\*\* \(file\)$", spec, re.M)
    by_rule: defaultdict[str, list[Case]] = defaultdict(list)
    for case in load("L4", None, "*"):
        for rule in [*case.get("error_rules", []), *(case["rules"] if "slices" in case else [])]:
            by_rule[rule].append(case)
    survivors = []
    for rule in rules:
        suspects = sorted(by_rule[rule], key=lambda case: "recipe" in case)
        changed = without_rule(rule)
        bad = {WRONG_RULE} if rule in BY_NAME_ALONE else {FAIL}
        case = None
        if changed and suspects:
            case = forked(
                lambda suspects=suspects, changed=changed, bad=bad: bitten(suspects, reference(changed), bad)
            )
        print(f"{rule:5} {len(suspects):3} cases  {case or 'SURVIVES'}")
        if case is None or str(case).startswith("crash"):
            survivors.append(rule)
    print(f"\n{len(rules) - len(survivors)} of {len(rules)} disabled checks are noticed")
    return 1 if survivors else 0


# ----------------------------------------------------------------- mutants of spec/decoder.py

COMPARISONS = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
ARITHMETIC = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitOr,
}


def variants(node: ast.AST) -> Iterator[tuple[str, Callable[[], None], Callable[[], None]]]:
    """Changes of a node in place, each with how to undo it."""
    if isinstance(node, ast.Compare):
        for i, operator in enumerate(node.ops):
            other = COMPARISONS[type(operator)]()
            yield (
                f"{type(operator).__name__} to {type(other).__name__}",
                lambda i=i, other=other: node.ops.__setitem__(i, other),
                lambda i=i, operator=operator: node.ops.__setitem__(i, operator),
            )
    elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        before, after = node.op, ARITHMETIC[type(node.op)]()
        yield replacing(node, "op", before, after, f"{type(before).__name__} to {type(after).__name__}")
    elif isinstance(node, ast.BoolOp):
        before = node.op
        after = ast.Or() if isinstance(before, ast.And) else ast.And()
        yield replacing(node, "op", before, after, f"{type(before).__name__} to {type(after).__name__}")
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield replacing(node, "op", node.op, ast.UAdd(), "Not dropped")
    elif isinstance(node, ast.Constant) and type(node.value) is int:
        yield replacing(node, "value", node.value, node.value + 1, f"{node.value} plus 1")
    elif isinstance(node, ast.Constant) and type(node.value) is bool:
        yield replacing(node, "value", node.value, not node.value, f"{node.value} inverted")
    elif isinstance(node, ast.If | ast.IfExp):
        for value in (True, False):
            yield replacing(node, "test", node.test, ast.Constant(value), f"condition {value}")


def replacing(
    node: ast.AST, field: str, before: object, after: object, name: str
) -> tuple[str, Callable[[], None], Callable[[], None]]:
    return name, lambda: setattr(node, field, after), lambda: setattr(node, field, before)


def mutants(source: str) -> Iterator[Mutant]:
    """Every variant of every expression, and every statement left out that is a call of a check."""
    tree = ast.parse(source)
    seen: defaultdict[str, int] = defaultdict(int)
    for function, node in nodes(tree, "", set()):
        for what, change, undo in variants(node):
            shown = ast.unparse(node.test if isinstance(node, ast.If) else node)
            text = f"{function}: {shown[:60]}: {what}"
            change()
            yield numbered(text, node, tree, seen)
            undo()
        body = getattr(node, "body", None)
        for i, statement in enumerate(body if isinstance(body, list) else []):
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
                text = f"{function}: {ast.unparse(statement)[:60]}: left out"
                body[i] = ast.copy_location(ast.Pass(), statement)
                yield numbered(text, statement, tree, seen)
                body[i] = statement


def numbered(text: str, node: ast.AST, tree: ast.Module, seen: defaultdict[str, int]) -> Mutant:
    seen[text] += 1
    name = text if seen[text] == 1 else f"{text} #{seen[text]}"
    code = compile(ast.fix_missing_locations(tree), str(DECODER), "exec")
    return Mutant(name, getattr(node, "lineno", 0), code)


def nodes(node: ast.AST, function: str, told: set[str]) -> Iterator[tuple[str, ast.AST]]:
    """All nodes below one, with the function that they stand in; not those of messages and annotations.

    ``told`` are the variables of the function that only messages and offsets are made of.
    """
    for name, value in ast.iter_fields(node):
        if name in {"annotation", "returns", "decorator_list"}:
            continue
        children = value if isinstance(value, list) else [value]
        if name == "args" and (judged := arguments_judged(node)):
            children = children[:judged]
        for child in children:
            if not isinstance(child, ast.AST) or is_told(child, told) or is_entry(child):
                continue
            if isinstance(child, ast.FunctionDef):
                yield child.name, child
                yield from nodes(child, child.name, told_by(child))
            else:
                yield function, child
                yield from nodes(child, function, told)


def arguments_judged(node: ast.AST) -> int:
    """How many arguments of a verdict count, condition and rule; what is said besides is no contract."""
    return {"check": 2, "Invalid": 1}.get(ast.unparse(node.func), 0) if isinstance(node, ast.Call) else 0


def is_told(node: ast.AST, told: set[str]) -> bool:
    """Whether a node only makes up what is said besides the verdict and the rule."""
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name | ast.Tuple):
        return names(node.targets[0], ast.Store) <= told
    return isinstance(node, ast.JoinedStr)


def told_by(function: ast.FunctionDef) -> set[str]:
    """The variables of a function that nothing is made of but messages, offsets and one another."""
    told = {
        name
        for statement in ast.walk(function)
        if isinstance(statement, ast.Assign)
        for name in names(statement.targets[0], ast.Store)
    }
    while used := told & used_for_verdicts(function, told):
        told -= used
    return told


def used_for_verdicts(node: ast.AST, told: set[str]) -> set[str]:
    if isinstance(node, ast.Assign) and is_told(node, told):
        return set()
    used = names(node, ast.Load) if isinstance(node, ast.Name) else set()
    children = list(ast.iter_child_nodes(node))
    if isinstance(node, ast.Call) and (judged := arguments_judged(node)):
        children = node.args[:judged]
    for child in children:
        used |= used_for_verdicts(child, told)
    if isinstance(node, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
        for generator in node.generators:
            used -= names(generator.target, ast.Store)  # other variables, whatever they are called
    return used


def names(node: ast.AST, context: type[ast.expr_context]) -> set[str]:
    found = (n for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, context))
    return {name.id for name in found}


def is_entry(node: ast.AST) -> bool:
    """``main``, batch mode and ``if __name__``: the contract of the program, tested by running it."""
    if isinstance(node, ast.FunctionDef):
        return node.name in {"__init__", "main", "answer_line", "shown"}
    return isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)


def decoder(code: types.CodeType) -> Serve:
    """spec/decoder.py, from what was compiled."""
    module = types.ModuleType("decoder")
    sys.modules["decoder"] = module
    exec(code, module.__dict__)
    serve: Serve = module.answer
    return serve


def reached(source: str, all_cases: list[Case]) -> dict[int, list[Case]]:
    """The cases by the lines of the decoder that they reach, the quickest first."""
    lines: defaultdict[int, list[Case]] = defaultdict(list)
    serve = decoder(compile(source, str(DECODER), "exec"))
    filename = str(DECODER)
    costs: dict[str, int] = {}
    for case in all_cases:
        hit: defaultdict[int, int] = defaultdict(int)

        def trace(frame: types.FrameType, event: str, _: Any, hit: Any = hit) -> Any:
            if frame.f_code.co_filename != filename:
                return None
            hit[frame.f_lineno] += 1
            return trace

        sys.settrace(trace)
        result = status(case, serve)
        sys.settrace(None)
        if result != PASS:
            raise SystemExit(f"the decoder itself does not pass {case['id']}: {result}")
        costs[case["id"]] = sum(hit.values())
        for line in hit:
            lines[line].append(case)
    for line in lines.values():
        line.sort(key=lambda case: costs[case["id"]])
    return lines


def bite_mutants(jobs: int) -> int:
    source = DECODER.read_text("utf-8")
    all_cases = [case for case in cases() if case["category"] != "encode"]
    lines = reached(source, all_cases)
    everything = list(mutants(source))
    explained: dict[str, str] = json.loads(SURVIVORS.read_text("utf-8"))

    def test(mutant: Mutant) -> str | None:
        # What runs when the module is loaded has been reached by no case alone: all of them count.
        suspects = lines.get(mutant.line) or all_cases
        bad = {FAIL, WRONG_RULE}
        return str(forked(lambda: bitten(suspects, decoder(mutant.code), bad)) or "") or None

    shares = range(jobs)
    with ThreadPoolExecutor(jobs) as pool:  # each thread only waits for a process of its own
        parts = pool.map(lambda k: forked(lambda: [test(m) for m in everything[k::jobs]]), shares)
        results: list[str | None] = [None] * len(everything)
        for k, part in zip(shares, parts, strict=True):
            results[k::jobs] = part
    survivors = [mutant for mutant, case in zip(everything, results, strict=True) if case is None]
    share = 1 - len(survivors) / len(everything)
    for mutant in survivors:
        why = explained.get(mutant.name, "NOT EXPLAINED")
        print(f"survives, line {mutant.line}: {mutant.name}\n    {why}")
    stale = explained.keys() - {mutant.name for mutant in survivors}
    for name in sorted(stale):
        print(f"explained, but does not survive: {name}")
    print(f"\n{len(everything)} mutants, {100 * share:.1f} % killed, {len(survivors)} survive")
    unexplained = [mutant for mutant in survivors if mutant.name not in explained]
    return 1 if share < ENOUGH or unexplained or stale else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("rules", "mutants"))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    return bite_rules() if args.what == "rules" else bite_mutants(args.jobs)


if __name__ == "__main__":
    raise SystemExit(main())
