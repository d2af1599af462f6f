"""Check that quotes stand where a citation says, and that an answer's markers fit its citations. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate
from typing import Final

from crewlog.schemas.text import shorten
from crewlog.schemas.values import Citation

QUOTE_LINES_MAX: Final = 40
_SHOWN_CHARS_MAX: Final = 300

_CODE: Final = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)
_MARKER: Final = re.compile(r"\[(\d{1,3}(?:\s*,\s*\d{1,3})*)\](?!\()")
_FILE_NAME: Final = re.compile(r"\.[A-Za-z]\w{0,5}$")
_REFERENCE: Final = re.compile(r"\[([^\[\]\n]+?):(\d{1,7})\](?!\()")


def normalised(text: str) -> str:
    """Make runs of white space one blank: line breaks do not count when quotes are compared."""
    return " ".join(text.split())


def quote_problem(text: str, citation: Citation) -> str | None:
    """Return why a citation is wrong, in words that help to correct it, or None.

    Args:
        text: the whole source, lines separated by LF.
        citation: its quote must begin in its line (from 1) and stand there verbatim, white space aside.
    """
    lines = text.split("\n")
    if not 1 <= citation.line <= len(lines):
        return f"{citation.source} has lines 1 to {len(lines)}, there is no line {citation.line}"
    quote = normalised(citation.quote)
    if not quote:
        return "the quote is empty"
    first = normalised(lines[citation.line - 1])
    at = normalised("\n".join(lines[citation.line - 1 : citation.line - 1 + QUOTE_LINES_MAX])).find(quote)
    if 0 <= at < len(first):
        return None
    elsewhere = _line_of(lines, quote)
    if elsewhere is not None:
        return f"the quote stands at line {elsewhere} of {citation.source}, not at line {citation.line}"
    return f"the quote does not stand in {citation.source}; its line {citation.line} reads: {shorten(first, _SHOWN_CHARS_MAX) or '(empty)'}"


def _line_of(lines: Sequence[str], quote: str) -> int | None:
    words = [normalised(line) for line in lines]
    filled = [(number, line) for number, line in enumerate(words, start=1) if line]
    at = " ".join(line for _, line in filled).find(quote)
    if at < 0:
        return None
    ends = accumulate(len(line) + 1 for _, line in filled)
    return next(number for (number, _), end in zip(filled, ends, strict=True) if at < end)


def markers(answer: str) -> list[int]:
    """Return the numbers of the `[n]` markers in an answer in order of first use; code and links do not count.

    >>> markers("First [2], then [1, 3] and `a[7]` and [4](https://example.org)")
    [2, 1, 3]
    """
    found = (int(number) for match in _MARKER.finditer(_CODE.sub(" ", answer)) for number in match.group(1).split(","))
    return list(dict.fromkeys(found))


def marker_problems(answer: str, citations: int) -> list[str]:
    """Return how the markers of an answer and its numbered citations fail to fit."""
    used = markers(answer)
    unknown = [f"[{n}]" for n in sorted(used) if not 1 <= n <= citations]
    unused = [f"[{n}]" for n in range(1, citations + 1) if n not in used]
    problems = []
    if unknown:
        problems.append(f"the answer uses {', '.join(unknown)}, but there are {citations} citations, numbered from 1")
    if unused:
        problems.append(f"the answer never uses {', '.join(unused)}: put the marker behind what the citation supports, or drop the citation")
    return problems


def used_citations(markdown: str, citations: Sequence[Citation]) -> tuple[Citation, ...]:
    """Return those citations a text relies on, in their order.

    One is used when the text names it as `source:line` or `source, line n`, contains its quote, or has its number `[n]` in `citations`.
    """
    numbers = set(markers(markdown))
    text = normalised(markdown)
    used = (
        c
        for n, c in enumerate(citations, start=1)
        if n in numbers or normalised(c.quote) in text or re.search(rf"(?<![\w/.-]){re.escape(c.source)}(?::|, line ){c.line}(?!\d)", text)
    )
    return tuple(dict.fromkeys(used))


def unknown_references(markdown: str, citations: Sequence[Citation]) -> list[str]:
    """Return the `[source:line]` references of a text that no citation backs. `[12:30]` and the like are no references."""
    sources = {c.source for c in citations}
    known = {f"{c.source}:{c.line}" for c in citations}
    found = dict.fromkeys(f"{m[1]}:{m[2]}" for m in _REFERENCE.finditer(_CODE.sub(" ", markdown)) if m[1] in sources or _FILE_NAME.search(m[1]))
    return [reference for reference in found if reference not in known]
