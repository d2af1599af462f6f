"""What the data rules understand of a ranking: "which region has the most", "the second oldest", "top 5 by price"."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from crewlog.agents.offline_data_facts import Column, Source, is_key
from crewlog.agents.offline_data_match import LEAST, MOST, NEAR, calendar_columns, day_of, in_full, what_counts
from crewlog.agents.offline_data_shape import COUNT, Ask, Function, default_function, refused, uncounted, with_
from crewlog.agents.offline_text import closeness, name_tokens, stem, stems, terms, words

TOP: Final = re.compile(
    (
        r"\b(?:top|best|highest|largest|biggest|first)\s+(\d{1,3})\b|\b(\d{1,3})\s+(?:highest|largest|biggest|best|most|top|lowest|"
        r"smallest|worst|[a-z]{3,}est)\b|\b(?:bottom|worst|lowest|smallest)\s+(\d{1,3})\b|"
        r"\b(\d{1,3})\s+(?:[\w-]+\s+){1,4}?(?:with|have|has|had)\s+(?:the\s+)?(?:most|fewest|[a-z]{2,}est)\b"
    ),
    re.IGNORECASE,
)
WHICH: Final = re.compile(
    (
        r"\b(?:which|what)\s+((?:[\w-]+\s+){1,3}?)(?:has|have|had|is|are|was|were|sold|sells|made|makes|got|gets?|earn\w*|shows?|spen[dt]\w*|paid|pays?|"
        r"bought|buys?|brought|brings?|took|takes?|won|wins?|lost|loses?|gave|gives?|saw|sees?|drew|grew|costs?|weighs?|[a-z]{3,}ed)\b"
    ),
    re.IGNORECASE,
)
_LOW: Final = re.compile(rf"\b(?:bottom|worst|min(?:imum)?|less|fewer|lower|smaller|{LEAST})\b", re.IGNORECASE)
SUPERLATIVE: Final = "most|least|best|worst|top|highest|lowest|largest|biggest|smallest|[a-z]{3,}est"
_EXTREME_OF: Final = re.compile(
    rf"(?:\b(?:what|which|who)\s+(?:is|was|are|were)\s+(?:the\s+)?|^(?:(?:find|show|give|name|list|tell)\s+(?:me\s+)?)?(?:the\s+)?)(?:{SUPERLATIVE})\s+"
    r"((?!common|frequent)[\w ]+?)(?=\s+(?:in|of|by|on|with|for|per|at|from|has|had|was|is)\b|[?.,;]|$)",
    re.IGNORECASE,
)
"""The noun after a superlative: "what was the hottest day in May?"."""
COMPARED: Final = re.compile(r"\b(?:most|best|worst|(?:more|higher|larger|bigger|less|fewer|lower|smaller)\b(?! than))\b", re.IGNORECASE)
_MOST_ROWS: Final = re.compile(r"\b(?:most|fewest|more|fewer|least)\s+(?:of the\s+)?([a-z]+)\b", re.IGNORECASE)
_ROWS: Final = stems("row record entry line time often")
_NTH: Final = re.compile(r"\b(second|third|fourth|fifth|2nd|3rd|4th|5th)[ -](?=(?:most|least|best|worst|[a-z]{2,}est)\b)", re.IGNORECASE)
_RANKS: Final = {"second": 2, "2nd": 2, "third": 3, "3rd": 3, "fourth": 4, "4th": 4, "fifth": 5, "5th": 5}
_AND_WHICH: Final = re.compile(r"\band\s+(?:(?:in|on|at|by|for)\s+)?(?:when|who|which|what)\b\s*(.*)", re.IGNORECASE)
"""What is asked besides an extreme: "the highest price, and which order had it"."""
_BORN: Final = stems("born birth birthday birthdate dob")
_BY_WHAT: Final = re.compile(rf"\b(?!(?:largest|highest|biggest|greatest|peak|lowest|smallest|least|fewest)\b)(?:{MOST}|{LEAST}|best|worst)\b", re.IGNORECASE)
"""Superlatives that need something to be measured by; of what is highest or largest there may just be most rows."""
_VERB_MOST: Final = re.compile(
    r"\b(?:earn\w*|spen[dt]\w*|paid|pays?|cost\w*|weigh\w*|sold|sells?|made|makes|scored?)\s+(?:the\s+)?(?:most|least|more|less)\b(?!\s+[a-z]{3,})",
    re.IGNORECASE,
)
FREQUENT: Final = re.compile(r"\b(?:most|least) (?:common|frequent|popular|often)\b(?:\s+(\w+))?", re.IGNORECASE)
_RECENT: Final = re.compile(
    r"\b(?:most )?(recent|recently|latest|newest|last|first|earliest)\b(?! (?:name|\d|hour|day|week|month|quarter|year))", re.IGNORECASE
)


def ranking(question: str, base: Ask) -> Ask | None:
    """Understand what comes first, or in another place; None when nothing is ranked."""
    nth = _NTH.search(question)
    question = _NTH.sub("", question)
    counted = TOP.search(question)
    extreme_of = _EXTREME_OF.search(question)
    which = WHICH.search(question)
    frequent = FREQUENT.search(question)
    who = re.match(r"\s*who(?:se)?\b", question, re.IGNORECASE)
    extreme = COMPARED.search(question) or _RECENT.search(question) or any(function in ("min", "max") for function in base.functions)
    besides = _AND_WHICH.search(question) if base.measures and set(base.functions) & {"min", "max"} else None
    labels = _labels(question, base, besides or (frequent if frequent and frequent.group(1) else which or extreme_of))
    is_about_labels = (which or who) and extreme
    if extreme_of and not which:
        noun = terms(extreme_of.group(1))
        is_about_labels = is_about_labels or any(closeness(noun, c.name) >= NEAR for c in labels) or _is_day(extreme_of.group(1), labels)
        is_about_labels = is_about_labels or is_a_row(extreme_of.group(1), base.source)
    if not labels or not (counted or is_about_labels or frequent or besides):
        return None
    measures = () if frequent else tuple(m for m in base.measures if m not in labels) or tuple(c for c in base.groups if c.sort == "number")
    rows = _MOST_ROWS.search(question)  # of a table and a column by one name, "the most rain" is of the column
    counts_rows = bool(rows and is_a_row(rows.group(1), base.source) and not any(stem(rows.group(1).lower()) in m.words for m in measures))
    measures = () if counts_rows else measures
    limit = int(next(g for g in counted.groups() if g)) if counted else 5
    low = bool(_LOW.search(question)) and not re.search(r"\b(?:top|highest|largest|biggest|most|more)\b", question, re.IGNORECASE)
    notes = base.notes if measures else ()
    if (recent := _RECENT.search(question)) and (dates := [c for c in base.source.of("date") if c not in labels]):
        measures, low, notes = (dates[0],), recent.group(1).lower() in ("first", "earliest"), ()
    elif not measures and (born := [c for c in base.source.of("date") if set(c.words) & _BORN and re.search(r"\b(?:old|young)", question, re.IGNORECASE)]):
        measures, low = (born[0],), not low
    elif not measures and not frequent and not COUNT.search(question) and re.search(r"\b(?:best|worst)\b", question, re.IGNORECASE):
        measures = tuple(filter(None, (what_counts(base.source),)))
        notes = tuple(f"nothing says by what, so {measure.name} is taken" for measure in measures)
    if not measures and not frequent and not counts_rows and (adjective := _BY_WHAT.search(question) or _VERB_MOST.search(question)):
        return refused(base, f"nothing in {base.source.name} says “{adjective.group()}”")
    functions = tuple(f for f in base.functions if f in ("min", "max")) if besides else _ranking_function(base, labels[0], measures)
    doubts = () if counts_rows else uncounted(question, measures) or _unheard(rows, frequent, measures, base.source)
    if not measures and not frequent and any(f in ("mean", "median") for f in base.functions):
        doubts = ("no column is named for it, so rows are counted instead",)
    return with_(
        base,
        shape="top",
        functions=functions[:1],
        measures=measures[:1],
        groups=tuple(labels[:1]),
        limit=max(1, limit, rank := _RANKS[nth.group(1).lower()] if nth else 1),
        rank=rank,
        is_ascending=low,
        notes=notes,
        doubts=doubts,
    )


def _ranking_function(base: Ask, label: Column, measures: Sequence[Column]) -> tuple[Function, ...]:
    """Return how the measure of a ranking is put together: as it stands when each label has one row, by its extreme when it nearly has."""
    if not measures:
        return ("count",)
    if measures[0].sort == "date" or label.distinct >= base.source.rows:
        return ("value",)
    extremes, others = (tuple(f for f in base.functions if (f in ("min", "max")) is wanted) for wanted in (True, False))
    if extremes and not others and (label.part == "day" or 2 * label.distinct >= base.source.rows):
        return extremes
    return others or (default_function(measures[0]),)


def _unheard(rows: re.Match[str] | None, frequent: re.Match[str] | None, measures: Sequence[Column], source: Source) -> tuple[str, ...]:
    """Say that rows are counted for want of what there is to be most of."""
    if rows is None or frequent or measures or stem(noun := rows.group(1).lower()) in _ROWS or any(stem(noun) in c.words for c in source.columns):
        return ()
    return (f"nothing in {source.name} is called “{noun}”, so rows are counted instead",)


def is_a_row(noun: str | None, source: Source) -> bool:
    """Say whether a noun is what the rows are, by the name of the table: a movie in `movies`."""
    return any({stem(word), stem(f"{word}s")} & set(name_tokens(source.name)) for word in words(noun or ""))


def _is_day(noun: str, labels: Sequence[Column]) -> bool:
    return labels[:1] != [] and labels[0].sort == "date" and bool({"day", "date"} & set(words(noun)))


def _labels(question: str, base: Ask, which: re.Match[str] | None) -> list[Column]:
    """Return the columns that name what is ranked: the noun of the question, a group, or names."""
    source = base.source
    used = terms(which.group(1)) if which else terms(re.split(r"\bby\b|\bwith\b|\bin terms of\b", question, maxsplit=1, flags=re.IGNORECASE)[0])
    if keys := [c for c in source.columns if is_key(c, source.rows) and set(c.words) <= set(used) and len(name_tokens(c.name)) > 1]:
        return keys
    if calendar := calendar_columns(question, source):
        return calendar
    kinds = [c for c in source.columns if c.sort in ("text", "bool", "date") and closeness(used, c.name) >= NEAR and c not in base.measures]
    if which and is_a_row(which.group(1), source) and not any(closeness(used, " ".join(c.words)) >= 0.99 for c in kinds):
        return _naming(source)
    if re.match(r"\s*who(?:se)?\b", question, re.IGNORECASE):
        kinds = [c for c in kinds if c.sort != "date"]
    if (not kinds or kinds[0].sort == "date") and {"day", "date"} & set(used):
        kinds = day_of(source)
    elif not kinds and re.search(r"\band when\b", question, re.IGNORECASE):
        kinds = source.of("date")[:1]
    return in_full(kinds, question, source) or [c for c in base.groups if c.sort != "number"] or _naming(source)


def _naming(source: Source) -> list[Column]:
    """Return the column that names what the rows are about: by its name, by a value of its own in nearly each row, or the first of words."""
    texts = source.of("text")
    named = [c for c in texts if {"name", "titl"} & set(c.words)]
    return (named or [c for c in (*texts, *filter(lambda c: is_key(c, source.rows), source.columns)) if c.distinct * 10 >= source.rows * 9] or texts)[:1]
