"""What the data rules are going to compute: one thing about one source, or nothing, and why."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from crewlog.agents.offline_data_conditions import Condition
from crewlog.agents.offline_data_facts import Column, Source
from crewlog.agents.offline_data_match import is_additive
from crewlog.agents.offline_text import join_words, stem, stems, terms, words

Function = Literal["count", "sum", "mean", "median", "min", "max", "stddev", "distinct", "rate", "value"]
Shape = Literal["profile", "value", "group", "top", "trend", "share", "missing", "duplicates", "correlation", "rows", "none"]

PROFILE: Final = re.compile(
    r"\b(?:summari[sz]e|summary|describe|overview|profile|analy[sz]e|analysis|explore|statistics|report on|look at|measurements)\b", re.IGNORECASE
)
COUNT: Final = re.compile(r"\b(?:how many|count|number of|frequency|counts)\b", re.IGNORECASE)
_AMOUNTS: Final = stems("revenue sales amount quantity units spend profit turnover income rain rainfall population price cost salary")


@dataclass(frozen=True, slots=True)
class Ask:
    """One thing to compute about one source."""

    source: Source
    shape: Shape
    functions: tuple[Function, ...] = ()
    measures: tuple[Column, ...] = ()
    groups: tuple[Column, ...] = ()
    filters: tuple[Condition, ...] = ()
    date: Column | None = None
    period: str = ""
    limit: int = 0
    is_ascending: bool = False
    wants_chart: bool = False
    draws: Literal["", "histogram"] = ""
    """A kind of chart that was asked for by name and needs rows of its own."""
    is_contrast: bool = False
    """The difference between its groups was asked for."""
    rank: int = 1
    """Which of a ranking was asked for."""
    whether: tuple[Condition, ...] = ()
    """Conditions of which the share of rows that meet them was asked for."""
    focus: tuple[str, ...] = ()
    """The groups whose share was asked for."""
    notes: tuple[str, ...] = ()
    """Choices that a reader should know of."""
    doubts: tuple[str, ...] = ()
    """What was said and could not be taken into account; to be read before the numbers."""


def with_(ask: Ask, **changes: object) -> Ask:
    """Return an ask with some of its fields changed."""
    return replace(ask, **changes)  # type: ignore[arg-type]  # the names are checked by every test that gets here


def refused(ask: Ask, *reasons: str) -> Ask:
    """Answer nothing and say why, and what there is."""
    names = [column.name for column in ask.source.columns]
    held = f"the columns of {ask.source.name} are {join_words(names[:12])}{f' and {len(names) - 12} more' if len(names) > 12 else ''}"
    return Ask(ask.source, "none", doubts=reasons, notes=(held,))


def default_function(measure: Column) -> Function:
    """Return how a measure is put together when nobody says: amounts add up, everything else has a mean."""
    return "sum" if is_additive(measure) else "mean"


def uncounted(question: str, measures: Sequence[Column]) -> tuple[str, ...]:
    """Say that rows are counted where something else was asked for."""
    if measures or COUNT.search(question) or not set(terms(question)) & _AMOUNTS:
        return ()
    return (f"no column holds {join_words(word for word in words(question) if stem(word) in _AMOUNTS)}, so rows are counted instead",)
