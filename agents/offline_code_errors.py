"""Repairs that an error message suggests: the name it misses, the value it cannot convert, the division by zero."""

from __future__ import annotations

import ast
import builtins
import difflib
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Final

from crewlog.agents.offline_code_edits import Edit, Source

_UNCONVERTIBLE: Final = re.compile(
    r"could not convert string to float: (?P<a>'[^']*'|\"[^\"]*\")|invalid literal for int\(\) with base \d+: (?P<b>'[^']*'|\"[^\"]*\")"
)
_KEY: Final = re.compile(r"KeyError: (.+)$")
_UNDEFINED: Final = re.compile(r"name '(\w+)' is not defined")
_NO_ATTRIBUTE: Final = re.compile(r"'?(\w+)'? (?:object )?has no attribute '(\w+)'")
_CANNOT_IMPORT: Final = re.compile(r"cannot import name '(\w+)'")
_METHODS: Final = tuple(dict.fromkeys(name for kind in (str, list, dict, set, int, float) for name in dir(kind) if not name.startswith("_")))
_IMPORTABLE: Final = {
    "defaultdict": "collections",
    "Counter": "collections",
    "deque": "collections",
    "namedtuple": "collections",
    "dataclass": "dataclasses",
    "field": "dataclasses",
    "Path": "pathlib",
    "datetime": "datetime",
    "date": "datetime",
    "timedelta": "datetime",
    "Decimal": "decimal",
    "reduce": "functools",
    "lru_cache": "functools",
    "partial": "functools",
    "sqrt": "math",
    "ceil": "math",
    "floor": "math",
    "mean": "statistics",
    "median": "statistics",
    "chain": "itertools",
    "combinations": "itertools",
    "permutations": "itertools",
    "Optional": "typing",
    "Any": "typing",
    "Enum": "enum",
}


def error_edits(source: Source, messages: Sequence[str], expected: Sequence[str]) -> Iterator[Edit]:
    """Yield the edits that the messages of the failing tests suggest for one file.

    Args:
        expected: literals the failing tests compare with, as source text.
    """
    for message in dict.fromkeys(messages):
        if found := _UNCONVERTIBLE.search(message):
            yield from _other_missing_spelling(source, found["a"] or found["b"])
            yield from _try_conversion(source, expected)
        if "ZeroDivisionError" in message or "division by zero" in message:
            yield from _zero(source, expected)
        if found := _UNDEFINED.search(message):
            yield from _define(source, found.group(1))
        if found := _NO_ATTRIBUTE.search(message):
            yield from _rename_attribute(source, found.group(2))
        if found := _CANNOT_IMPORT.search(message):
            yield from _rename_definition(source, found.group(1))
        if "KeyError" in message:
            yield from _missing_key(source)
        if "StopIteration" in message or re.search(r"(?:max|min)\(\) (?:arg|iterable)", message):
            yield from _default_extreme(source, expected)
        if "NoneType" in message:
            yield from _leave_out_none(source)
        if "RecursionError" in message or "maximum recursion depth" in message:
            yield from _base_case(source)
        if "can only concatenate str" in message or ("unsupported operand" in message and "'str'" in message) or "must be str" in message:
            yield from _convert_operands(source)


def literal_edits(source: Source, literals: Sequence[str]) -> Iterator[Edit]:
    """Yield edits with literals that the failing tests use: another accepted spelling, a similar constant."""
    values = [_value(literal) for literal in literals]
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value and not _is_docstring(source, node):
            for value in values:
                if isinstance(value, str) and value != node.value and difflib.SequenceMatcher(None, node.value, value).ratio() > 0.6:
                    yield source.replace(node, repr(value), 0.5, f"{value!r} instead of {node.value!r}")
        elif (
            isinstance(node, ast.Constant)
            and type(node.value) in (int, float)
            and isinstance(source.parents.get(node), ast.arguments | ast.Assign | ast.AnnAssign)
        ):
            for value in values:
                if type(value) in (int, float) and value != node.value:
                    yield source.replace(node, repr(value), 0.3, f"{value!r} instead of {node.value!r}")
    for literal in [literal for literal, value in zip(literals, values, strict=True) if isinstance(value, str)][:6]:
        yield from _other_missing_spelling(source, literal, prior=0.3)


def _other_missing_spelling(source: Source, literal: str, prior: float = 1.0) -> Iterator[Edit]:
    """`x == ""` becomes `x in ("", "NA")`: one more spelling of what is treated specially already."""
    shown = _quoted(literal)
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Compare) and len(node.ops) == 1:
            left, right = source.segment(node.left), node.comparators[0]
            if (
                isinstance(node.ops[0], ast.Eq | ast.NotEq)
                and isinstance(right, ast.Constant)
                and isinstance(right.value, str)
                and right.value != _value(literal)
            ):
                operator = "in" if isinstance(node.ops[0], ast.Eq) else "not in"
                yield source.replace(node, f"{left} {operator} ({source.segment(right)}, {shown})", prior, f"{shown} counts, too")
            elif (
                isinstance(node.ops[0], ast.In | ast.NotIn)
                and isinstance(right, ast.Tuple | ast.List | ast.Set)
                and right.elts
                and all(isinstance(e, ast.Constant) for e in right.elts)
            ):
                at = source.span(right.elts[-1])[1]
                yield Edit(at, at, f", {shown}", prior, node.lineno, f"{shown} counts, too")
        elif (
            isinstance(node, ast.UnaryOp)
            and isinstance(node.op, ast.Not)
            and isinstance(node.operand, ast.Name)
            and isinstance(source.parents.get(node), ast.If)
        ):
            name = node.operand.id
            yield source.replace(node, f"not {name} or {name} == {shown}", 0.8 * prior, f"{shown} counts, too")


def _try_conversion(source: Source, expected: Sequence[str]) -> Iterator[Edit]:
    """Turn what cannot be converted into nothing."""
    values = list(dict.fromkeys([*(v for v in expected if v in ("None", "0", "0.0", "-1")), "None", "0"]))
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Return) and node.value is not None and any(_converts(inner) for inner in ast.walk(node.value)):
            indent = " " * node.col_offset
            for rank, value in enumerate(values[:3]):
                new = f"try:\n{indent}    {source.segment(node)}\n{indent}except ValueError:\n{indent}    return {value}"
                yield source.replace(node, new, 0.6 - 0.1 * rank, f"{value} for what is no number")
        if isinstance(node, ast.Expr | ast.Assign) and isinstance(source.parents.get(node), ast.For) and any(_converts(inner) for inner in ast.walk(node)):
            indent = " " * node.col_offset
            new = f"try:\n{indent}    {source.segment(node)}\n{indent}except ValueError:\n{indent}    continue"
            yield source.replace(node, new, 0.5, "skip what is no number")


def _converts(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("int", "float")


def _zero(source: Source, expected: Sequence[str]) -> Iterator[Edit]:
    values = list(dict.fromkeys([*expected[:4], "0", "None", "0.0"]))
    for node in ast.walk(source.tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div | ast.FloorDiv | ast.Mod) and not isinstance(node.right, ast.Constant):
            whole, below = source.segment(node), source.segment(node.right)
            for rank, value in enumerate(values):
                yield source.replace(node, f"({whole} if {below} else {value})", 0.9 - 0.05 * rank, f"{value} where {below} is zero")


def _define(source: Source, name: str) -> Iterator[Edit]:
    uses = [node for node in ast.walk(source.tree) if isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Load)]
    if not uses:
        return
    known = [n.id for n in ast.walk(source.tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)] + [
        n.arg for n in ast.walk(source.tree) if isinstance(n, ast.arg)
    ]
    known += [n.name for n in ast.walk(source.tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    statement = next((s for s in source.tree.body if not (isinstance(s, ast.Expr) or (isinstance(s, ast.ImportFrom) and s.module == "__future__"))), None)
    if statement is not None:
        line = f"import {name}" if name in sys.stdlib_module_names else f"from {_IMPORTABLE[name]} import {name}" if name in _IMPORTABLE else ""
        if line:
            has_imports = isinstance(statement, ast.Import | ast.ImportFrom)
            yield source.insert_before(statement, line if has_imports else f"{line}\n\n", 1.0, f"{name} is not imported")._replace(line=uses[0].lineno)
    for close in difflib.get_close_matches(name, dict.fromkeys([*known, *dir(builtins)]), 4, 0.6):
        for use in uses:
            yield source.replace(use, close, 0.95, f"{close} instead of {name}")


def _rename_attribute(source: Source, name: str) -> Iterator[Edit]:
    known = [n.attr for n in ast.walk(source.tree) if isinstance(n, ast.Attribute)] + [n.name for n in ast.walk(source.tree) if isinstance(n, ast.FunctionDef)]
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and node.attr == name:
            end = source.span(node)[1]
            for close in difflib.get_close_matches(name, dict.fromkeys([*(k for k in known if k != name), *_METHODS]), 4, 0.55):
                yield Edit(end - len(name), end, close, 0.9, node.lineno, f"{close} instead of {name}")


def _rename_definition(source: Source, name: str) -> Iterator[Edit]:
    for node in source.tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and difflib.SequenceMatcher(None, node.name, name).ratio() > 0.6:
            at = source.text.index(node.name, source.span(node)[0])
            yield Edit(at, at + len(node.name), name, 0.9, node.lineno, f"{name} is what is imported")


def _missing_key(source: Source) -> Iterator[Edit]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load) and not isinstance(node.slice, ast.Slice):
            owner, key = source.segment(node.value), source.segment(node.slice)
            for rank, value in enumerate(("", ", 0", ', ""', ", []")):
                yield source.replace(node, f"{owner}.get({key}{value})", 0.9 - 0.1 * rank, "a missing key is no error")
        elif isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Subscript) and isinstance(node.op, ast.Add):
            owner, key = source.segment(node.target.value), source.segment(node.target.slice)
            yield source.replace(node, f"{owner}[{key}] = {owner}.get({key}, 0) + {source.segment(node.value)}", 0.95, "a new key begins at 0")
        elif isinstance(node, ast.Delete) and len(node.targets) == 1 and isinstance(target := node.targets[0], ast.Subscript):
            owner, key = source.segment(target.value), source.segment(target.slice)
            yield source.replace(node, f"{owner}.pop({key}, None)", 0.9, "what is not there need not be removed")


def _default_extreme(source: Source, expected: Sequence[str]) -> Iterator[Edit]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("max", "min", "next") and len(node.args) == 1:
            at = source.span(node)[1] - 1
            for rank, value in enumerate(dict.fromkeys([*expected[:3], "None", "0"])):
                yield Edit(at, at, f", {'default=' if node.func.id != 'next' else ''}{value}", 0.9 - 0.05 * rank, node.lineno, f"{value} when there is nothing")


def _leave_out_none(source: Source) -> Iterator[Edit]:
    """Skip what is missing in a loop, a comprehension or a sum."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.For) and isinstance(node.target, ast.Name):
            name = node.target.id
            yield source.insert_before(node.body[0], f"if {name} is None:\n    continue", 0.9, "what is missing is left out")
        elif isinstance(node, ast.comprehension) and isinstance(node.target, ast.Name):
            at = source.span(node.ifs[0])[0] if node.ifs else source.span(node.iter)[1]
            new = f"{node.target.id} is not None and " if node.ifs else f" if {node.target.id} is not None"
            yield Edit(at, at, new, 0.9, node.target.lineno, "what is missing is left out")
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("sum", "max", "min", "sorted", "len", "list"):
            if len(node.args) == 1 and isinstance(node.args[0], ast.Name | ast.Attribute):
                text = source.segment(node.args[0])
                yield source.replace(node.args[0], f"[item for item in {text} if item is not None]", 0.85, "what is missing is left out")
        elif isinstance(node, ast.AugAssign | ast.Return) and isinstance(node.value, ast.Name | ast.Attribute):
            yield source.replace(node.value, f"({source.segment(node.value)} or 0)", 0.6, "0 for what is missing")
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub | ast.Mult):
            for side in (node.left, node.right):
                if isinstance(side, ast.Name | ast.Attribute | ast.Subscript):
                    yield source.replace(side, f"({source.segment(side)} or 0)", 0.6, "0 for what is missing")


def _base_case(source: Source) -> Iterator[Edit]:
    """End a recursion: the usual first lines of a function that calls itself."""
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or not (names := [a.arg for a in node.args.args if a.arg not in ("self", "cls")]):
            continue
        calls = [inner for inner in ast.walk(node) if isinstance(inner, ast.Call)]
        if not any(node.name in (getattr(call.func, "id", ""), getattr(call.func, "attr", "")) for call in calls):
            continue
        is_described = isinstance(node.body[0], ast.Expr) and isinstance(node.body[0].value, ast.Constant) and len(node.body) > 1
        first, name = node.body[int(is_described)], names[0]
        ends = [
            (f"{name} < 2", name), (f"{name} < 2", "1"), (f"{name} <= 0", "0"), (f"{name} <= 0", "1"),
            (f"not {name}", name), (f"not {name}", "0"), (f"not {name}", "[]"), (f"len({name}) < 2", name),
        ]  # fmt: skip
        for rank, (ended, value) in enumerate(ends):
            yield source.insert_before(first, f"if {ended}:\n    return {value}", 1.0 - 0.05 * rank, "the recursion has no end")


def _convert_operands(source: Source) -> Iterator[Edit]:
    for node in ast.walk(source.tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            for side in (node.left, node.right):
                if not isinstance(side, ast.Constant | ast.JoinedStr):
                    for rank, kind in enumerate(("str", "int", "float")):
                        yield source.replace(side, f"{kind}({source.segment(side)})", 0.85 - 0.1 * rank, f"as {kind}")


def _is_docstring(source: Source, node: ast.AST) -> bool:
    return isinstance(source.parents.get(node), ast.Expr)


def _value(literal: str) -> object:
    try:
        return ast.literal_eval(literal)
    except (ValueError, SyntaxError):
        return None


def _quoted(literal: str) -> str:
    value = _value(literal)
    return '"' + value + '"' if isinstance(value, str) and '"' not in value and "\\" not in value and value.isprintable() else literal
