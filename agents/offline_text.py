"""Words and sentences for the offline provider: tokens, stems, sentence ends, fuzzy names. Pure functions over text, English only."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from typing import Final

_WORD: Final = re.compile(r"[^\W\d_]+\d+[^\W\d_]*\b|[^\W\d_](?:[^\W\d_]|['’])*|\d+(?:\.\d+)?")
_CAMEL: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|[\W_]+")
_SENTENCE_END: Final = re.compile(r"(?<=[.!?])[\"”’)\]]*\s+(?=[\"“(\[*_`]*[A-Z0-9])")
_ABBREVIATIONS: Final = re.compile(r"\b(?:e\.g|i\.e|etc|vs|cf|approx|mr|mrs|ms|dr|st|fig|eq|sec|[A-Z])\.$", re.IGNORECASE)

EMAIL: Final = re.compile(
    r"[A-Za-z0-9.!#$%&'*+/=?^_{|}~-]{1,64}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?)+|localhost\b)"
)
URL: Final = re.compile(r"https?://[^\s<>\"'`)\]]+[^\s<>\"'`)\].,;:!?]")
QUOTED: Final = re.compile(r"[\"“]([^\"”\n]{1,300})[\"”]|`([^`\n]{1,300})`|(?<!\w)'([^'\n]{2,300})'(?!\w)")
NUMBER: Final = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w])")

_STOP_WORDS: Final = """
    a about above after again all also am an and any are as at be because been before being below between both but by can could did do does
    doing down during each either every few for from further get give had has have having he her here hers him his how i if in into is it its
    itself just let lets like make many may me might more most much must my need no nor not now of off on once only or other our ours out over
    own please put same shall she should show so some such tell than that the their them then there these they this those through to too under
    until up upon us very was we were what when where whether which while who whom whose why will with within would you your yours say says
    according based using use used want know
"""
STOP_WORDS: Final = frozenset(_STOP_WORDS.split())


def words(text: str) -> list[str]:
    """Return the lower-case words and numbers of a text in order, possessive endings removed; `pm25` and `no2` are words.

    >>> words("NO2 in Bonn's air: 12.5 per hour in Q3")
    ['no2', 'in', 'bonn', 'air', '12.5', 'per', 'hour', 'in', 'q3']
    """
    return [re.sub(r"['’]s?$", "", found.lower()) for found in _WORD.findall(text)]


def stem(word: str) -> str:
    """Reduce an English word to what its forms share: rules → rul, applies → apply, running → run, summarize → summaris.

    Args:
        word: one lower-case word; numbers pass through.
    """
    if not word.isalpha() or len(word) < 4:
        return word
    for suffix, instead in (("ies", "y"), ("sses", "ss"), ("ied", "y"), ("ing", ""), ("ed", ""), ("es", ""), ("ly", ""), ("s", "")):
        if word.endswith(suffix) and len(word) - len(suffix) >= 3 and not word.endswith(("ss", "us", "is", "ply", "eed")):
            word = word[: len(word) - len(suffix)] + instead
            if suffix in ("ing", "ed") and len(word) > 3 and word[-1] == word[-2] and word[-1] not in "lsz":
                word = word[:-1]
            break
    word = word.rstrip("e") if len(word.rstrip("e")) >= 3 else word
    if word.endswith("ll") and len(word) > 4:  # cancelled and cancel, installed and install
        word = word[:-1]
    return word[:-2] + "is" if word.endswith("iz") else word


def stems(listed: str) -> frozenset[str]:
    """Return the stems of blank-separated words."""
    return frozenset(map(stem, listed.split()))


def terms(text: str) -> list[str]:
    """Return the stems of the content words in order, each once."""
    return list(dict.fromkeys(stem(word) for word in words(text) if word not in STOP_WORDS and (len(word) > 1 or word.isdigit())))


def name_tokens(name: str) -> list[str]:
    """Split an identifier, file or column name into stems: `bill_length_mm` → bill, length, mm; `unitPrice` → unit, pric; `Größe (cm)` → größ, cm."""
    return [stem(part.lower()) for part in _CAMEL.split(name) if part] or ([name.lower()] if name else [])


def similar(one: str, other: str) -> float:
    """Return how alike two words are, 0 to 1."""
    return SequenceMatcher(None, one, other, autojunk=False).ratio()


def closeness(wanted: Sequence[str], name: str) -> float:
    """Score how well an identifier answers to words somebody used: 1 when every token of the name was used, 0 when nothing fits.

    Misspellings count from a similarity of 0.84, abbreviations when a token of three letters or more begins the word.
    """
    tokens = name_tokens(name)
    if not tokens:
        return 0.0

    def best(token: str) -> float:
        scores = [0.0]
        for word in wanted:
            if token == word:
                return 1.0
            if len(token) >= 3 and len(word) >= 3 and (word.startswith(token) or token.startswith(word)):
                scores.append(0.85)
            elif len(token) >= 4 and (ratio := similar(token, word)) >= 0.84:
                scores.append(ratio)
        return max(scores)

    return sum(best(token) for token in tokens) / len(tokens)


def sentences(text: str) -> list[str]:
    """Split one paragraph into sentences; abbreviations do not end one."""
    parts: list[str] = []
    start = 0
    for end in _SENTENCE_END.finditer(text):
        if not _ABBREVIATIONS.search(text[start : end.start()]):
            parts.append(text[start : end.end()].strip())
            start = end.end()
    return [part for part in (*parts, text[start:].strip()) if part]


def quoted(text: str) -> list[str]:
    """Return what stands in quotation marks or backticks, in order."""
    return [next(part for part in groups if part) for groups in QUOTED.findall(text)]


def join_words(items: Iterable[str]) -> str:
    """Join for a sentence: `a, b and c`."""
    listed = list(items)
    return listed[0] if len(listed) == 1 else f"{', '.join(listed[:-1])} and {listed[-1]}" if listed else ""


def capital(text: str) -> str:
    """Return the text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def cut_words(text: str, words_max: int) -> str:
    """Keep at most `words_max` blank-separated words, whole lines first, ending in an ellipsis when something was cut.

    A table is cut between its rows, and a fence that was opened is closed.
    """
    if len(text.split()) <= words_max:
        return text
    kept: list[str] = []
    left = words_max - 1
    for line in text.splitlines():
        count = len(line.split())
        if count > left:
            if left > 0 and not line.startswith(("|", "```")):
                kept.append(" ".join(line.split()[:left]))
            break
        kept.append(line)
        left -= count
    body = "\n".join(kept).rstrip()
    if sum(line.startswith("```") for line in kept) % 2:
        return f"{body}\n```"
    return f"{body}\n\n…" if body.endswith("|") else f"{body} …" if words_max > 1 else "…"
