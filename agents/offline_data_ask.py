"""From the words of a question to what has to be computed: measures, groups, filters, order, and the shape of the answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from crewlog.agents.offline_data_facts import MISSING_SPELLINGS, Column, Source, is_key, is_year
from crewlog.agents.offline_tables import as_number
from crewlog.agents.offline_text import STOP_WORDS, closeness, name_tokens, quoted, stem, stems, terms, words

Function = Literal["count", "sum", "mean", "median", "min", "max", "stddev", "distinct", "rate"]
Shape = Literal["profile", "value", "group", "top", "trend", "share", "missing", "correlation"]

_FUNCTIONS: Final[tuple[tuple[Function, re.Pattern[str]], ...]] = (
    ("mean", re.compile(r"\b(?:mean|average|avg|typical)\b", re.IGNORECASE)),
    ("median", re.compile(r"\bmedian\b", re.IGNORECASE)),
    ("stddev", re.compile(r"\b(?:standard deviation|std ?dev|spread|variation)\b", re.IGNORECASE)),
    ("sum", re.compile(r"\b(?:sum|totals?|overall|altogether|how much)\b", re.IGNORECASE)),
    ("min", re.compile(r"\b(?:min(?:imum)?|smallest|lowest|least|shortest|cheapest|lightest|earliest|fewest|youngest)\b", re.IGNORECASE)),
    ("max", re.compile(r"\b(?:max(?:imum)?|largest|highest|biggest|greatest|longest|heaviest|most expensive|latest|oldest|tallest|peak)\b", re.IGNORECASE)),
)
_COUNT: Final = re.compile(r"\b(?:how many|count|number of|frequency|counts)\b", re.IGNORECASE)
_MISSING: Final = re.compile(r"\b(?:missing|nulls?|empty cells?|incomplete|NAs?|completeness)\b")
_CORRELATION: Final = re.compile(r"\b(?:correlat\w*|relationship|relation|related|association|depends? on|linked)\b", re.IGNORECASE)
_SHARE: Final = re.compile(r"\b(?:shares?|percentages?|proportions?|fraction|percent|rates?)\b|%", re.IGNORECASE)
_DISTINCT: Final = re.compile(r"\b(?:distinct|different|unique)\b", re.IGNORECASE)
_TREND: Final = re.compile(
    (
        r"\b(?:over time|trend|per (?:day|week|month|quarter|year)|by (?:day|week|month|quarter|year)|each (?:day|week|month|quarter|"
        r"year)|daily|weekly|monthly|quarterly|yearly|annual(?:ly)?|month over month)\b"
    ),
    re.IGNORECASE,
)
_GROUP: Final = re.compile(
    (
        r"\b(?:per|by|for each|for every|in each|of each|each|across|among|between|grouped by|broken down by|split by|"
        r"for all)\s+((?:[\w-]+(?:\s*,\s*|\s+and\s+|\s+|(?![\w-]))){1,5})"
    ),
    re.IGNORECASE,
)
_TOP: Final = re.compile(
    (
        r"\b(?:top|best|highest|largest|biggest|first)\s+(\d{1,3})\b|\b(\d{1,3})\s+(?:highest|largest|biggest|best|most|top|lowest|"
        r"smallest|cheapest|worst)\b|\b(?:bottom|worst|lowest|smallest)\s+(\d{1,3})\b"
    ),
    re.IGNORECASE,
)
_WHICH: Final = re.compile(
    r"\b(?:which|what)\s+((?:[\w-]+\s+){1,3}?)(?:has|have|had|is|are|was|were|sold|sells|made|makes|got|earn\w*|shows?)\b", re.IGNORECASE
)
_LOW: Final = re.compile(
    r"\b(?:bottom|worst|lowest|smallest|cheapest|least|fewest|shortest|lightest|min(?:imum)?|less|fewer|lower|smaller|youngest)\b", re.IGNORECASE
)
_PROFILE: Final = re.compile(
    r"\b(?:summari[sz]e|summary|describe|overview|profile|analy[sz]e|analysis|explore|statistics|report on|look at|measurements)\b", re.IGNORECASE
)
_CHART: Final = re.compile(r"\b(?:charts?|plots?|graphs?|histograms?|visuali[sz]\w*|figure|diagrams?|draw)\b", re.IGNORECASE)
_COMPARE: Final = re.compile(
    (
        r"([A-Za-z_][\w ]{0,40}?)\s*(?:is |are |was |were )?(over|above|greater than|more than|higher than|larger than|at least|from|"
        r"under|below|less than|lower than|smaller than|at most|>=|<=|>|<|=|equals?)\s*\$?(-?\d[\d,]*(?:\.\d+)?)"
    ),
    re.IGNORECASE,
)
_OPERATORS: Final = {"at least": ">=", "from": ">=", ">=": ">=", "at most": "<=", "<=": "<=", "=": "=", "equal": "=", "equals": "="}
_ADDITIVE: Final = stems(
    "revenue sales amount quantity qty units total sum orders spend profit turnover hours visits votes population cases deaths "
    "income count clicks downloads passengers rain rainfall precipitation"
)
_SYNONYMS: Final = tuple(
    stems(group)
    for group in (
        "revenue sales amount turnover total value sold sell earned earn income proceeds",
        "price cost amount fee charge expensive cheap",
        "salary wage pay income earnings compensation",
        "quantity qty units count items sold number",
        "duration time hours minutes length long",
        "weight mass heavy heaviest",
        "height tall tallest altitude elevation",
        "score rating points grade mark",
        "age old oldest young youngest",
    )
)
NEAR: Final = 0.5
"""How close a column name must come to the words of a question."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One thing to compute about one source."""

    source: Source
    shape: Shape
    functions: tuple[Function, ...] = ()
    measures: tuple[Column, ...] = ()
    groups: tuple[Column, ...] = ()
    filters: tuple[tuple[Column, str, tuple[str | float, ...]], ...] = ()
    date: Column | None = None
    period: str = ""
    limit: int = 0
    is_ascending: bool = False
    wants_chart: bool = False
    notes: tuple[str, ...] = ()
    """Choices that a reader should know of."""


def understand(question: str, sources: Sequence[Source]) -> list[Ask]:
    """Return what a question asks of the sources; a profile of each when nothing more definite is asked."""
    if not sources:
        return []
    asked = re.split(r";\s+", question)
    asks = [ask for part in asked for ask in _understand_part(part, sources)]
    wants_chart = bool(_CHART.search(question))
    plain = [ask for ask in asks if ask.shape == "profile"]
    if plain and len(plain) < len(asks):
        # "summarise the table; plot it": what is definite decides, the rest adds nothing
        asks = [ask for ask in asks if ask.shape != "profile"] or asks
    seen: list[Ask] = []
    for ask in asks:
        if ask not in seen:
            seen.append(ask)
    return [Ask(**{**{name: getattr(a, name) for name in a.__dataclass_fields__}, "wants_chart": wants_chart}) for a in seen[:4]]


def _understand_part(question: str, sources: Sequence[Source]) -> list[Ask]:
    ranked = sorted(sources, key=lambda source: -_fit(question, source))
    if _fit(question, ranked[0]) == 0 or (_PROFILE.search(question) and not _has_function(question)):
        chosen = [source for source in sources if closeness(terms(question), source.name) >= 1] or list(sources)
        if _is_profile(question, chosen[0]):
            return [Ask(source, "profile") for source in chosen[:3]]
        if _MISSING.search(question):
            return [Ask(source, "missing") for source in chosen[:3]]
    return [_ask(question, ranked[0])]


def _fit(question: str, source: Source) -> float:
    used = terms(question)
    return 2 * closeness(used, source.name) + sum(closeness(used, column.name) >= NEAR for column in source.columns) + len(find_filters(question, source))


def _has_function(question: str) -> bool:
    return bool(
        _COUNT.search(question)
        or any(pattern.search(question) for _, pattern in _FUNCTIONS)
        or _CORRELATION.search(question)
        or _TOP.search(question)
        or _SHARE.search(question)
    )


def _is_profile(question: str, source: Source) -> bool:
    if _has_function(question) or _MISSING.search(question) or _TREND.search(question):
        return False
    return not (_GROUP.search(question) and group_columns(question, source))


def _ask(question: str, source: Source) -> Ask:
    filters = find_filters(question, source)
    groups = group_columns(question, source)
    taken = {column.name for column, _, _ in filters} | {column.name for column in groups}
    measures, notes = measure_columns(question, source, taken)
    functions = tuple(function for function, pattern in _FUNCTIONS if pattern.search(question))
    compared = [column for column, operator, values in filters if operator == "in" and len(values) > 1 and column not in groups]
    groups = [*groups, *compared]
    period = _period(question)
    date = next(iter(source.of("date")), None)
    answered_yes = next((column for column, operator, _ in filters if operator == "true"), None)
    if _SHARE.search(question) and answered_yes is not None:
        rest = tuple(f for f in filters if f[0] is not answered_yes)
        across = tuple(column for column in groups if column is not answered_yes)
        return Ask(source, "group" if across else "value", ("rate",), (answered_yes,), across, rest)
    base = Ask(source, "value", functions, tuple(measures), tuple(groups), filters, notes=tuple(notes))
    if _MISSING.search(question) and not groups:
        return _with(base, shape="missing")
    if _CORRELATION.search(question):
        numbers = [c for c in measures if c.sort == "number"]
        numbers = numbers if len(numbers) >= 2 else [*numbers, *(c for c in source.measures if c not in numbers)]
        if len(numbers) >= 2:
            return _with(base, shape="correlation", measures=tuple(numbers[:2]), groups=())
    if _TREND.search(question) and (found := _trend(question, base, date, period)):
        return found
    if found := _top(question, base):
        return found
    if _SHARE.search(question) and (groups or filters):
        by = groups or [filters[0][0]]
        kept = tuple(f for f in filters if f[0] not in by)
        return _with(base, shape="share", groups=tuple(by[:1]), filters=kept)
    return _aggregate(question, base)


def _aggregate(question: str, base: Ask) -> Ask:
    source, functions, measures = base.source, base.functions, base.measures
    is_plain_count = bool(_COUNT.search(question)) and not any(f in ("mean", "median", "stddev", "min", "max") for f in functions)
    if (_DISTINCT.search(question) and not functions) or (is_plain_count and not base.groups and not base.filters):
        columns = _counted(question, source) or [c for c in source.columns if _DISTINCT.search(question) and closeness(terms(question), c.name) >= 1]
        if columns:
            return _with(base, functions=("distinct",), measures=tuple(columns[:1]), groups=())
    shape: Shape = "group" if base.groups else "value"
    if is_plain_count:
        amounts = amounts_counted(question, measures)
        return _with(base, shape=shape, functions=("sum",) if amounts else ("count",), measures=amounts)
    if not functions and not measures and not base.groups and not base.filters:
        return _with(base, shape="profile")
    if not functions:
        functions = tuple(dict.fromkeys(default_function(measure) for measure in measures)) or ("count",)
    if not measures and functions != ("count",):
        measures = tuple(source.measures[:4])
        notes = (*base.notes, f"no column is named, so all measures are taken: {', '.join(m.name for m in measures)}") if measures else base.notes
        return _with(base, shape=shape, functions=functions if measures else ("count",), measures=measures, notes=notes)
    return _with(base, shape=shape, functions=functions, measures=measures)


def amounts_counted(question: str, measures: Sequence[Column]) -> tuple[Column, ...]:
    """Return the measure that is counted itself: "how many units" where `units` holds amounts."""
    found = re.search(r"\b(?:how many|number of|count of)\s+(?:the\s+)?([\w-]+)", question, re.IGNORECASE)
    noun = stem(found.group(1).lower()) if found else ""
    return tuple(m for m in measures if noun in m.words)[:1]


def _with(ask: Ask, **changes: object) -> Ask:
    fields = {name: getattr(ask, name) for name in ask.__dataclass_fields__}
    return Ask(**{**fields, **changes})


def default_function(measure: Column) -> Function:
    """Return how a measure is put together when nobody says: amounts add up, everything else has a mean."""
    return "sum" if set(measure.words) & _ADDITIVE else "mean"


def _period(question: str) -> str:
    for unit, names in (("day", ("day", "daily")), ("week", ("week",)), ("quarter", ("quarter",)), ("month", ("month",)), ("year", ("year", "annual"))):
        if any(name in question.lower() for name in names):
            return unit
    return ""


def _trend(question: str, base: Ask, date: Column | None, period: str) -> Ask | None:
    named = [c for c in base.source.columns if period and name_tokens(c.name)[-1:] == [stem(period)] and c.sort != "date"]
    axis = named[0] if named else date or next((c for c in base.source.columns if is_year(c)), None)
    if axis is None:
        return None
    measures = tuple(m for m in base.measures if m != axis)
    functions = base.functions or tuple(dict.fromkeys(default_function(m) for m in measures)) or ("count",)
    if _COUNT.search(question):
        measures = amounts_counted(question, measures)
        functions = ("sum",)
    if not measures:
        functions = ("count",)
    return _with(
        base, shape="trend", date=axis, period=(period or "month") if axis.sort == "date" else "", functions=functions[:1], measures=measures[:3], groups=()
    )


def _top(question: str, base: Ask) -> Ask | None:
    counted = _TOP.search(question)
    which = _WHICH.search(question)
    who = re.match(r"\s*who(?:se)?\b", question, re.IGNORECASE)
    compared = re.search(r"\b(?:most|best|more|higher|larger|bigger|less|fewer|lower|smaller)\b", question, re.IGNORECASE)
    extreme = compared or any(function in ("min", "max") for function in base.functions)
    if not counted and not ((which or who) and extreme):
        return None
    source = base.source
    used = terms(which.group(1)) if which else terms(re.split(r"\bby\b|\bwith\b|\bin terms of\b", question, maxsplit=1, flags=re.IGNORECASE)[0])
    labels = (
        [c for c in source.columns if c.sort in ("text", "bool", "date") and closeness(used, c.name) >= NEAR]
        or [c for c in base.groups if c.sort != "number"]
        or [c for c in source.of("text") if "name" in c.words][:1]
        or source.of("text")[:1]
    )
    measures = [m for m in base.measures if m not in labels] or [c for c in base.groups if c.sort == "number"]
    limit = int(next(g for g in counted.groups() if g)) if counted else 5
    low = bool(_LOW.search(question)) and not re.search(r"\b(?:top|highest|largest|biggest|most|more)\b", question, re.IGNORECASE)
    functions = tuple(f for f in base.functions if f not in ("min", "max")) or (default_function(measures[0]),) if measures else ("count",)
    if not labels:
        return None
    return _with(base, shape="top", functions=functions[:1], measures=tuple(measures[:1]), groups=tuple(labels[:1]), limit=max(1, limit), is_ascending=low)


def _counted(question: str, source: Source) -> list[Column]:
    """Return the column whose distinct values are counted: "how many species" where `species` is a column."""
    found = re.search(r"\b(?:how many|number of|count)\s+(?:the\s+)?(?:distinct|different|unique\s+)?\s*([\w-]+)(?:\s+([\w-]+))?", question, re.IGNORECASE)
    if not found:
        return []
    noun = [stem(word) for word in words(found.group(1)) if word not in STOP_WORDS]
    return [c for c in source.columns if noun and set(c.words) <= set(noun) and c.sort in ("text", "date")]


def group_columns(question: str, source: Source) -> list[Column]:
    """Return the columns named after "by", "per", "for each" …, in the order of the question."""
    found: list[Column] = []
    for match in _GROUP.finditer(question):
        span = [stem(word) for word in words(match.group(1)) if word not in STOP_WORDS or word in ("month", "year", "day")]
        scored = [(closeness(span[:4], c.name), c) for c in source.columns if not is_key(c, source.rows) or len(c.words) > 1]
        scored = [(score, c) for score, c in scored if score >= 0.7 or (score >= NEAR and c in source.categories)]
        best = max((score for score, _ in scored), default=0.0)
        found += [c for score, c in scored if score >= max(0.7, best - 0.2) or score == best]
    groupable = [c for c in dict.fromkeys(found) if c.sort != "number" or is_year(c) or (c.distinct and c.distinct <= 20)]
    return groupable[:3]


def measure_columns(question: str, source: Source, taken: set[str]) -> tuple[list[Column], list[str]]:
    """Return the numeric columns a question speaks of, and a note when the name was not exact."""
    used = terms(_GROUP.sub(" ", question)) or terms(question)
    allowed = [c for c in source.of("number") if c.name not in taken and not (is_key(c, source.rows) and "id" not in words(question))]
    scored = [(max(closeness(used, c.name), closeness(used, " ".join(c.words))), c) for c in allowed]
    scored = [(score, c) for score, c in scored if score >= NEAR]
    if not scored:
        # the group phrase may hold the measure after all: "top 5 products by revenue"
        scored = [(score, c) for c in allowed if (score := closeness(terms(question), " ".join(c.words))) >= NEAR]
    if not scored and (likely := [c for c in allowed if any(set(c.words) & also and set(used) & also for also in _SYNONYMS)]):
        return likely[:1], [f"taken for what the question names: {likely[0].name}"]
    exact = [c for score, c in scored if score >= 0.99]
    if exact:
        return exact, []
    best = max((score for score, _ in scored), default=0.0)
    near = [c for score, c in scored if score >= best - 0.05]
    notes = [f"taken for what the question names: {', '.join(c.name for c in near)}"] if near else []
    return near[:4], notes


def find_filters(question: str, source: Source) -> tuple[tuple[Column, str, tuple[str | float, ...]], ...]:
    """Return the conditions in a question: values that stand in the data, comparisons with numbers, years."""
    found: list[tuple[Column, str, tuple[str | float, ...]]] = []
    names = {token for column in source.columns for token in name_tokens(column.name)}
    lowered = f" {re.sub(r'[^a-z0-9]+', ' ', question.lower())} "
    for column in source.of("text", "bool"):
        hits = [
            v for v in column.values if v not in MISSING_SPELLINGS and _says(lowered, v) and (v in quoted(question) or not {stem(w) for w in words(v)} <= names)
        ]
        if hits and column.sort == "text":
            found.append((column, "in", tuple(sorted(hits))))
    used = terms(_GROUP.sub(" ", question))
    found += [(column, "true", ()) for column in source.columns if column.is_yes_or_no and closeness(used, " ".join(column.words)) >= 0.8]
    for match in _COMPARE.finditer(question):
        operator = _OPERATORS.get(
            match.group(2).lower(),
            ">" if match.group(2).lower() in ("over", "above", ">") or re.search(r"greater|more|higher|larger", match.group(2), re.IGNORECASE) else "<",
        )
        tail = terms(match.group(1))[-3:]
        scored = sorted(((closeness(tail, " ".join(c.words)), -at, c) for at, c in enumerate(source.of("number"))), key=lambda entry: entry[:2], reverse=True)
        number = as_number(match.group(3).replace(",", ""))
        if scored and scored[0][0] >= NEAR and number is not None:
            found.append((scored[0][2], operator, (number,)))
    years = [c for c in source.columns if is_year(c)]
    for year in re.findall(r"\b(?:in|during|for|of)\s+((?:19|20)\d\d)\b", question):
        if years:
            found.append((years[0], "=", (float(year),)))
        elif dates := source.of("date"):
            found.append((dates[0], "year", (float(year),)))
    return tuple(found)


def _says(lowered: str, value: str) -> bool:
    plain = re.sub(r"[^a-z0-9]+", " ", value.lower()).strip()
    if len(plain) < 2 or plain.isdigit():
        return False
    return f" {plain} " in lowered or (len(plain) > 2 and (f" {plain}s " in lowered or (plain.endswith("y") and f" {plain[:-1]}ies " in lowered)))
