"""Cut a document's text into passages: stretches of whole lines, about a paragraph long, that keep their heading.

A passage is verbatim: its text is the document's lines from its first line on, so whatever is found can be quoted with its line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

PASSAGE_CHARS_MIN: Final = 300
"""Shorter paragraphs under one heading are joined until they are this long."""
PASSAGE_CHARS_MAX: Final = 1500
"""Longer paragraphs are cut between lines, and a longer line between words."""

_HEADING: Final = re.compile(r" {0,3}(#{1,6})\s+(.*?)\s*#*\s*$")
_UNDERLINE: Final = re.compile(r" {0,3}(=+|-{3,})\s*$")
_FENCE: Final = re.compile(r" {0,3}(```|~~~)")


class Passage(NamedTuple):
    """Text that begins at `line` (from 1), below the headings in `heading`, outermost first."""

    line: int
    heading: str
    text: str


def cut(text: str) -> Iterator[Passage]:
    """Cut a text, lines separated by LF, into passages in their order. Only blank lines are left out."""
    lines = text.split("\n")
    sections = _sections(lines)
    for (start, heading), end in zip(sections, [*(start for start, _ in sections[1:]), len(lines)], strict=True):
        yield from _cut_section(lines, start, end, heading)


def _sections(lines: list[str]) -> list[tuple[int, str]]:
    """Find where sections begin (index of the line) and what stands above them."""
    sections = [(0, "")]
    path: list[tuple[int, str]] = []
    fence = ""
    for at, line in enumerate(lines):
        if mark := _FENCE.match(line):
            fence = "" if fence == mark[1] else fence or mark[1]
        found = None if fence else _heading(lines, at)
        if found is not None:
            path = [above for above in path if above[0] < found[0]] + [found]
            sections.append((at, " › ".join(title for _, title in path)))
    return sections if len(sections) == 1 or sections[1][0] > 0 else sections[1:]


def _heading(lines: list[str], at: int) -> tuple[int, str] | None:
    if mark := _HEADING.match(lines[at]):
        return (len(mark[1]), mark[2]) if mark[2] else None
    # a title is one line by itself: after a blank line or the beginning, with a rule below it
    alone = at + 1 < len(lines) and bool(lines[at].strip()) and (at == 0 or not lines[at - 1].strip())
    if alone and (rule := _UNDERLINE.match(lines[at + 1])):
        return (1 if rule[1][0] == "=" else 2), lines[at].strip()
    return None


def _cut_section(lines: list[str], start: int, end: int, heading: str) -> Iterator[Passage]:
    first, size = start, 0
    for at in range(start, end):
        blank = not lines[at].strip()
        full = size + len(lines[at]) > PASSAGE_CHARS_MAX or (blank and size >= PASSAGE_CHARS_MIN)
        if full and size:
            yield from _passage(lines, first, at, heading)
            first, size = at, 0
        size += len(lines[at]) + 1 if not blank or size else 0
    yield from _passage(lines, first, end, heading)


def _passage(lines: list[str], first: int, end: int, heading: str) -> Iterator[Passage]:
    while first < end and not lines[first].strip():
        first += 1
    while end > first and not lines[end - 1].strip():
        end -= 1
    text = "\n".join(lines[first:end])
    while len(text) > PASSAGE_CHARS_MAX:  # one very long line
        at = text.rfind(" ", PASSAGE_CHARS_MAX // 2, PASSAGE_CHARS_MAX)
        at = at if at > 0 else PASSAGE_CHARS_MAX
        yield Passage(first + 1, heading, text[:at])
        text = text[at:].lstrip()
    if text:
        yield Passage(first + 1, heading, text)
