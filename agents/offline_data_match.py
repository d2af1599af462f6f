"""Which columns the words of a question name: what to group by, what to measure, and what can be computed from two columns."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import takewhile
from typing import Final, Literal

from crewlog.agents.offline_data_facts import LINKS, Column, Source, is_key, is_year
from crewlog.agents.offline_text import STOP_WORDS, closeness, name_tokens, stem, stems, terms, words

LEAST: Final = "smallest|lowest|least|shortest|cheapest|lightest|earliest|fewest|youngest|coldest|coolest|driest|fastest|quickest"
MOST: Final = (
    "largest|highest|biggest|greatest|longest|heaviest|most expensive|latest|oldest|tallest|peak|hottest|warmest|wettest|windiest|slowest|richest|farthest"
)
_COMPUTED: Final = re.compile(
    rf"\b(?:(?:mean|average|avg|typical|median|totals?|sum|minimum|maximum|standard deviation|{MOST}|{LEAST})(?: of)?|what (?:is|was|are|were))\s+"
    r"(?!(?:number|count) of\b)(?:the\s+|all\s+)?((?:[^\W\d][\w-]*(?:,\s*|\s+and\s+(?:the\s+)?|\s+|(?![\w-]))){1,6})",
    re.IGNORECASE,
)
"""What is to be computed: the words behind a function."""
_ANYTHING: Final = stems(
    "value number figure row record entry item datum data table file one thing result amount case count common frequent popular overall trend correlation "
    "score grade mark point relation relationship share percentage percent proportion fraction rate distribution difference comparison overview summary "
    "range period"
)
_CALENDAR: Final[tuple[tuple[Literal["weekday", "hour of day", "decade"], re.Pattern[str]], ...]] = (
    ("weekday", re.compile(r"\bweekdays?\b|\bdays? of (?:the )?week\b", re.IGNORECASE)),
    ("hour of day", re.compile(r"\b(?:hours?|time) of (?:the )?day\b", re.IGNORECASE)),
    ("decade", re.compile(r"\bdecades?\b", re.IGNORECASE)),
)
_GROUPED: Final = re.compile(
    r"\b(?:per|by|for each|for every|in each|grouped by|broken down by|split by)\s+(?:the\s+)?([a-z]{3,})\b(?!\s+[a-z]+ed\b)", re.IGNORECASE
)
_NO_COLUMNS: Final = stems("hour day week month quarter year minute second percent cent size order hand far default name value")
GROUP: Final = re.compile(
    (
        r"\b(?:per|by|for each|for every|in each|of each|each|across|between|grouped by|broken down by|split by|"
        r"for all)\s+(?!(?:the\s+)?(?:average|mean|median|total|sum|number)\b)((?:[\w-]+(?:\s*,\s*|\s+and\s+|\s+|(?![\w-]))){1,5})"
    ),
    re.IGNORECASE,
)
_GROUP_END: Final = re.compile(r"\b(?:best|worst|top|most|highest|lowest|where|with|in|during|since|draw|show)\b.*", re.IGNORECASE)
SYNONYMS: Final = tuple(
    stems(group)
    for group in (
        "revenue sales amount turnover total value sold sell earned earns earn income proceeds gross spend spends spent fare",
        "price cost amount fee fare charge expensive cheap cheaper cheapest",
        "salary wage pay paid income earn earns earnings compensation richest",
        "quantity qty units count items sold number",
        "duration time runtime hours minutes length long longer longest short shorter shortest slow slowest slower fast fastest faster quickest",
        "weight mass heavy heaviest heavier light lightest lighter",
        "height tall tallest taller altitude elevation",
        "score rating points grade mark",
        "age old older oldest young younger youngest",
        "temperature temp celsius fahrenheit degrees heat hot hotter hottest warm warmer warmest cold colder coldest cool coolest",
        "rain rainfall precipitation wet wetter wettest dry drier driest",
        "wind windy windiest gust",
        "distance far farthest longer longest length",
    )
)
_ADDITIVE: Final = stems(
    "revenue sales amount quantity qty units total sum orders spend profit turnover hours nights visits votes goals wins population cases deaths "
    "income gross fare count clicks downloads passengers rain rainfall precipitation"
)
_MONEY: Final = stems("revenue sales turnover proceeds income earnings")
QUANTITIES: Final = stems("quantity qty units count items sold amount pieces")
_PRICES: Final = stems("price cost fee")
NEAR: Final = 0.5
"""How close a column name must come to the words of a question."""


def in_one_piece(question: str, source: Source) -> str:
    """Write names of columns that hold a "per" or "by" as one word, so that they are not taken for an order to group: `gdp_per_capita`."""
    for column in source.columns:
        parts = re.findall(r"[^\W_]+", column.name.partition("(")[0])
        if len(parts) > 2 and any(GROUP.match(f"{part} x") for part in parts[1:-1]):
            question = re.sub(rf"\b{r'[ _-]+'.join(map(re.escape, parts))}\b", "_".join(parts), question, flags=re.IGNORECASE)
    return question


def in_full(found: Sequence[Column], question: str, source: Source) -> list[Column]:
    """Leave out a column whose name stands in the question only as part of another's: `units` where the "unit price" is asked for."""
    if not found:
        return []
    spoken = [stem(word) for word in words(question) if word not in LINKS]
    names = {c.words for c in source.columns if len(c.words) > 1}
    places = [(at, name) for name in names for at in range(len(spoken)) if sorted(spoken[at : at + len(name)]) == sorted(name)]

    def stands_alone(column: Column) -> bool:
        longer = {at + n for at, name in places if set(column.words) < set(name) for n in range(len(name))}
        return not longer or closeness([word for at, word in enumerate(spoken) if at not in longer], " ".join(column.words)) >= NEAR

    return [column for column in found if stands_alone(column)]


def is_named(question: str, column: Column) -> bool:
    """Say whether a question holds each word of a column's name."""
    return closeness(terms(question), " ".join(column.words)) >= 0.99


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
    groupable = [c for c in in_full(list(dict.fromkeys(found)), question, source) if c.sort != "number" or is_year(c) or (c.distinct and c.distinct <= 20)]
    return [*calendar_columns(question, source), *groupable][:3]


def calendar_columns(question: str, source: Source) -> list[Column]:
    """Return the weekday, the hour of the day or the decade that a question groups by, computed from the first column that has it."""
    made = []
    for part, pattern in _CALENDAR:
        held = [c for c in source.columns if (is_year(c) if part == "decade" else c.sort == "date")]
        if pattern.search(question) and (of := next((c for c in held if part != "hour of day" or "TIMESTAMP" in c.type.upper()), None)):
            made.append(Column(part, "VARCHAR" if part == "weekday" else "BIGINT", "text", distinct=7, factors=(of,), part=part))
    return made


def day_of(source: Source) -> list[Column]:
    """Return the day of the first point in time of a table, or nothing."""
    dates = source.of("date")[:1]
    return [Column("day", "DATE", "date", nulls=c.nulls, factors=(c,), part="day") if "TIMESTAMP" in c.type.upper() else c for c in dates]


def not_measured(question: str, source: Source, *, wholly: bool = False) -> list[str]:
    """Return what a question wants computed and the table has nothing of: "bonus" in "average salary and bonus".

    Args:
        wholly: each word counts, so that "shipping cost" is not answered by just any cost.
    """
    lacking = []
    for match in _COMPUTED.finditer(question):
        for phrase in re.split(r",\s*|\s+and\s+", match.group(1)):
            ahead = list(takewhile(lambda word: word not in STOP_WORDS and word not in LINKS, words(phrase)))
            nouns = [word for word in ahead if not _COMPUTED.match(f"{word} x")]
            unheld = [word for word in nouns if stem(word) not in _ANYTHING and not _is_held(stem(word), source)]
            if unheld and (wholly or len(unheld) == len(nouns)):
                lacking.append(" ".join(unheld))
            if len(ahead) < len(words(phrase)):
                break  # behind a preposition something else begins
    return list(dict.fromkeys(lacking))


def not_grouped(question: str, source: Source) -> list[str]:
    """Return what a question groups by and the table has nothing of."""
    named = [match.group(1).lower() for match in _GROUPED.finditer(question)]
    return list(dict.fromkeys(w for w in named if w not in STOP_WORDS and stem(w) not in _NO_COLUMNS and not _is_held(stem(w), source)))


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
    named = in_full([c for score, c in scored if score >= NEAR], question, source)
    scored = [(score, c) for score, c in scored if c in named]
    if lettered := [c for c in allowed if len(c.name) == 1 and re.search(rf"\b(?:of|column|in|and) {re.escape(c.name)}\b", question)]:
        return lettered, []  # a single letter is no word elsewhere
    if not scored:
        # the group phrase may hold the measure after all: "top 5 products by revenue"
        scored = [(score, c) for c in allowed if (score := closeness(terms(question), " ".join(c.words))) >= NEAR]
    if not any(score >= 0.99 for score, _ in scored) and (product := _revenue(question, source, allowed)):
        return [product], [_revenue_note(product, source)]
    busy = {word for column in source.columns if column.name in taken for word in column.words}
    if not scored and (likely := likely_columns([word for word in terms(question) if word not in busy], allowed)):
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
    return bool((measure.factors and not measure.part) or (set(measure.words) & _ADDITIVE and not set(measure.words) & (_PRICES | {"rat", "percent", "pct"})))


def _revenue(question: str, source: Source, allowed: list[Column]) -> Column | None:
    """Make revenue of a quantity and a price when a question asks for it and no column holds it."""
    if not _MONEY & set(terms(question)) or any(_MONEY & set(c.words) for c in source.of("number")):
        return None
    prices = [c for c in allowed if _PRICES & set(c.words)]
    amounts = [c for c in allowed if QUANTITIES & set(c.words) and c not in prices]
    if len(prices) != 1 or len(amounts) != 1:
        return None
    return Column(f"{amounts[0].name} × {prices[0].name}", "DOUBLE", "number", factors=(amounts[0], prices[0]))
