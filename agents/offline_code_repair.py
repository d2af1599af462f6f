"""Ranks candidate edits: how suspicious a line is, times how often that kind of change is the repair; small ones first."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import NamedTuple

from crewlog.agents.offline_code_edits import Edit, Source, is_valid, unique_pair
from crewlog.agents.offline_code_errors import error_edits, literal_edits
from crewlog.agents.offline_code_operators import operator_edits
from crewlog.agents.offline_code_report import TestRun, is_test, same_file
from crewlog.agents.offline_code_shapes import shape_edits


class Candidate(NamedTuple):
    """An edit as `try_edits` takes it."""

    path: str
    old: str
    new: str
    why: str


def candidates(files: Mapping[str, str], run: TestRun) -> list[Candidate]:
    """Return all edits worth trying, the most plausible first."""
    expected, literals = _test_literals(files, run)
    called = _called(files, run)
    ranked: list[tuple[float, int, str, int, Candidate]] = []
    for path in sorted(files):
        if is_test(path) or not path.endswith(".py"):
            continue
        try:
            source = Source(path, files[path])
        except (SyntaxError, ValueError):
            ranked += [(1.0, 0, path, at, candidate) for at, candidate in enumerate(_syntax(path, files[path]))]
            continue
        weights = _weights(source, run, called)
        messages = [failing.message for failing in run.failing] + re.findall(r"(?m)^\s+E?\s*(\w*Error: .*)$", run.text)
        for edit, is_suggested in _edits(source, messages, expected, literals):
            weight = weights.get(edit.line, 0.0)
            # an error says where it stopped, not where the check before it should have been
            weight = weight**0.5 if is_suggested else weight
            pair = unique_pair(source.text, edit) if weight > 0 else None
            if pair and is_valid(source.text, edit):
                ranked.append((round(weight * edit.prior, 6), abs(len(edit.new) - (edit.end - edit.start)), path, edit.start, Candidate(path, *pair, edit.why)))
    ranked.sort(key=lambda entry: (-entry[0], entry[1], entry[2], entry[3], entry[4]))
    return list({(c.path, c.old, c.new): c for *_, c in reversed(ranked)}.values())[::-1] if ranked else []


def suspicious_lines(files: Mapping[str, str], run: TestRun, most: int = 5) -> list[str]:
    """Return the lines a defect most likely sits in, as `path:line: text`."""
    ordered = sorted(run.suspicious.items(), key=lambda entry: (-entry[1], entry[0]))
    places = [place for place, _ in ordered if not is_test(place[0])] or [(f.path, f.line) for f in run.failing if f.path]
    shown: list[str] = []
    headers: list[str] = []
    for path, line in dict.fromkeys(places):
        text = next(
            (content.split("\n")[line - 1].strip() for name, content in files.items() if same_file(name, path) and 0 < line <= content.count("\n") + 1), ""
        )
        # a function's first line runs when the file is imported: it says where, seldom what
        (headers if re.match(r"(?:async def|def|class|@|import|from)\b", text) else shown).append(f"{path}:{line}: {text}" if text else f"{path}:{line}")
    return (shown or headers)[:most]


def _edits(source: Source, messages: Sequence[str], expected: Sequence[str], literals: Sequence[str]) -> Iterator[tuple[Edit, bool]]:
    """Yield edits, and whether an error message suggested them."""
    for edit in error_edits(source, messages, expected):
        yield edit, True
    for edit in chain(literal_edits(source, literals), operator_edits(source), shape_edits(source, expected)):
        yield edit, False


def _weights(source: Source, run: TestRun, called: frozenset[str]) -> dict[int, float]:
    """Return line -> suspicion: traced lines by their score, the rest of their functions and of functions the tests name less."""
    weights: dict[int, float] = {}
    traced = {line: score for (path, line), score in run.suspicious.items() if same_file(source.path, path)}
    stopped = {failing.line for failing in run.failing if failing.path and same_file(source.path, failing.path)}
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
            hottest = max((traced.get(line, 0.0) for line in lines), default=0.0)
            base = max(0.6 * hottest, 0.5 if node.name in called else 0.0, 0.6 if stopped & set(lines) else 0.0, 0.08)
            for line in lines:
                weights[line] = max(weights.get(line, 0.0), base)
    for line, score in traced.items():
        weights[line] = max(weights.get(line, 0.0), score)
    for line in stopped:
        weights[line] = max(weights.get(line, 0.0), 1.0)
    for line in range(1, len(source.lines) + 1):
        weights.setdefault(line, 0.3)
    return weights


def _failing_functions(files: Mapping[str, str], run: TestRun) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.Module]:
    names = {re.sub(r"\[.*", "", failing.test.rsplit("::", 1)[-1]) for failing in run.failing}
    for path in sorted(files):
        if is_test(path):
            try:
                tree = ast.parse(files[path])
            except (SyntaxError, ValueError):
                continue
            found = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name in names]
            yield from found
            if not found:
                yield tree


def _called(files: Mapping[str, str], run: TestRun) -> frozenset[str]:
    """Return the names that failing tests call."""
    return frozenset(
        call.func.id if isinstance(call.func, ast.Name) else call.func.attr
        for function in _failing_functions(files, run)
        for call in ast.walk(function)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name | ast.Attribute)
    )


def _test_literals(files: Mapping[str, str], run: TestRun) -> tuple[list[str], list[str]]:
    """Return (what failing tests expect, every short text they use) as source text, in the order of the tests."""
    expected: list[str] = []
    literals: list[str] = []
    for function in _failing_functions(files, run):
        for node in ast.walk(function):
            if isinstance(node, ast.Compare) and len(node.comparators) == 1:
                right = node.comparators[0]
                if isinstance(right, ast.Constant | ast.List | ast.Dict | ast.Tuple) and len(text := ast.unparse(right)) <= 12:
                    expected.append(text)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and 0 < len(node.value) <= 24:
                literals.append(repr(node.value))
    return list(dict.fromkeys(expected))[:8], list(dict.fromkeys(literals))[:20]


def _syntax(path: str, text: str) -> Iterable[Candidate]:
    """Repair what does not even parse: a missing colon, one `=` in a condition, an open bracket."""
    try:
        ast.parse(text)
    except SyntaxError as error:
        number = error.lineno or 1
    else:
        return
    lines = text.split("\n")
    for at in (number - 1, number - 2):
        if not 0 <= at < len(lines):
            continue
        line = lines[at]
        fixes = [
            (line.rstrip() + ":", "a colon is missing"),
            (re.sub(r"(?<![=!<>+\-*/])=(?!=)", "==", line, count=1), "== instead of ="),
            (line.rstrip() + ")", "a bracket is open"),
        ]
        fixes += [
            (line.rstrip() + "]", "a bracket is open"),
            (re.sub(r"\)(\s*:?\s*)$", r"))\1", line), "a bracket is open"),
            (line.rstrip() + "]:", "a bracket is open"),
        ]
        start = sum(len(other) + 1 for other in lines[:at])
        for new, why in fixes:
            edit = Edit(start, start + len(line), new, 1.0, at + 1, why)
            if new != line and is_valid(text, edit) and (pair := unique_pair(text, edit)):
                yield Candidate(path, *pair, why)
