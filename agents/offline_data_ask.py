"""From the words of a question to what has to be computed: measures, groups, filters, order, and the shape of the answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

from crewlog.agents.offline_clauses import split_goal
from crewlog.agents.offline_data_conditions import AVERAGE, Condition, find_filters, unmatched
from crewlog.agents.offline_data_facts import Column, Source, is_key, is_year
from crewlog.agents.offline_data_match import GROUP, NEAR, group_columns, is_additive, measure_columns, names_extreme, what_counts, without_a_column
from crewlog.agents.offline_report import show
from crewlog.agents.offline_tables import as_number
from crewlog.agents.offline_text import STOP_WORDS, closeness, join_words, name_tokens, stem, stems, terms, words

Function = Literal["count", "sum", "mean", "median", "min", "max", "stddev", "distinct", "rate", "value"]
Shape = Literal["profile", "value", "group", "top", "trend", "share", "missing", "correlation", "rows"]

_LEAST: Final = "smallest|lowest|least|shortest|cheapest|lightest|earliest|fewest|youngest|coldest|coolest|driest|fastest|quickest"
_MOST: Final = (
    "largest|highest|biggest|greatest|longest|heaviest|most expensive|latest|oldest|tallest|peak|hottest|warmest|wettest|windiest|slowest|richest|farthest"
)
_FUNCTIONS: Final[tuple[tuple[Function, re.Pattern[str]], ...]] = (
    ("mean", re.compile(r"\b(?:mean|average|avg|typical)\b", re.IGNORECASE)),
    ("median", re.compile(r"\bmedian\b", re.IGNORECASE)),
    ("stddev", re.compile(r"\b(?:standard deviation|std ?dev|spread|variation)\b", re.IGNORECASE)),
    ("sum", re.compile(r"\b(?:sum|totals?|overall|altogether|how much)\b", re.IGNORECASE)),
    ("min", re.compile(rf"\b(?:min(?:imum)?|{_LEAST})\b", re.IGNORECASE)),
    ("max", re.compile(rf"\b(?:max(?:imum)?|{_MOST})\b", re.IGNORECASE)),
)
_COUNT: Final = re.compile(r"\b(?:how many|count|number of|frequency|counts)\b", re.IGNORECASE)
_MISSING: Final = re.compile(r"\b(?:missing|nulls?|empty cells?|incomplete|NAs?|completeness)\b")
_CORRELATION: Final = re.compile(r"\b(?:correlat\w*|relat(?:e|es|ed|ion|ionship)|association|depends? on|linked)\b", re.IGNORECASE)
_SHARE: Final = re.compile(r"\b(?:shares?|percentages?|proportions?|fraction|percent|rates?)\b|%", re.IGNORECASE)
_DISTINCT: Final = re.compile(r"\b(?:distinct|different|unique)\b", re.IGNORECASE)
_PERIODS: Final = "hour|day|week|month|quarter|year"
_TREND: Final = re.compile(
    rf"\b(?:over time|trend|(?:per|by|each) (?:{_PERIODS})|(?:which|what) (?:hour|week|month|quarter|year)|(?:by|per) [a-z_]+(?:,| and) (?:{_PERIODS})|"
    r"hourly|daily|weekly|monthly|quarterly|yearly|annual(?:ly)?|month over month)\b",
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
_LOW: Final = re.compile(rf"\b(?:bottom|worst|min(?:imum)?|less|fewer|lower|smaller|{_LEAST})\b", re.IGNORECASE)
_SUPERLATIVE: Final = "most|least|best|worst|top|highest|lowest|largest|biggest|smallest|[a-z]{3,}est"
_EXTREME_OF: Final = re.compile(
    rf"(?:\b(?:what|which|who)\s+(?:is|was|are|were)\s+(?:the\s+)?|^(?:(?:find|show|give|name|list|tell)\s+(?:me\s+)?)?(?:the\s+)?)(?:{_SUPERLATIVE})\s+"
    r"((?!common|frequent)[\w ]+?)(?=\s+(?:in|of|by|on|with|for|per|at|from|has|had|was|is)\b|[?.,;]|$)",
    re.IGNORECASE,
)
"""The noun after a superlative: "what was the hottest day in May?"."""
_FREQUENT: Final = re.compile(r"\b(?:most|least) (?:common|frequent|popular|often)\b(?:\s+(\w+))?", re.IGNORECASE)
_BEYOND: Final = re.compile(
    r"\b(percentiles?|quartiles?|quantiles?|variance|ratio|growth|grew|grows|grown|moving average|running total|cumulative|forecast|predict\w*|regression|"
    r"significan\w+|outliers?|p-?value|cluster\w*)\b",
    re.IGNORECASE,
)
"""What the rules cannot compute; to be said, not passed over."""
_RECENT: Final = re.compile(
    r"\b(?:most )?(recent|recently|latest|newest|last|first|earliest)\b(?! (?:name|\d|hour|day|week|month|quarter|year))", re.IGNORECASE
)
_NEGATION: Final = re.compile(r"\b(?:not|never|none|no longer|except|excluding)\b|n't\b", re.IGNORECASE)
_CONTRAST: Final = re.compile(r"\b(?:compare[ds]?|comparison|versus|vs|differences?|differ)\b", re.IGNORECASE)
_DATES: Final = re.compile(
    r"\b(?:date range|time (?:span|range|period)|(?:which|what) (?:dates|period|years)|from when|how recent|"
    r"(?:first|last|earliest|latest|newest|oldest) (?:date|day|entry|record))\b",
    re.IGNORECASE,
)
_LISTED: Final = re.compile(r"^\s*(?:list|show|print|display|give me|who (?:is|are|was|were)|which|find)\b", re.IGNORECASE)
_PROFILE: Final = re.compile(
    r"\b(?:summari[sz]e|summary|describe|overview|profile|analy[sz]e|analysis|explore|statistics|report on|look at|measurements)\b", re.IGNORECASE
)
CHART: Final = re.compile(r"\b(?:charts?|plots?|graphs?|histograms?|visuali[sz]\w*|figure|diagrams?|draw)\b", re.IGNORECASE)
_AMOUNTS: Final = stems("revenue sales amount quantity units spend profit turnover income rain rainfall population price cost salary")


_CHART_WORDS: Final = stems(
    "chart charts plot plots graph graphs histogram bar line scatter pie visualise visualize visualisation figure diagram draw add include nice simple "
    "result results data table"
)


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
    focus: tuple[str, ...] = ()
    """The groups whose share was asked for."""
    notes: tuple[str, ...] = ()
    """Choices that a reader should know of."""
    doubts: tuple[str, ...] = ()
    """What was said and could not be taken into account; to be read before the numbers."""


def understand(question: str, sources: Sequence[Source]) -> list[Ask]:
    """Return what a question asks of the sources; a profile of each when nothing more definite is asked."""
    if not sources:
        return []
    asks: list[Ask] = []
    for part in _parts(question):
        if is_chart_only(part):
            # "…? Draw a bar chart." belongs to the question before it
            asks = [*asks[:-1], _drawn(asks[-1], part)] if asks else [_drawn(ask, part) for ask in _understand_part(part, sources)]
        else:
            asks += [_drawn(ask, part) for ask in _understand_part(part, sources)]
    plain = [ask for ask in asks if ask.shape == "profile"]
    if plain and len(plain) < len(asks):
        # "summarise the table; plot it": what is definite decides, the rest adds nothing
        wants_chart = any(ask.wants_chart for ask in plain)
        asks = [ask for ask in asks if ask.shape != "profile"]
        asks = [*asks[:-1], replace(asks[-1], wants_chart=asks[-1].wants_chart or wants_chart)]
    return list(dict.fromkeys(asks))[:4]


def _parts(question: str) -> list[str]:
    headline, clauses = split_goal(question)
    texts = [clause.text for clause in clauses] or [question]
    parts = [
        part for text in texts for part in re.split(rf",\s*(?:and\s+)?(?=(?:the\s+)?(?:{_SUPERLATIVE})\s+[a-z]|an?\s+[a-z ]*(?:chart|plot|graph)\b)", text)
    ]
    return [f"{headline}: {parts[0]}" if headline and len(parts) == 1 else parts[0], *parts[1:]]


def is_chart_only(text: str) -> bool:
    """Say whether a clause asks for a drawing and names nothing to draw."""
    return bool(CHART.search(text)) and not set(terms(text)) - _CHART_WORDS


def _drawn(ask: Ask, text: str) -> Ask:
    if not CHART.search(text):
        return ask
    return replace(ask, wants_chart=True, draws="histogram" if re.search(r"\bhistogram", text, re.IGNORECASE) else ask.draws)


def _understand_part(question: str, sources: Sequence[Source]) -> list[Ask]:
    ranked = sorted(sources, key=lambda source: -_fit(question, source))
    if _fit(question, ranked[0]) == 0 or (_PROFILE.search(question) and not _has_function(question)):
        chosen = [source for source in sources if closeness(terms(question), source.name) >= 1] or list(sources)
        if _is_profile(question, chosen[0]):
            return [Ask(source, "profile", notes=source.notes) for source in chosen[:3]]
        if _MISSING.search(question):
            return [Ask(source, "missing") for source in chosen[:3]]
    ask = _ask(question, ranked[0])
    return [_with(ask, doubts=(*ask.doubts, *_ignored(question, ask)), notes=(*ask.notes, *_as_read(ask)))]


def _as_read(ask: Ask) -> list[str]:
    """Say what was not read as it stands in the file, of the whole table and of the columns that matter here."""
    used = {column.name for column in (*ask.measures, *ask.groups, *(column for column, _, _ in ask.filters))}
    return [note for note in ask.source.notes if ": read as" not in note or note.partition(": read as")[0] in used]


def _ignored(question: str, ask: Ask) -> list[str]:
    """Say which words look like conditions and are none."""
    conditions = find_filters(question, ask.source)
    doubts = []
    if names := unmatched(question, ask.source, conditions):
        listed = join_words(f"“{text}”" for text in names)
        doubts.append(f"{listed} is not among the known values of {ask.source.name}, so the numbers below are not limited to it")
    if ask.shape in ("value", "group") and (lacking := without_a_column(question, ask.source, ask.groups)):
        doubts.append(f"{ask.source.name} has no column for {join_words(f'“{word}”' for word in lacking)}, so the numbers below leave that out of account")
    if beyond := _BEYOND.search(question):
        doubts.append(f"these rules do not compute what “{beyond.group(1)}” asks for")
    if _NEGATION.search(question) and ask.shape != "missing" and not any(operator in ("not in", "false", "missing") for _, operator, _ in conditions):
        doubts.append("the negation in the question was not understood, so the numbers below leave it out of account")
    return doubts


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
        or _FREQUENT.search(question)
    )


def _is_profile(question: str, source: Source) -> bool:
    if _has_function(question) or _MISSING.search(question) or _TREND.search(question):
        return False
    return not (GROUP.search(question) and group_columns(question, source))


def _ask(question: str, source: Source) -> Ask:
    filters = find_filters(question, source)
    groups = group_columns(question, source)
    taken = {column.name for column, _, _ in filters if column.sort != "number"} | {column.name for column in groups}
    measures, notes = measure_columns(question, source, taken | {column.name for column, operator, _ in filters if operator == "="})
    plain = AVERAGE.sub(" ", question)
    functions = tuple(function for function, pattern in _FUNCTIONS if pattern.search(plain))
    if len(functions) > 1 and names_extreme(question, measures):
        functions = tuple(function for function in functions if function not in ("min", "max"))
    compared = [column for column, operator, values in filters if operator == "in" and len(values) > 1 and column not in groups]
    groups = [*groups, *compared]
    if _CONTRAST.search(question):
        groups += [column for column, operator, _ in filters if operator == "true" and column not in groups]
        filters = tuple(f for f in filters if f[1] != "true")
    base = Ask(source, "value", functions, tuple(measures), tuple(groups), filters, notes=tuple(notes))
    if _MISSING.search(question) and not groups:
        named = [c for c in source.columns if closeness(terms(question), " ".join(c.words)) >= 0.99]
        return _with(base, shape="missing", measures=tuple(named or measures))
    if _DATES.search(question) and not measures and source.of("date"):
        return _with(base, functions=("min", "max"), measures=tuple(source.of("date")[:1]), groups=())
    if _CORRELATION.search(question):
        numbers = [c for c in measures if c.sort == "number"]
        numbers = numbers if len(numbers) >= 2 else [*numbers, *(c for c in source.measures if c not in numbers)]
        if len(numbers) >= 2:
            return _with(base, shape="correlation", measures=tuple(numbers[:2]), groups=())
    if _SHARE.search(question) and (found := _share(question, base)):
        return found
    if _TREND.search(question) and (found := _trend(question, base)):
        return found
    if found := _top(question, base):
        return found
    return _rows(question, base) or _aggregate(question, base)


def _share(question: str, base: Ask) -> Ask | None:
    """Understand a share: of what is true among all, of rows that meet a condition, or of each group in the total."""
    answered_yes = next((column for column, operator, _ in base.filters if operator == "true"), None)
    if answered_yes is not None:
        rest = tuple(f for f in base.filters if f[0] is not answered_yes)
        across = tuple(column for column in base.groups if column is not answered_yes)
        return _with(base, shape="group" if across else "value", functions=("rate",), measures=(answered_yes,), groups=across, filters=rest)
    used = terms(question)
    named = [c for c in base.source.categories if c.sort == "text" and closeness(used, c.name) >= NEAR and c not in base.groups]
    by = list(base.groups) or [c for c, operator, _ in base.filters if operator in ("in", "=")][:1] or named[:1]
    if not by:
        return None
    kept = tuple(f for f in base.filters if f[0] not in by)
    additive = tuple(m for m in base.measures if m not in by and default_function(m) == "sum")
    focus = tuple(show(value) for column, operator, values in base.filters if column is by[0] and operator in ("in", "=") for value in values)
    return _with(base, shape="share", groups=tuple(by[:1]), filters=kept, measures=additive, focus=focus)


def _rows(question: str, base: Ask) -> Ask | None:
    """Understand "list the employees in HR": the rows themselves, when there are conditions and nothing is to be computed."""
    if not _LISTED.search(question) or not base.filters or base.groups or base.functions or _COUNT.search(question) or CHART.search(question):
        return None
    return _with(base, shape="rows")


def _aggregate(question: str, base: Ask) -> Ask:
    source, functions, measures = base.source, base.functions, base.measures
    is_plain_count = bool(_COUNT.search(question)) and not any(f in ("mean", "median", "stddev", "min", "max") for f in functions)
    if (_DISTINCT.search(question) and not functions) or is_plain_count:
        columns = _counted(question, source) or [c for c in source.columns if _DISTINCT.search(question) and closeness(terms(question), c.name) >= 1]
        columns = [c for c in columns if c not in base.groups and all(c is not column for column, _, _ in base.filters)]
        if columns:
            return _with(base, shape="group" if base.groups else "value", functions=("distinct",), measures=tuple(columns[:1]))
    shape: Shape = "group" if base.groups else "value"
    if _COUNT.search(question) and base.groups and not measures and set(functions) <= {"mean", "median"} and functions:
        return _with(base, shape=shape, functions=("count",), measures=(), doubts=(f"these are the counts; their {functions[0]} is not computed",))
    if is_plain_count:
        amounts = amounts_counted(question, measures)
        return _with(base, shape=shape, functions=("sum",) if amounts else ("count",), measures=amounts, notes=base.notes if amounts else ())
    if not functions and not measures and not base.groups and not base.filters:
        return _with(base, shape="profile")
    if not functions:
        functions = tuple(dict.fromkeys(default_function(measure) for measure in measures)) or ("count",)
    if not measures and functions != ("count",) and (worded := _worded(question, base)):
        vain = f"{worded.name} holds words{_such_as(worded)}, so its {functions[0]} cannot be computed and rows are counted"
        return _with(base, shape=shape, functions=("count",), doubts=(*base.doubts, vain))
    if not measures and functions != ("count",) and (unnamed := _unnamed(base)).measures:
        return _with(unnamed, shape=shape)
    if not measures:
        doubt = (f"there is no column of numbers to compute the {functions[0]} of, so rows are counted",) if functions != ("count",) else ()
        base, functions = _with(base, doubts=(*base.doubts, *doubt)), ("count",)
    doubts = (*base.doubts, *_uncounted(question, measures))
    notes = base.notes if measures or doubts else (*base.notes, "no column to compute with is named, so rows are counted")
    return _with(base, shape=shape, functions=functions, measures=measures, notes=notes, doubts=doubts)


def _worded(question: str, base: Ask) -> Column | None:
    """Return the column of words that a question asks to compute with."""
    used = terms(GROUP.sub(" ", question))
    busy = [*base.groups, *(column for column, _, _ in base.filters)]
    return next((c for c in base.source.of("text") if c not in busy and closeness(used, " ".join(c.words)) >= 0.99), None)


def _such_as(column: Column) -> str:
    value = next((value for value in column.values if as_number(value) is None), "")
    return f", such as “{value}”" if value else ""


def _unnamed(base: Ask) -> Ask:
    """Take what numbers there are for a function whose column nobody named, and say so; the same ask if there are none."""
    source = base.source
    measures = tuple(m for m in source.measures if base.functions != ("sum",) or default_function(m) == "sum")[:4] or tuple(source.measures[:4])
    if not measures:
        return base
    note = f"no column is named, so {join_words(m.name for m in measures)} {'is' if len(measures) == 1 else 'are'} taken"
    return _with(base, measures=measures, notes=(*base.notes, note))


def amounts_counted(question: str, measures: Sequence[Column]) -> tuple[Column, ...]:
    """Return the measure that is counted itself: "how many units" where `units` holds amounts."""
    found = re.search(r"\b(?:how many|number of|count of)\s+(?:the\s+)?([\w-]+)", question, re.IGNORECASE)
    noun = stem(found.group(1).lower()) if found else ""
    return tuple(m for m in measures if noun in m.words)[:1]


def _with(ask: Ask, **changes: object) -> Ask:
    return replace(ask, **changes)  # type: ignore[arg-type]  # the names are checked by every test that gets here


def default_function(measure: Column) -> Function:
    """Return how a measure is put together when nobody says: amounts add up, everything else has a mean."""
    return "sum" if is_additive(measure) else "mean"


def _period(question: str) -> str:
    for unit, names in (
        ("hour", ("per hour", "by hour", "hourly", "each hour", "which hour")),
        ("day", ("day", "daily")),
        ("week", ("week",)),
        ("quarter", ("quarter",)),
        ("month", ("month",)),
        ("year", ("year", "annual")),
    ):
        if any(name in question.lower() for name in names):
            return unit
    return ""


def _trend(question: str, base: Ask) -> Ask | None:
    period = _period(question)
    named = [c for c in base.source.columns if period and name_tokens(c.name)[-1:] == [stem(period)] and c.sort != "date"]
    axis = named[0] if named else next(iter(base.source.of("date")), None) or next((c for c in base.source.columns if is_year(c)), None)
    if axis is None:
        return None
    measures = tuple(m for m in base.measures if m != axis)
    if not measures and set(base.functions) - {"count"}:
        base = _unnamed(base)
        measures = base.measures
    functions = base.functions or tuple(dict.fromkeys(default_function(m) for m in measures)) or ("count",)
    if re.search(r"\b(?:which|what) (?:day|week|month|quarter|year)\b", question, re.IGNORECASE):
        functions = tuple(f for f in functions if f not in ("min", "max")) or (default_function(measures[0]) if measures else "count",)
    if _COUNT.search(question):
        measures = amounts_counted(question, measures)
        functions = ("sum",)
    doubts = _uncounted(question, measures)
    notes = base.notes
    if not measures:
        functions = ("count",)
        notes = () if doubts or _COUNT.search(question) else ("no column to compute with is named, so rows are counted",)
    kept = tuple(column for column in base.groups if column != axis and column.sort != "date")[:1]
    return _with(
        base,
        shape="trend",
        date=axis,
        period=(period or "month") if axis.sort == "date" else "",
        functions=functions[:1],
        measures=measures[:3],
        groups=kept,
        notes=notes,
        doubts=doubts,
    )


def _uncounted(question: str, measures: Sequence[Column]) -> tuple[str, ...]:
    """Say that rows are counted where something else was asked for."""
    if measures or _COUNT.search(question) or not set(terms(question)) & _AMOUNTS:
        return ()
    return (f"no column holds {join_words(word for word in words(question) if stem(word) in _AMOUNTS)}, so rows are counted instead",)


def _top(question: str, base: Ask) -> Ask | None:
    counted = _TOP.search(question)
    extreme_of = _EXTREME_OF.search(question)
    which = _WHICH.search(question)
    frequent = _FREQUENT.search(question)
    who = re.match(r"\s*who(?:se)?\b", question, re.IGNORECASE)
    compared = re.search(r"\b(?:most|best|more|higher|larger|bigger|less|fewer|lower|smaller)\b", question, re.IGNORECASE)
    extreme = compared or _RECENT.search(question) or any(function in ("min", "max") for function in base.functions)
    labels = _labels(question, base, frequent if frequent and frequent.group(1) else which or extreme_of)
    is_about_labels = (which or who) and extreme
    if extreme_of and not which:
        is_about_labels = is_about_labels or any(closeness(terms(extreme_of.group(1)), c.name) >= NEAR for c in labels) or _is_day(extreme_of.group(1), labels)
    if not labels or not (counted or is_about_labels or frequent):
        return None
    measures = () if frequent else tuple(m for m in base.measures if m not in labels) or tuple(c for c in base.groups if c.sort == "number")
    limit = int(next(g for g in counted.groups() if g)) if counted else 5
    low = bool(_LOW.search(question)) and not re.search(r"\b(?:top|highest|largest|biggest|most|more)\b", question, re.IGNORECASE)
    notes = base.notes if measures else ()
    if (recent := _RECENT.search(question)) and (dates := [c for c in base.source.of("date") if c not in labels]):
        measures, low, notes = (dates[0],), recent.group(1).lower() in ("first", "earliest", "oldest", "longest"), ()
    elif not measures and not frequent and not _COUNT.search(question) and re.search(r"\b(?:best|worst)\b", question, re.IGNORECASE):
        measures = tuple(filter(None, (what_counts(base.source),)))
        notes = tuple(f"nothing says by what, so {measure.name} is taken" for measure in measures)
    functions = _ranking_function(base, labels[0], measures)
    doubts = _uncounted(question, measures)
    if not measures and not frequent and any(f in ("mean", "median") for f in base.functions):
        doubts = ("no column is named for it, so rows are counted instead",)
    return _with(
        base,
        shape="top",
        functions=functions[:1],
        measures=measures[:1],
        groups=tuple(labels[:1]),
        limit=max(1, limit),
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
    extremes = tuple(f for f in base.functions if f in ("min", "max"))
    if extremes and 2 * label.distinct >= base.source.rows:
        return extremes
    return tuple(f for f in base.functions if f not in ("min", "max")) or (default_function(measures[0]),)


def _is_day(noun: str, labels: Sequence[Column]) -> bool:
    return labels[:1] != [] and labels[0].sort == "date" and bool({"day", "date"} & set(words(noun)))


def _labels(question: str, base: Ask, which: re.Match[str] | None) -> list[Column]:
    """Return the columns that name what is ranked: the noun of the question, a group, or names."""
    source = base.source
    used = terms(which.group(1)) if which else terms(re.split(r"\bby\b|\bwith\b|\bin terms of\b", question, maxsplit=1, flags=re.IGNORECASE)[0])
    if keys := [c for c in source.columns if is_key(c, source.rows) and set(c.words) <= set(used) and len(name_tokens(c.name)) > 1]:
        return keys
    kinds = [c for c in source.columns if c.sort in ("text", "bool", "date") and closeness(used, c.name) >= NEAR and c not in base.measures]
    if re.match(r"\s*who(?:se)?\b", question, re.IGNORECASE):
        kinds = [c for c in kinds if c.sort != "date"]
    if not kinds and {"day", "date"} & set(used):
        kinds = source.of("date")[:1]
    return kinds or [c for c in base.groups if c.sort != "number"] or [c for c in source.of("text") if "name" in c.words][:1] or source.of("text")[:1]


def _counted(question: str, source: Source) -> list[Column]:
    """Return the column whose distinct values are counted: "how many species" where `species` is a column."""
    found = re.search(r"\b(?:how many|number of|count)\s+(?:the\s+)?(?:distinct|different|unique\s+)?\s*([\w-]+)(?:\s+([\w-]+))?", question, re.IGNORECASE)
    if not found:
        return []
    noun = [stem(word) for word in words(found.group(1)) if word not in STOP_WORDS]
    return [c for c in source.columns if noun and set(c.words) <= set(noun) and c.sort in ("text", "date")]
