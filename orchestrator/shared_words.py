"""Which words and figures two texts have in common, white space, case, marks of Markdown and citations aside. Pure.

A figure may be rounded in the text: whoever writes an answer says 4716.02 of what a query gave as 4716.0179.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
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


NOTHING: Final = Shared("", whole=False, figures=(), share=0.0)


class Known(NamedTuple):
    """What a source has of the texts that are looked for: its words on one line, and the runs of words and figures of those texts that are in it."""

    line: str
    pieces: frozenset[str]
    figures: frozenset[str]


class _Text(NamedTuple):
    words: list[str]
    size: int
    """Words of a piece."""
    pieces: tuple[str, ...]
    figures: tuple[str, ...]


class Sought:
    """Texts that any number of sources are compared with: each source is read once for all of them."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = {text: _text(text) for text in texts}
        self._figures = frozenset(figure for text in self._texts.values() for figure in text.figures)
        self._numbers: dict[int, dict[Decimal, set[str]]] = {}
        """Decimal places -> number -> the figures that say it."""
        for figure in filter(_NUMBER.fullmatch, self._figures):
            number = Decimal(figure)
            self._numbers.setdefault(_places(number), {}).setdefault(number, set()).add(figure)
        self._pieces: dict[int, set[str]] = {}
        for text in self._texts.values():
            self._pieces.setdefault(text.size, set()).update(text.pieces)

    def read(self, source: str) -> Known:
        """Look up in a source what the texts have."""
        words = _words(source)
        found: set[str] = set()
        for size, pieces in self._pieces.items():
            found |= pieces.intersection(_pieces(words, size))
        return Known(_line(words), frozenset(found), self._known_figures(set(words)))

    def _known_figures(self, words: set[str]) -> frozenset[str]:
        """Return those that stand among the words, or that a longer number there rounds to."""
        figures = set(self._figures & words)
        longer = [Decimal(word) for word in words if (number := _NUMBER.fullmatch(word)) and number[1]] if self._numbers else []
        for exact in longer:
            for places, numbers in self._numbers.items():
                if _places(exact) > places:
                    figures |= numbers.get(round(exact, places), set())
        return frozenset(figures)

    def shared(self, text: str, known: Known) -> Shared:
        """Compare one of the texts with a source that was read."""
        wanted, size, pieces, figures = self._texts[text]
        if known.pieces.isdisjoint(pieces) and known.figures.isdisjoint(figures):
            return NOTHING
        covered = [piece in known.pieces for piece in pieces]
        begin, length = _longest(covered)
        run = wanted[begin : begin + length + size - 1] if length else []
        both = tuple(figure for figure in figures if figure in known.figures)
        words = sum(word in both or any(covered[max(n - size + 1, 0) : n + 1]) for n, word in enumerate(wanted))
        return Shared(" ".join(run), stands_in(_line(wanted), known.line), both, words / len(wanted))


def shared_words(text: str, source: str) -> Shared:
    """Compare a text with a source that it may come from."""
    sought = Sought([text])
    return sought.shared(text, sought.read(source))


def line_of(text: str) -> str:
    """Return the words of a text on one line, for `stands_in`; empty when it has none."""
    return _line(_words(text))


def stands_in(line: str, other: str) -> bool:
    """Say whether the words of a line, all of them and in a row, are in another one."""
    return bool(line) and line in other


def _text(text: str) -> _Text:
    words = _words(text)
    size = min(RUN_WORDS_MIN, len(words)) or 1
    figures = tuple(word for word in dict.fromkeys(words) if sum(map(str.isdigit, word)) >= FIGURE_DIGITS_MIN)
    return _Text(words, size, tuple(_pieces(words, size)), figures)


def _pieces(words: Sequence[str], size: int) -> Iterator[str]:
    return (" ".join(words[n : n + size]) for n in range(len(words) - size + 1))


def _line(words: Sequence[str]) -> str:
    return f" {' '.join(words)} " if words else ""


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
