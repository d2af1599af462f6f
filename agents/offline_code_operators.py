"""The classical repair operators on a Python syntax tree. Each yields edits; none of them knows about tests."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from typing import Any, Final

from crewlog.agents.offline_code_edits import Edit, Source

_COMPARISONS: Final[dict[type[ast.cmpop], tuple[tuple[str, float], ...]]] = {
    ast.Lt: (("<=", 0.9), (">", 0.5), (">=", 0.3)),
    ast.LtE: (("<", 0.9), (">=", 0.5), (">", 0.3)),
    ast.Gt: ((">=", 0.9), ("<", 0.5), ("<=", 0.3)),
    ast.GtE: ((">", 0.9), ("<=", 0.5), ("<", 0.3)),
    ast.Eq: (("!=", 0.6), ("in", 0.2), (">=", 0.15), ("<=", 0.15)),
    ast.NotEq: (("==", 0.6),),
    ast.In: (("not in", 0.5), ("==", 0.2)),
    ast.NotIn: (("in", 0.5),),
    ast.Is: (("is not", 0.6), ("==", 0.3)),
    ast.IsNot: (("is", 0.6), ("!=", 0.3)),
}
_SYMBOLS: Final[dict[type[ast.operator], str]] = {
    ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "%", ast.Pow: "**",
    ast.BitAnd: "&", ast.BitOr: "|", ast.BitXor: "^", ast.LShift: "<<", ast.RShift: ">>",
}  # fmt: skip
_ARITHMETIC: Final[dict[type[ast.operator], tuple[tuple[str, float], ...]]] = {
    ast.Add: (("-", 0.7), ("*", 0.4)),
    ast.Sub: (("+", 0.7), ("/", 0.2)),
    ast.Mult: (("/", 0.4), ("+", 0.4), ("**", 0.3)),
    ast.Div: (("//", 0.7), ("*", 0.5), ("%", 0.2)),
    ast.FloorDiv: (("/", 0.8), ("%", 0.4)),
    ast.Mod: (("//", 0.5), ("/", 0.2)),
    ast.Pow: (("*", 0.5),),
    ast.BitAnd: (("|", 0.5),),
    ast.BitOr: (("&", 0.5), ("^", 0.3)),
    ast.BitXor: (("&", 0.5), ("|", 0.3)),
    ast.LShift: ((">>", 0.5),),
    ast.RShift: (("<<", 0.5),),
}
_COUSINS: Final[dict[str, tuple[str, ...]]] = {
    "min": ("max",), "max": ("min",), "any": ("all",), "all": ("any",), "sum": ("len", "max"), "len": ("sum",), "floor": ("ceil",), "ceil": ("floor",),
    "append": ("extend",), "extend": ("append",), "lower": ("upper",), "upper": ("lower",), "startswith": ("endswith",), "endswith": ("startswith",),
    "strip": ("lstrip", "rstrip"), "lstrip": ("strip", "rstrip"), "rstrip": ("strip", "lstrip"),
    "keys": ("values", "items"), "values": ("keys", "items"), "items": ("keys", "values"),
    "int": ("float", "round"), "float": ("int",), "round": ("int",), "title": ("capitalize",), "capitalize": ("title",), "find": ("rfind",), "rfind": ("find",),
    "split": ("rsplit", "splitlines"), "add": ("update",), "update": ("add",), "intersection": ("union",), "union": ("intersection",), "remove": ("discard",),
    "isalpha": ("isalnum",), "isdigit": ("isnumeric", "isalnum"), "islower": ("isupper",), "isupper": ("islower",), "mean": ("median",), "median": ("mean",),
    "appendleft": ("append",), "popleft": ("pop",), "sorted": ("reversed",), "reversed": ("sorted",), "ljust": ("rjust",), "rjust": ("ljust",),
}  # fmt: skip

Operator = Callable[[Source, Any], Iterator[Edit]]


def operator_edits(source: Source) -> Iterator[Edit]:
    """Yield the edits of every operator at every place it fits, in the order of the text."""
    for node in ast.walk(source.tree):
        for kind, operator in _OPERATORS:
            if isinstance(node, kind):
                yield from operator(source, node)


def _between(source: Source, left: ast.AST, right: ast.AST, old: str, new: str, prior: float, why: str) -> Iterator[Edit]:
    start, end = source.span(left)[1], source.span(right)[0]
    at = source.text.find(old, start, end)
    if at >= 0:
        yield Edit(at, at + len(old), new, prior, getattr(right, "lineno", 1), why)


_COMPARISON_TEXTS: Final[dict[type[ast.cmpop], str]] = {
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.In: "in",
    ast.NotIn: "not in",
    ast.Is: "is",
    ast.IsNot: "is not",
}


def _compare(source: Source, node: ast.Compare) -> Iterator[Edit]:
    left = node.left
    for operator, right in zip(node.ops, node.comparators, strict=True):
        for new, prior in _COMPARISONS.get(type(operator), ()):
            yield from _between(source, left, right, _COMPARISON_TEXTS[type(operator)], new, prior, f"comparison {new}")
        left = right
    if len(node.ops) == 1 and isinstance(node.ops[0], ast.Eq | ast.NotEq):
        one, other = source.segment(node.left), source.segment(node.comparators[0])
        symbol = _COMPARISON_TEXTS[type(node.ops[0])]
        if not isinstance(node.comparators[0], ast.Constant) and not isinstance(node.left, ast.Constant):
            yield source.replace(node, f"{one}.lower() {symbol} {other}.lower()", 0.25, "compare without case")


def _bool_op(source: Source, node: ast.BoolOp) -> Iterator[Edit]:
    old, new = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
    for left, right in zip(node.values, node.values[1:], strict=False):
        yield from _between(source, left, right, old, new, 0.7, f"{new} instead of {old}")
    for value in node.values:
        yield source.replace(value, f"(not {source.segment(value)})", 0.25, "negate one condition")


def _not(source: Source, node: ast.UnaryOp) -> Iterator[Edit]:
    if isinstance(node.op, ast.Not | ast.USub):
        yield source.replace(node, source.segment(node.operand), 0.6, "drop the negation")


def _condition(source: Source, node: ast.If | ast.While | ast.IfExp | ast.comprehension) -> Iterator[Edit]:
    tests = node.ifs if isinstance(node, ast.comprehension) else [node.test]
    for test in tests:
        if not isinstance(test, ast.Compare | ast.UnaryOp | ast.BoolOp):
            yield source.replace(test, f"not {source.segment(test)}", 0.55, "negate the condition")


def _arithmetic(source: Source, node: ast.BinOp) -> Iterator[Edit]:
    old = _SYMBOLS.get(type(node.op))
    if old is None or (isinstance(node.left, ast.Constant) and isinstance(node.left.value, str)):
        return
    for new, prior in _ARITHMETIC.get(type(node.op), ()):
        yield from _between(source, node.left, node.right, old, new, prior, f"{new} instead of {old}")
    if isinstance(node.op, ast.Sub | ast.Div | ast.FloorDiv | ast.Mod | ast.Pow):
        yield source.replace(node, f"{source.segment(node.right)} {old} {source.segment(node.left)}", 0.4, "swap the operands")
    yield source.replace(node, source.segment(node.left), 0.15, "drop an operand")
    if isinstance(node.left, ast.BinOp) and isinstance(node.op, ast.Mult | ast.Div | ast.Sub | ast.Add):
        yield source.replace(node, f"({source.segment(node.left)}) {old} {source.segment(node.right)}", 0.3, "parentheses")
    if isinstance(node.right, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub) and isinstance(node.right.op, ast.Mult | ast.Div):
        first: ast.expr = node.right
        while isinstance(first, ast.BinOp):
            first = first.left
        start, end = source.span(node.left)[0], source.span(first)[1]
        yield Edit(start, end, f"({source.text[start:end]})", 0.45, node.lineno, "parentheses")
    if isinstance(source.parents.get(node), ast.Return) and isinstance(node.op, ast.Mult | ast.Div):
        yield from _remainder(source, node)
    if isinstance(node.op, ast.Add) and isinstance(node.left, ast.BinOp) and isinstance(node.left.op, ast.FloorDiv) and isinstance(node.right, ast.Constant):
        yield source.replace(node, f"-(-{source.segment(node.left.left)} // {source.segment(node.left.right)})", 0.6, "one more only for a rest")
    if isinstance(node.op, ast.FloorDiv):
        yield source.replace(node, f"-(-{source.segment(node.left)} // {source.segment(node.right)})", 0.45, "round up instead of down")


def _remainder(source: Source, node: ast.BinOp) -> Iterator[Edit]:
    """A part is returned where what is left, or the sum, is meant: `a * b / 100` becomes `a - a * b / 100`."""
    whole: ast.expr = node
    while isinstance(whole, ast.BinOp):
        whole = whole.left
    if isinstance(whole, ast.Name | ast.Attribute):
        for sign in ("-", "+"):
            yield source.replace(node, f"{source.segment(whole)} {sign} {source.segment(node)}", 0.3, f"{sign} a part")


def _constant(source: Source, node: ast.Constant) -> Iterator[Edit]:
    if isinstance(node.value, bool):
        yield source.replace(node, str(not node.value), 0.5, "the other truth value")
    elif isinstance(node.value, int) and abs(node.value) < 10**9:
        for value in dict.fromkeys((node.value + 1, node.value - 1, 0, 1)):
            if value != node.value:
                yield source.replace(
                    node, str(value) if value >= 0 else f"({value})", 0.5 if abs(value - node.value) == 1 else 0.25, f"{value} instead of {node.value}"
                )
        for value in (node.value * 10, node.value // 10 if node.value >= 10 else 0):
            if value not in (0, node.value):
                yield source.replace(node, str(value), 0.12, f"{value} instead of {node.value}")
    elif isinstance(node.value, str) and "a-z]" in node.value:
        text = source.segment(node)
        for wider in ("a-z0-9]", "a-zA-Z]", "a-zA-Z0-9]"):
            yield source.replace(node, text.replace("a-z]", wider), 0.3, f"{wider[:-1]} in the pattern")
    elif isinstance(node.value, float) and node.value:
        for text in (repr(node.value / 10), repr(node.value * 10), repr(node.value / 100), repr(-node.value)):
            yield source.replace(node, text if not text.startswith("-") else f"({text})", 0.15, f"{text} instead of {node.value}")


_OF_TEXT: Final = frozenset({"replace", "strip", "lstrip", "rstrip", "lower", "removeprefix", "removesuffix", "translate", "join", "format"})
"""Methods that only text has and that return text."""


def _call(source: Source, node: ast.Call) -> Iterator[Edit]:
    name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr if isinstance(node.func, ast.Attribute) else ""
    start = source.span(node.func)[1] - len(name)
    for cousin in _COUSINS.get(name, ()):
        yield Edit(start, start + len(name), cousin, 0.5, node.lineno, f"{cousin} instead of {name}")
    for one, other in zip(node.args, node.args[1:], strict=False):
        if not isinstance(one, ast.Starred) and not isinstance(other, ast.Starred):
            between = source.text[source.span(one)[1] : source.span(other)[0]]
            yield Edit(source.span(one)[0], source.span(other)[1], source.segment(other) + between + source.segment(one), 0.5, node.lineno, "swap arguments")
    for given in node.args:
        if isinstance(given, ast.Name | ast.Attribute) and isinstance(source.parents.get(node), ast.Expr | ast.AugAssign | ast.BinOp):
            yield source.replace(given, f"-{source.segment(given)}", 0.35, "the opposite sign")
    yield from _range(source, node, name)
    if name in ("sorted", "sort"):
        yield from _sorting(source, node)
    if name in ("int", "float") and len(node.args) == 1 and isinstance(node.args[0], ast.Name | ast.Subscript | ast.Attribute):
        text = source.segment(node.args[0])
        yield source.replace(node.args[0], f"{text}.strip()", 0.2, "strip before converting")
        yield source.replace(node.args[0], f'{text}.replace(",", "")', 0.15, "drop thousands separators")
    if name == "split" and isinstance(node.func, ast.Attribute) and len(node.args) == 1 and not node.keywords:
        yield source.replace(node, f"{source.segment(node.func)}()", 0.4, "split at any blank")
        yield source.replace(node.args[0], f"{source.segment(node.args[0])}, 1", 0.4, "split once")
    if name == "sort" and isinstance(node.func, ast.Attribute) and isinstance(source.parents.get(node), ast.Return | ast.Assign):
        yield source.replace(node, f"sorted({source.segment(node.func.value)})", 0.9, "sort() returns nothing")
    if isinstance(node.func, ast.Attribute) and name in _OF_TEXT and isinstance(source.parents.get(node), ast.Return | ast.Assign):
        for also in ("lower", "strip"):
            yield source.replace(node, f"{source.segment(node)}.{also}()", 0.2, f"{also}() is missing")
    if isinstance(node.func, ast.Attribute) and name in ("lower", "upper", "strip", "copy", "reverse") and not node.args:
        yield source.replace(node, source.segment(node.func.value), 0.2, f"drop {name}()")


def _range(source: Source, node: ast.Call, name: str) -> Iterator[Edit]:
    if name != "range" or not node.args:
        return
    stop = node.args[-1] if len(node.args) < 3 else node.args[1]
    for sign in ("+", "-"):
        yield source.replace(stop, f"{source.segment(stop)} {sign} 1", 0.85 if sign == "+" else 0.6, f"range ends {'later' if sign == '+' else 'earlier'}")
    if len(node.args) == 1:
        yield source.replace(node.args[0], f"1, {source.segment(node.args[0])}", 0.35, "range from 1")
        yield source.replace(node.args[0], f"1, {source.segment(node.args[0])} + 1", 0.35, "range from 1 to the end")


def _sorting(source: Source, node: ast.Call) -> Iterator[Edit]:
    given = next((k for k in node.keywords if k.arg == "reverse"), None)
    if given is None:
        at = source.span(node)[1] - 1
        yield Edit(at, at, f"{', ' if node.args or node.keywords else ''}reverse=True", 0.55, node.lineno, "sort the other way")


def _subscript(source: Source, node: ast.Subscript) -> Iterator[Edit]:
    if isinstance(node.slice, ast.Slice):
        for bound, prior in ((node.slice.lower, 0.55), (node.slice.upper, 0.6)):
            if bound is not None and not isinstance(bound, ast.Constant):
                yield source.replace(bound, f"{source.segment(bound)} + 1", prior, "slice one further")
                yield source.replace(bound, f"{source.segment(bound)} - 1", prior, "slice one less")
        return
    text = source.segment(node.slice)
    is_load = isinstance(node.ctx, ast.Load)
    if isinstance(node.slice, ast.Name | ast.BinOp | ast.Call):
        yield source.replace(node.slice, f"{text} - 1", 0.5, "index one less")
        yield source.replace(node.slice, f"{text} + 1", 0.45, "index one further")
    if isinstance(node.slice, ast.Constant) and node.slice.value == 0:
        yield source.replace(node.slice, "-1", 0.45, "the last instead of the first")
    if is_load and not isinstance(node.slice, ast.UnaryOp) and not (isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, int)):
        owner = source.segment(node.value)
        yield source.replace(node, f"{owner}.get({text}, 0)", 0.2, "0 for a missing key")
        yield source.replace(node, f"{owner}.get({text})", 0.2, "None for a missing key")


def _aug_assign(source: Source, node: ast.AugAssign) -> Iterator[Edit]:
    old = _SYMBOLS.get(type(node.op))
    if old:
        for new, prior in _ARITHMETIC.get(type(node.op), ()):
            yield from _between(source, node.target, node.value, f"{old}=", f"{new}=", prior, f"{new}= instead of {old}=")
        yield from _between(source, node.target, node.value, f"{old}=", "=", 0.15, "assign instead of add up")


def _assign(source: Source, node: ast.Assign) -> Iterator[Edit]:
    if len(node.targets) != 1:
        return
    target, value = node.targets[0], node.value
    if isinstance(value, ast.Name | ast.Attribute) and isinstance(target, ast.Name | ast.Attribute):
        text = source.segment(value)
        yield source.replace(value, f"{text}.copy()", 0.35, "a copy instead of another name")
        yield source.replace(value, f"list({text})", 0.3, "a copy instead of another name")
    inside = source.parents.get(node)
    is_kept = isinstance(target, ast.Attribute | ast.Subscript) and not isinstance(value, ast.Constant | ast.List | ast.Dict)
    if is_kept or (isinstance(inside, ast.For | ast.While) and isinstance(target, ast.Name | ast.Attribute | ast.Subscript)):
        yield from _between(source, target, value, "=", "+=", 0.45, "add up instead of assign")


_OPERATORS: Final[tuple[tuple[type[ast.AST] | tuple[type[ast.AST], ...], Operator], ...]] = (
    (ast.Compare, _compare),
    (ast.BoolOp, _bool_op),
    (ast.UnaryOp, _not),
    ((ast.If, ast.While, ast.IfExp, ast.comprehension), _condition),
    (ast.BinOp, _arithmetic),
    (ast.Constant, _constant),
    (ast.Call, _call),
    (ast.Subscript, _subscript),
    (ast.AugAssign, _aug_assign),
    (ast.Assign, _assign),
)
