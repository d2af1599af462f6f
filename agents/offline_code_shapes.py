"""Repairs that concern a whole function: missing returns, misplaced returns, mutable defaults, guards, and the wrong variable."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator, Sequence
from typing import Final

from crewlog.agents.offline_code_edits import Edit, Source

Function = ast.FunctionDef | ast.AsyncFunctionDef
GUARD_VALUES: Final = ("None", "0", "[]", '""', "False", "True", "0.0", "{}", "1")
NAMES_MAX: Final = 8
BRANCHES_MAX: Final = 5


def shape_edits(source: Source, expected: Sequence[str]) -> Iterator[Edit]:
    """Yield the edits of every function.

    Args:
        expected: literals that the failing tests expect, as source text; guards return these first.
    """
    for node in ast.walk(source.tree):
        if isinstance(node, Function):
            yield from _missing_return(source, node)
            yield from _mutable_default(source, node)
            yield from _guards(source, node, expected)
            yield from _other_name(source, node)
            yield from _early_return(source, node)
            yield from _branch_order(source, node)
        elif isinstance(node, ast.ClassDef):
            yield from _other_attribute(source, node)


def _own_statements(node: Function) -> Iterator[ast.AST]:
    for statement in node.body:
        yield from ast.walk(statement)


def _missing_return(source: Source, node: Function) -> Iterator[Edit]:
    last = node.body[-1]
    has_return = any(isinstance(inner, ast.Return | ast.Yield | ast.YieldFrom) for inner in _own_statements(node))
    if isinstance(last, ast.Expr) and not isinstance(last.value, ast.Constant | ast.Yield | ast.YieldFrom):
        yield source.replace(last.value, f"return {source.segment(last.value)}", 0.95 if not has_return else 0.5, "the result is not returned")
    if isinstance(last, ast.Return) or (has_return and not isinstance(last, ast.For | ast.While | ast.If | ast.With)):
        return
    at = source.offset(last.end_lineno or last.lineno, 0) + len(source.lines[(last.end_lineno or last.lineno) - 1])
    assigned = list(dict.fromkeys(inner.id for inner in _own_statements(node) if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store)))
    given = [argument.arg for argument in node.args.args if argument.arg not in ("self", "cls", *assigned)]
    for name in [*reversed(assigned[:NAMES_MAX]), *given[:NAMES_MAX]]:
        yield Edit(at, at, f"\n{' ' * node.body[0].col_offset}return {name}", 0.8 if not has_return else 0.4, last.lineno, f"{name} is not returned")


def _early_return(source: Source, node: Function) -> Iterator[Edit]:
    """A return at the end of a loop's body ends it after the first round: move it behind the loop."""
    for loop in _own_statements(node):
        if isinstance(loop, ast.For | ast.While) and isinstance(last := loop.body[-1], ast.Return) and len(loop.body) > 1:
            start = source.offset(last.lineno, 0)
            yield Edit(start, source.span(last)[1], f"{' ' * loop.col_offset}{source.segment(last)}", 0.9, last.lineno, "return behind the loop")
        if isinstance(loop, ast.Return) and loop.value is not None and isinstance(loop.value, ast.Name | ast.BinOp | ast.Call):
            yield source.replace(loop.value, f"not {source.segment(loop.value)}", 0.12, "the opposite")


def _branch_order(source: Source, node: Function) -> Iterator[Edit]:
    """Two conditions of which the first hides the second: let them change places."""
    chains: list[list[ast.If]] = []
    for inner in _own_statements(node):
        if isinstance(inner, ast.If) and not any(inner in chain for chain in chains):
            chain = [inner]
            while len(chain[-1].orelse) == 1 and isinstance(following := chain[-1].orelse[0], ast.If):
                chain.append(following)
            chains.append(chain)
    blocks = [node.body, *(inner.body for inner in _own_statements(node) if isinstance(inner, ast.For | ast.While | ast.With))]
    chains += [[statement for statement in block if isinstance(statement, ast.If) and not statement.orelse] for block in blocks]
    for chain in chains:
        for one, other in itertools.combinations(chain[:BRANCHES_MAX], 2):
            (test, test_end), (body, end) = source.span(one.test), (source.span(one.body[0])[0], source.span(one.body[-1])[1])
            (later, later_end), (last, stop) = source.span(other.test), (source.span(other.body[0])[0], source.span(other.body[-1])[1])
            if one.body[0].lineno > one.lineno and other.body[0].lineno > other.lineno:
                text = source.text
                swapped = text[later:later_end] + text[test_end:body] + text[last:stop] + text[end:later]
                yield Edit(test, stop, swapped + text[test:test_end] + text[later_end:last] + text[body:end], 0.4, one.lineno, "the other order of conditions")


def _mutable_default(source: Source, node: Function) -> Iterator[Edit]:
    arguments = [*node.args.posonlyargs, *node.args.args]
    for argument, default in zip(arguments[len(arguments) - len(node.args.defaults) :], node.args.defaults, strict=True):
        is_mutable = isinstance(default, ast.List | ast.Dict | ast.Set) or (
            isinstance(default, ast.Call) and isinstance(default.func, ast.Name) and default.func.id in ("list", "dict", "set")
        )
        if is_mutable:
            first = _first_statement(node)
            start, end = source.span(default)
            body = source.offset(first.lineno, 0)
            indent = " " * first.col_offset
            guard = f"{indent}if {argument.arg} is None:\n{indent}    {argument.arg} = {source.segment(default)}\n"
            yield Edit(start, body, "None" + source.text[end:body] + guard, 0.95, node.lineno, "a default that is shared between calls")


def _guards(source: Source, node: Function, expected: Sequence[str]) -> Iterator[Edit]:
    first = _first_statement(node)
    names = [argument.arg for argument in [*node.args.posonlyargs, *node.args.args] if argument.arg not in ("self", "cls")]
    values = list(dict.fromkeys([*expected[:4], *GUARD_VALUES]))
    for name in names[:3]:
        for rank, value in enumerate(values):
            yield source.insert_before(first, f"if not {name}:\n    return {value}", 0.38 - 0.03 * rank, f"{value} for an empty {name}")
        yield source.insert_before(first, f"if {name} is None:\n    return {values[0]}", 0.3, f"{values[0]} for no {name}")


def _first_statement(node: Function) -> ast.stmt:
    has_docstring = isinstance(node.body[0], ast.Expr) and isinstance(node.body[0].value, ast.Constant) and isinstance(node.body[0].value.value, str)
    return node.body[1] if has_docstring and len(node.body) > 1 else node.body[0]


def _other_name(source: Source, node: Function) -> Iterator[Edit]:
    known = [argument.arg for argument in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs] if argument.arg not in ("self", "cls")]
    known += [inner.id for inner in _own_statements(node) if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store)]
    names = list(dict.fromkeys(known))[:NAMES_MAX]
    for inner in _own_statements(node):
        if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Load) and inner.id in names:
            for other in names:
                if other != inner.id:
                    yield source.replace(inner, other, 0.33, f"{other} instead of {inner.id}")


def _other_attribute(source: Source, node: ast.ClassDef) -> Iterator[Edit]:
    owned = [a for a in ast.walk(node) if isinstance(a, ast.Attribute) and isinstance(a.value, ast.Name) and a.value.id == "self"]
    stored = list(dict.fromkeys(a.attr for a in owned if isinstance(a.ctx, ast.Store)))[:NAMES_MAX]
    for attribute in owned:
        if isinstance(attribute.ctx, ast.Load) and attribute.attr in stored:
            for other in stored:
                if other != attribute.attr:
                    yield source.replace(attribute, f"self.{other}", 0.3, f"self.{other} instead of self.{attribute.attr}")
