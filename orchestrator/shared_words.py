"""Which words and figures two texts have in common, white space, case, marks of Markdown and citations aside. Pure.

A figure may be rounded in the text: whoever writes an answer says 4716.02 of what a query gave as 4716.0179.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Final, NamedTuple

RUN_WORDS_MIN: Final = 4
"""Fewer words in a row stand in many texts by chance."""
FIGURE_DIGITS_MIN: Final = 3
"""Shorter numbers stand in many texts by chance."""
SENTENCE_WORDS_MIN: Final = 3

_NUMBER: Final = re.compile(r"\d{1,12}(?:\.(\d{1,12}))?", re.ASCII)
_WORD: Final = re.compile(r"\d[\d.,]*\d|\w+")
_CITATION: Final = re.compile(r"\[(?:\d+(?:\s*,\s*\d+)*|[^\[\]\n]+:\d+)\]")
_LINE_NUMBER: Final = re.compile(r"^\d+\t", re.MULTILINE)
_END: Final = re.compile(r"(?<=[.!?])[”\"')\]]*\s+|\n+")


class Shared(NamedTuple):
    """What stands in both: the longest run of words, all of them or at least four; figures; and the part of the text's words that are one of these."""

    run: str
    whole: bool
    figures: tuple[str, ...]
    share: float


def shared_words(text: str, source: str) -> Shared:
    """Compare a text with a source that it may come from."""
    wanted, known = _words(text), _words(source)
    if not wanted:
        return Shared("", whole=False, figures=(), share=0.0)
    size = min(RUN_WORDS_MIN, len(wanted))
    pieces = {tuple(known[n : n + size]) for n in range(len(known) - size + 1)}
    covered = [tuple(wanted[n : n + size]) in pieces for n in range(len(wanted) - size + 1)]
    begin, length = _longest(covered)
    run = wanted[begin : begin + length + size - 1] if length else []
    whole = len(run) == len(wanted) and f" {' '.join(run)} " in f" {' '.join(known)} "
    figures = [word for word in dict.fromkeys(wanted) if sum(map(str.isdigit, word)) >= FIGURE_DIGITS_MIN]
    shared = _known_figures(figures, set(known))
    words = sum(word in shared or any(covered[max(n - size + 1, 0) : n + 1]) for n, word in enumerate(wanted))
    return Shared(" ".join(run), whole, shared, words / len(wanted))


def _known_figures(figures: Sequence[str], known: set[str]) -> tuple[str, ...]:
    """Return those that stand among the known words, or that a longer number there rounds to."""
    new = {figure: Decimal(figure) for figure in figures if figure not in known and _NUMBER.fullmatch(figure)}
    longer = [Decimal(word) for word in known if (number := _NUMBER.fullmatch(word)) and number[1]] if new else []
    rounded = {places: {round(number, places) for number in longer if _places(number) > places} for places in set(map(_places, new.values()))}
    return tuple(figure for figure in figures if figure in known or (figure in new and new[figure] in rounded[_places(new[figure])]))


def _places(number: Decimal) -> int:
    return -int(number.as_tuple().exponent)


def _words(text: str) -> list[str]:
    plain = _CITATION.sub(" ", _LINE_NUMBER.sub("", text)).casefold()
    return [word.replace(",", "") if word[0].isdigit() else word for word in _WORD.findall(plain)]


def _longest(covered: Sequence[bool]) -> tuple[int, int]:
    best, begin = (0, 0), 0
    for n, is_covered in enumerate([*covered, False]):
        if not is_covered:
            best = max(best, (n - begin, -begin))
            begin = n + 1
    return -best[1], best[0]


def sentences(text: str) -> list[str]:
    """Cut a text into its sentences; headings and lines of tables count as such, single words do not."""
    pieces = (piece.strip() for piece in _END.split(text))
    return [piece for piece in pieces if len(_words(piece)) >= SENTENCE_WORDS_MIN]
