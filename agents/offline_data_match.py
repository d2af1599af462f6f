"""Which columns the words of a question name: what to group by, what to measure, and what can be computed from two columns."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from crewlog.agents.offline_data_facts import Column, Source, is_key, is_year
from crewlog.agents.offline_text import STOP_WORDS, closeness, name_tokens, stem, stems, terms, words

_MEASURED: Final = stems("temperature precipitation rain rainfall wind salary wage price cost distance weight height profit")
"""Nouns that only a column of their own can answer."""
_GROUPED: Final = re.compile(
    r"\b(?:per|by|for each|for every|in each|grouped by|broken down by|split by)\s+(?:the\s+)?([a-z]{3,})\b(?!\s+[a-z]+ed\b)", re.IGNORECASE
)
_NO_COLUMNS: Final = stems("hour day week month quarter year minute second percent cent size order hand far default name value")
GROUP: Final = re.compile(
    (
        r"\b(?:per|by|for each|for every|in each|of each|each|across|among|between|grouped by|broken down by|split by|"
        r"for all)\s+((?:[\w-]+(?:\s*,\s*|\s+and\s+|\s+|(?![\w-]))){1,5})"
    ),
    re.IGNORECASE,
)
_GROUP_END: Final = re.compile(r"\b(?:best|worst|top|most|highest|lowest|where|with|in|during|since|draw|show)\b.*", re.IGNORECASE)
SYNONYMS: Final = tuple(
    stems(group)
    for group in (
        "revenue sales amount turnover total value sold sell earned earns earn income proceeds gross",
        "price cost amount fee charge expensive cheap cheaper cheapest",
        "salary wage pay paid income earn earns earnings compensation richest",
        "quantity qty units count items sold number",
        "duration time hours minutes length long longer longest short shorter shortest slow slowest slower fast fastest faster quickest",
        "weight mass heavy heaviest heavier light lightest lighter",
        "height tall tallest taller altitude elevation",
        "score rating points grade mark",
        "age old older oldest young younger youngest",
        "temperature temp celsius fahrenheit degrees heat hot hotter hottest warm warmer warmest cold colder coldest cool coolest",
        "rain rainfall precipitation wet wetter wettest dry drier driest",
        "wind windy windiest gust",
        "distance far farthest longest length",
    )
)
_ADDITIVE: Final = stems(
    "revenue sales amount quantity qty units total sum orders spend profit turnover hours nights visits votes goals wins population cases deaths "
    "income count clicks downloads passengers rain rainfall precipitation"
)
_MONEY: Final = stems("revenue sales turnover proceeds income earnings")
_QUANTITIES: Final = stems("quantity qty units count items sold amount pieces")
_PRICES: Final = stems("price cost fee")
NEAR: Final = 0.5
"""How close a column name must come to the words of a question."""


def group_columns(question: str, source: Source) -> list[Column]:
    """Return the columns named after "by", "per", "for each" …, in the order of the question."""
    found: list[Column] = []
    for match in GROUP.finditer(question):
        phrase = _GROUP_END.sub("", match.group(1))
        span = [stem(word) for word in words(phrase) if word not in STOP_WORDS or word in ("month", "year", "day")]
        scored = [(closeness(span[:4], c.name), c) for c in source.columns if not is_key(c, source.rows) or len(c.words) > 1]
        scored = [(score, c) for score, c in scored if score >= 0.7 or (score >= NEAR and c in source.categories)]
        best = max((score for score, _ in scored), default=0.0)
        found += [c for score, c in scored if score >= max(0.7, best - 0.2) or score == best]
    groupable = [c for c in dict.fromkeys(found) if c.sort != "number" or is_year(c) or (c.distinct and c.distinct <= 20)]
    return groupable[:3]


def without_a_column(question: str, source: Source, groups: Sequence[Column]) -> list[str]:
    """Return the words of a question that name what could be measured or grouped by and for which the table has no column."""
    named = [word for word in words(question) if stem(word) in _MEASURED and not _is_held(stem(word), source)]
    for match in _GROUPED.finditer(question) if not groups else ():
        word = match.group(1).lower()
        if word not in STOP_WORDS and stem(word) not in _NO_COLUMNS and not _is_held(stem(word), source):
            named.append(word)
    return list(dict.fromkeys(named))


def _is_held(word: str, source: Source) -> bool:
    values = {stem(part) for column in source.columns for value in column.values for part in words(value)}
    same = [{word}, *(group for group in SYNONYMS if word in group)]
    return word in values | set(name_tokens(source.name)) or any(
        closeness([word], token) >= NEAR or any(token in group for group in same) for column in source.columns for token in column.words
    )


def measure_columns(question: str, source: Source, taken: set[str]) -> tuple[list[Column], list[str]]:
    """Return the numeric columns a question speaks of, and a note when the name was not exact."""
    question = re.sub(r"\b(?:per|by|each) (?:hour|minute)\b", " ", question, flags=re.IGNORECASE)
    used = terms(GROUP.sub(" ", question)) or terms(question)
    keys = {c.name for c in source.of("number") if is_key(c, source.rows) or c is source.numbering}
    allowed = [c for c in source.of("number") if c.name not in taken and (c.name not in keys or "id" in words(question))]
    scored = [(max(closeness(used, c.name), closeness(used, " ".join(c.words))), c) for c in allowed]
    scored = [(score, c) for score, c in scored if score >= NEAR]
    if lettered := [c for c in allowed if len(c.name) == 1 and re.search(rf"\b(?:of|column|in|and) {re.escape(c.name)}\b", question)]:
        return lettered, []  # a single letter is no word elsewhere
    if not scored:
        # the group phrase may hold the measure after all: "top 5 products by revenue"
        scored = [(score, c) for c in allowed if (score := closeness(terms(question), " ".join(c.words))) >= NEAR]
    if not any(score >= 0.99 for score, _ in scored) and (product := _revenue(question, source, allowed)):
        return [product], [_revenue_note(product, source)]
    named = {word for column in source.columns if column.name in taken for word in column.words}
    if not scored and (likely := likely_columns([word for word in terms(question) if word not in named], allowed)):
        return likely[:1], [f"taken for what the question names: {likely[0].name}"]
    exact = [c for score, c in scored if score >= 0.99]
    if exact:
        return exact, []
    best = max((score for score, _ in scored), default=0.0)
    near = [c for score, c in scored if score >= best - 0.05]
    if len(near) > 1 and (extreme := [c for c in near if _extreme_in(question, c)]):
        near = extreme
    notes = [f"taken for what the question names: {', '.join(c.name for c in near)}"] if near else []
    return near[:4], notes


def _revenue_note(product: Column, source: Source) -> str:
    untouched = next((c.name for c in source.columns if {"discount", "rebat"} & set(c.words)), "")
    return f"no column holds the revenue, so it is computed as {product.name}" + (f"; {untouched} is not taken off" if untouched else "")


def likely_columns(used: list[str], columns: list[Column]) -> list[Column]:
    """Return the columns that words stand for: "hottest" for a temperature, the daily maximum before the minimum."""
    found = [c for c in columns if any(set(c.words) & also and set(used) & also for also in SYNONYMS)]
    is_low = bool({"coldest", "coolest", "colder", "cool"} & set(used))
    return sorted(found, key=lambda c: ("min" in name_tokens(c.name)) != is_low)


def names_extreme(question: str, measures: list[Column]) -> bool:
    """Say whether "maximum" or "minimum" in a question is part of a column's name."""
    return bool(measures) and all(_extreme_in(question, measure) for measure in measures)


def _extreme_in(question: str, column: Column) -> bool:
    tokens = name_tokens(column.name)
    return ("max" in tokens and bool(re.search(r"\bmax", question, re.IGNORECASE))) or (
        "min" in tokens and bool(re.search(r"\bmin(?:imum|imal)?\b", question, re.IGNORECASE))
    )


def what_counts(source: Source) -> Column | None:
    """Return what makes one group better than another when nobody says: revenue, else the first amount that adds up."""
    return _revenue("revenue", source, source.measures) or next((c for c in source.measures if is_additive(c)), None)


def is_additive(measure: Column) -> bool:
    """Say whether a measure adds up over rows, as amounts do and prices do not."""
    return bool(measure.factors or (set(measure.words) & _ADDITIVE and not set(measure.words) & (_PRICES | {"rat", "percent", "pct"})))


def _revenue(question: str, source: Source, allowed: list[Column]) -> Column | None:
    """Make revenue of a quantity and a price when a question asks for it and no column holds it."""
    if not _MONEY & set(terms(question)) or any(_MONEY & set(c.words) for c in source.columns):
        return None
    prices = [c for c in allowed if _PRICES & set(c.words)]
    amounts = [c for c in allowed if _QUANTITIES & set(c.words) and c not in prices]
    if len(prices) != 1 or len(amounts) != 1:
        return None
    return Column(f"{amounts[0].name} × {prices[0].name}", "DOUBLE", "number", factors=(amounts[0], prices[0]))
