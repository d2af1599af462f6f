"""Turns outcomes of tasks into the sections of a report or a message. Nothing in here that is not in an outcome."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

from crewlog.agents.offline_clauses import Clause, is_frame, split_goal
from crewlog.agents.offline_conversation import PART_OF
from crewlog.agents.offline_text import capital, cut_words, join_words
from crewlog.schemas.text import shorten
from crewlog.schemas.values import ContextItem

SIMULATED_NOTICE: Final = "No model provider is configured: offline rules chose the steps and the words. Tool results are real."
SECTION_WORDS_MAX: Final = 450
FIGURES_SHOWN_MAX: Final = 12

_FLAG_TEXTS: Final = {
    "simulated": "",
    "plain_answer": "",
    "not_found": "no answer was found in the documents",
    "tests_failing": "tests still fail",
    "review_failed": "the result does not meet all of its constraints",
}


def title_of(goal: str) -> str:
    """Make a title from a goal: its headline or first clause, without "prepare the"."""
    headline, clauses = split_goal(goal)
    text = headline or (clauses[0].text if clauses else goal)
    if is_frame(Clause(text)):
        text = re.sub(r"^\w+\s+(?:(?:a|an|the|our|us|me)\s+)*", "", text) or text
    return shorten(capital(" ".join(text.split()).rstrip(" .,;:")), 120) or "Result"


def section(item: ContextItem, *, heading: str = "##", words_max: int = SECTION_WORDS_MAX) -> str:
    """Write one task's outcome: what it found, its key figures, its sources and its files."""
    question = item.objective.split(PART_OF, 1)[0]
    lines = [f"{heading} {shorten(capital(' '.join(question.split()).rstrip('.')), 160)}", ""]
    summary = cut_words(deepen(refer(item), heading), words_max)
    lines += [summary or "This task ended without a result.", ""]
    figures = figure_lines(item.outcome.output)
    if any(not _is_said(line, summary) for line in figures):
        # a list with gaps would look as if the rest did not exist
        lines += [*figures, ""]
    if sources := source_lines(item, summary):
        lines += ["Sources:", "", *sources, ""]
    if item.outcome.artifacts:
        lines += [f"Files: {join_words(f'`{name}`' for name in dict.fromkeys(a.name for a in item.outcome.artifacts))}.", ""]
    return "\n".join(lines)


def refer(item: ContextItem) -> str:
    """Return a summary whose markers `[n]` name source and line, so that they keep their meaning beside other summaries."""
    citations = item.outcome.citations

    def named(found: re.Match[str]) -> str:
        number = int(found.group(1))
        return f"[{citations[number - 1].source}:{citations[number - 1].line}]" if 1 <= number <= len(citations) else found.group()

    return re.sub(r"\[(\d{1,3})\](?!\()", named, item.outcome.summary.strip())


def deepen(markdown: str, heading: str) -> str:
    """Push the headings of a text below the heading it is put under."""
    return re.sub(r"(?m)^(#{1,5})(?=\s)", lambda found: "#" * min(6, len(found.group(1)) + len(heading)), markdown)


def figure_lines(output: Any) -> list[str]:
    """Return the key figures of an outcome's output as list items: figures of an analysis, and the state of the tests."""
    if not isinstance(output, dict):
        return []
    lines = [
        f"- {figure['label']}: {show(figure.get('value'))}{_unit(figure.get('unit'))}"
        for figure in output.get("figures") or ()
        if isinstance(figure, dict) and figure.get("label")
    ]
    if isinstance(tests := output.get("tests"), dict) and "passed" in tests:
        lines.append(f"- Tests: {tests['passed']} passed, {tests.get('failed', 0)} failed")
    return lines[:FIGURES_SHOWN_MAX]


def show(value: Any) -> str:
    """Show a value for people: at most four decimals, no trailing zeros."""
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:.4g}" if abs(value) < 1 else f"{value:.2f}".rstrip("0").rstrip(".")
    return str(value)


def source_lines(item: ContextItem, summary: str) -> list[str]:
    """Number the citations; a quote that stands in the summary already is not repeated."""
    lines = []
    for number, citation in enumerate(item.outcome.citations, 1):
        if f"[{citation.source}:{citation.line}]" in summary:
            continue
        quote = "" if citation.quote in summary else f": “{shorten(' '.join(citation.quote.split()), 240)}”"
        lines.append(f"{number}. {citation.source}, line {citation.line}{quote}")
    return lines


def open_points(items: Sequence[ContextItem]) -> list[str]:
    """List what a reader must know before relying on the result."""
    points = []
    for item in items:
        # what was not found cannot be cited either: to say both would sound like two faults
        flags = [flag for flag in item.outcome.flags if flag != "review_failed" or "not_found" not in item.outcome.flags]
        texts = [text for flag in flags if (text := _FLAG_TEXTS.get(flag, flag.replace("_", " ")))]
        if texts:
            points.append(f"- {shorten(item.objective.split(PART_OF, 1)[0], 120)} (`{item.key}`): {join_words(texts)}.")
        elif not item.outcome.summary.strip():
            points.append(f"- {shorten(item.objective.split(PART_OF, 1)[0], 120)} (`{item.key}`): no result.")
    return points


def trim(text: str, banned: Iterable[str]) -> str:
    """Leave out the lines that hold a banned phrase."""
    phrases = [phrase.lower() for phrase in banned]
    return "\n".join(line for line in text.splitlines() if not any(phrase in line.lower() for phrase in phrases))


def _unit(unit: Any) -> str:
    return f" {unit}" if unit and unit != "%" else str(unit or "")


def _is_said(line: str, summary: str) -> bool:
    """Say whether a summary holds a figure's value already."""
    numbers = re.findall(r"\d+(?:\.\d+)?", line.rsplit(": ", 1)[-1])
    return all(re.search(rf"(?<![\d.]){re.escape(number)}(?![\d]|\.\d)", summary) for number in numbers)
