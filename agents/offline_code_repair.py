"""Ranks candidate edits: how suspicious a line is, times how often that kind of change is the repair; small ones first."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Final, NamedTuple

from crewlog.agents.offline_code_edits import Edit, Source, is_valid, unique_pair
from crewlog.agents.offline_code_errors import error_edits, literal_edits
from crewlog.agents.offline_code_operators import operator_edits
from crewlog.agents.offline_code_report import TestRun, paths_of_tests, same_file
from crewlog.agents.offline_code_shapes import shape_edits

LITERALS_MAX: Final = 24
SYNTAX_ERRORS_MAX: Final = 3


class Candidate(NamedTuple):
    """An edit as `try_edits` takes it."""

    path: str
    old: str
    new: str


def candidates(files: Mapping[str, str], run: TestRun, most: int) -> list[Candidate]:
    """Return the edits worth trying, the most plausible first, at most so many: whether a file parses with an edit is only asked of those."""
    expected, literals = _test_literals(files, run)
    called = _called(files, run)
    tests = paths_of_tests(files)
    messages = [failing.message for failing in run.failing] + re.findall(r"(?m)^\s+E?\s*(\w*Error: .*)$", run.text)
    ranked: list[tuple[float, int, str, int, Edit]] = []
    sources: dict[str, Source] = {}
    chosen: dict[Candidate, None] = {}
    for path in sorted(path for path in files if path.endswith(".py") and path not in tests):
        try:
            source = sources[path] = Source(path, files[path])
        except (SyntaxError, ValueError):
            chosen.update(dict.fromkeys(_syntax(path, files[path])))
            continue
        weights = _weights(source, run, called)
        for edit, is_suggested in _edits(source, messages, expected, literals):
            weight = weights.get(edit.line, 0.0)
            # an error says where it stopped, not where the check before it should have been
            weight = weight**0.5 if is_suggested else weight
            if weight > 0:
                ranked.append((-round(weight * edit.prior, 6), abs(len(edit.new) - (edit.end - edit.start)), path, edit.start, edit))
    # what two operators propose stands where the less likely one puts it
    distinct = {(path, edit.start, edit.end, edit.new): edit for *_, path, _, edit in sorted(ranked, reverse=True)}
    for (path, *_), edit in reversed(distinct.items()):
        if len(chosen) >= most:
            break
        text = sources[path].text
        pair = unique_pair(text, edit)
        if pair and (candidate := Candidate(path, *pair)) not in chosen and is_valid(sources[path], edit):
            chosen[candidate] = None
    return list(chosen)[:most]


def suspicious_lines(files: Mapping[str, str], run: TestRun, most: int = 5) -> list[str]:
    """Return the lines a defect most likely sits in, as `path:line: text`."""
    ordered = sorted(run.suspicious.items(), key=lambda entry: (-entry[1], entry[0]))
    tests = paths_of_tests(files)
    places = [place for place, _ in ordered if place[0] not in tests] or [(f.path, f.line) for f in run.failing if f.path]
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
    for path in sorted(paths_of_tests(files)):
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
    """Return (what failing tests expect, every number, short text and word of a text they use) as source text, in the order of the tests."""
    expected: list[str] = []
    literals: list[str] = []
    for function in _failing_functions(files, run):
        for node in ast.walk(function):
            if isinstance(node, ast.Compare) and len(node.comparators) == 1:
                expected += _short(node.comparators[0])
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr.startswith("assert"):
                expected += (text for given in reversed(node.args[:2]) for text in _short(given))
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and 0 < len(node.value) <= 24:
                literals += (repr(value) for value in (node.value, *_parts(node.value)))
            elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
                literals.append(repr(node.value))
    return list(dict.fromkeys(expected))[:8], list(dict.fromkeys(literals))[:LITERALS_MAX]


def _short(node: ast.expr) -> list[str]:
    text = ast.unparse(node) if isinstance(node, ast.Constant | ast.List | ast.Dict | ast.Tuple) else ""
    return [text] if 0 < len(text) <= 12 else []


def _parts(text: str) -> list[str | int]:
    """Return the words and the numbers of a text that is put together of several."""
    found = re.findall(r"[^\W\d_]{3,}|\d{1,9}", text)
    return [int(part) if part.isdigit() else part for part in found if part != text or part.isdigit()]


def _syntax(path: str, text: str) -> Iterator[Candidate]:
    """Repair what does not even parse, up to three places of one file."""
    before = text.split("\n")
    for after in dict.fromkeys(_parsing(text, SYNTAX_ERRORS_MAX)):
        changed = [at for at, (old, new) in enumerate(zip(before, after.split("\n"), strict=True)) if old != new]
        first, last = changed[0], changed[-1] + 1
        start = sum(len(line) + 1 for line in before[:first])
        new = "\n".join(after.split("\n")[first:last])
        if pair := unique_pair(text, Edit(start, start + len("\n".join(before[first:last])), new, 1.0, first + 1, "it does not parse")):
            yield Candidate(path, *pair)


def _parsing(text: str, errors_max: int) -> Iterator[str]:
    """Yield forms of a text that parse: a missing colon, one `=` in a condition, an open bracket. A repair leads to the next error further on."""
    if (number := _error_line(text)) is None or errors_max == 0:
        return
    lines = text.split("\n")
    for at in (number - 1, number - 2):
        if not 0 <= at < len(lines):
            continue
        line = lines[at]
        fixes = (
            line.rstrip() + ":",
            re.sub(r"(?<![=!<>+\-*/])=(?!=)", "==", line, count=1),
            line.rstrip() + ")",
            line.rstrip() + "]",
            re.sub(r"\)(\s*:?\s*)$", r"))\1", line),
            line.rstrip() + "]:",
        )
        for fixed in fixes:
            new = "\n".join([*lines[:at], fixed, *lines[at + 1 :]])
            following = _error_line(new)
            if following is None:
                yield new
            elif following > number:
                yield from _parsing(new, errors_max - 1)


def _error_line(text: str) -> int | None:
    """Return the line of the first error of syntax; None when the text parses."""
    try:
        ast.parse(text)
    except SyntaxError as error:
        return error.lineno or 1
    except ValueError:
        return 1
    return None
