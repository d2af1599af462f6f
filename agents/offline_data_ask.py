"""From the words of a question to what has to be computed: measures, groups, filters, order, and the shape of the answer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Final

from crewlog.agents.offline_clauses import split_goal
from crewlog.agents.offline_data_conditions import AVERAGE, ORDERED, find_filters
from crewlog.agents.offline_data_doubts import checked, hopeless
from crewlog.agents.offline_data_facts import Column, Source, is_key, is_year
from crewlog.agents.offline_data_match import (
    GROUP,
    LEAST,
    MOST,
    NEAR,
    QUANTITIES,
    calendar_columns,
    day_of,
    group_columns,
    in_full,
    in_one_piece,
    is_named,
    measure_columns,
    names_extreme,
    not_measured,
)
from crewlog.agents.offline_data_rank import COMPARED, FREQUENT, SUPERLATIVE, TOP, WHICH, is_a_row, ranking
from crewlog.agents.offline_data_shape import COUNT, PROFILE, Ask, Function, Shape, default_function, refused, uncounted, with_
from crewlog.agents.offline_report import show
from crewlog.agents.offline_tables import as_number
from crewlog.agents.offline_text import STOP_WORDS, closeness, join_words, name_tokens, stem, stems, terms, words

_FUNCTIONS: Final[tuple[tuple[Function, re.Pattern[str]], ...]] = (
    ("mean", re.compile(r"\b(?:mean|average|avg|typical)\b", re.IGNORECASE)),
    ("median", re.compile(r"\bmedian\b", re.IGNORECASE)),
    ("stddev", re.compile(r"\b(?:standard deviation|std ?dev|spread|variation)\b", re.IGNORECASE)),
    ("sum", re.compile(r"\b(?:sum|totals?|overall|altogether|how much)\b", re.IGNORECASE)),
    ("min", re.compile(rf"\b(?:min(?:imum)?|range|{LEAST})\b", re.IGNORECASE)),
    ("max", re.compile(rf"\b(?:max(?:imum)?|range|{MOST})\b", re.IGNORECASE)),
)
_MISSING: Final = re.compile(r"\b(?:missing|nulls?|empty cells?|incomplete|NAs?|completeness)\b")
_CORRELATION: Final = re.compile(r"\b(?:correlat\w*|relat(?:e|es|ed|ion|ionship)|association|depends? on|linked)\b", re.IGNORECASE)
_SHARE: Final = re.compile(r"\b(?:shares?|percentages?|proportions?|fraction|percent|rates?)\b|%", re.IGNORECASE)
_VERB: Final = re.compile(r"\b(?:is|are|was|were|has|have|had|do|does|did|who|that|earns?|works?|lives?|costs?)\b", re.IGNORECASE)
_PAST: Final = re.compile(r"\b[a-z]{2,}ed\b", re.IGNORECASE)
"""Where the part of a share ends that says of what it is one: "of the employees in IT who earn …"."""
_DISTINCT: Final = re.compile(r"\b(?:distinct|different|unique)\b", re.IGNORECASE)
_PERIODS: Final = "hour|day|week|month|quarter|year"
_TREND: Final = re.compile(
    rf"\b(?:over time|trend|(?:per|by|each) (?:{_PERIODS})|(?:which|what) (?:hour|week|month|quarter|year)|(?:by|per) [a-z_]+(?:,| and) (?:{_PERIODS})|"
    r"hourly|daily|weekly|monthly|quarterly|yearly|annual(?:ly)?|month over month)\b",
    re.IGNORECASE,
)
_DUPLICATES: Final = re.compile(r"\b(?:duplicate[sd]?|(?:repeated|identical) (?:rows|records|lines|entries))\b", re.IGNORECASE)
_CONTRAST: Final = re.compile(r"\b(?:compare[ds]?|comparison|versus|vs|differences?|differ)\b", re.IGNORECASE)
_DATES: Final = re.compile(
    r"\b(?:date range|time (?:span|range|period)|(?:which|what) (?:dates|period|years)|from when|how recent|"
    r"(?:first|last|earliest|latest|newest|oldest) (?:date|day|entry|record))\b",
    re.IGNORECASE,
)
_LISTED: Final = re.compile(r"^\s*(?:list|what (?:are|were)|show|print|display|give me|who (?:is|are|was|were)|which|find)\b", re.IGNORECASE)
CHART: Final = re.compile(r"\b(?:charts?|plots?|graphs?|histograms?|visuali[sz]\w*|figure|diagrams?|draw)\b", re.IGNORECASE)
_NUMERALS: Final = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMERAL: Final = re.compile(rf"(?<=\b(?:top|the)\s)(?:{'|'.join(_NUMERALS[2:])})\b(?=\s+[a-z]{{3,}})|(?<=\bthan\s)(?:{'|'.join(_NUMERALS)})\b", re.IGNORECASE)
_CHART_WORDS: Final = stems(
    "chart charts plot plots graph graphs histogram bar line scatter pie visualise visualize visualisation figure diagram draw add include nice simple "
    "result results data table"
)
_TRADED: Final = re.compile(
    r"\b(?:how many|number of)\s+(?:the\s+)?([a-z-]+)[^,;.?]*?\s(?:sold|sell|bought|buy|purchased|ordered|shipped|delivered|produced)\b", re.IGNORECASE
)
_PIECES: Final = stems("units items pieces")
"""What is counted by the piece, whatever it is."""


def understand(question: str, sources: Sequence[Source]) -> list[Ask]:
    """Return what a question asks of the sources; a profile of each when nothing more definite is asked."""
    question = _NUMERAL.sub(lambda found: str(_NUMERALS.index(found.group().lower())), question)
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
    parts = [part for text in texts for part in re.split(rf",\s*(?:and\s+)?(?=(?:the\s+)?(?:{SUPERLATIVE})\s+[a-z]|an?\s+[a-z ]*(?:chart|plot|graph)\b)", text)]
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
    if reason := hopeless(question, ranked[0]):
        return [refused(Ask(ranked[0], "none"), reason)]
    if _fit(question, ranked[0]) == 0 or (PROFILE.search(question) and not _has_function(question)):
        chosen = [source for source in sources if closeness(terms(question), source.name) >= 1] or list(sources)
        if _is_profile(question, chosen[0]):
            return [checked(question, Ask(source, "profile")) for source in chosen[:3]]
        if _MISSING.search(question):
            return [Ask(source, "missing") for source in chosen[:3]]
    source = ranked[0]
    if other := next((text for text in _held_elsewhere(question, source, ranked[1:])), ""):
        return [refused(Ask(source, "none"), f"{other}, and these rules do not join tables")]
    question = in_one_piece(question, source)
    return [checked(question, ask) for ask in _by_time(_ask(question, source))]


def _held_elsewhere(question: str, source: Source, others: Sequence[Source]) -> Iterator[str]:
    """Return what a question speaks of that another table holds: a value, or a column."""
    held = {value for column in source.columns for value in column.values}
    for other in others:
        for column, operator, values in find_filters(question, other):
            if operator == "in" and (foreign := [value for value in values if value not in held]):
                yield f"“{foreign[0]}” stands in {other.name}, in the column {column.name}"
        for column in other.columns:
            if (
                column.sort != "number"
                and not is_key(column, other.rows)
                and is_named(question, column)
                and not any(is_named(column.name, c) for c in source.columns)
            ):
                yield f"{column.name} is a column of {other.name}, not of {source.name}"


def _by_time(ask: Ask) -> list[Ask]:
    """Make an ask for each span of time, where they exclude each other: "in 2022 versus 2023", "in May and in June"."""
    times = [f for f in ask.filters if f[1] in ("span", "month") or is_year(f[0])]
    bounds = sorted((column.name, operator == "month", *_span(operator, values)) for column, operator, values in times)
    follows = [one[:2] == other[:2] and one[3] <= other[2] for one, other in pairwise(bounds)]
    if not follows or not all(follows):
        return [ask]
    rest = tuple(f for f in ask.filters if f not in times)
    return [with_(ask, filters=(*rest, time)) for time in times]


def _span(operator: str, values: Sequence[str | float]) -> tuple[str, str]:
    """Return where a condition on time begins and before what it ends, in text that can be compared; `9999` is no end."""
    if operator == "span":
        return str(values[0]), str(values[1]) or "9999"
    low, high = float(values[0]), float(values[-1]) + 1
    return "" if operator in ("<", "<=") else f"{low + (operator == '>'):04.0f}", "9999" if operator in (">", ">=") else f"{high - (operator == '<'):04.0f}"


def _fit(question: str, source: Source) -> float:
    used = terms(question)
    is_measured = _has_function(question) and not COUNT.search(question) and bool(measure_columns(question, source, set())[0])
    counted = re.search(r"\bhow many\s+(?:\w+\s+)?([a-z]+)", question, re.IGNORECASE)
    return (
        4 * is_measured
        + 4 * (counted is not None and is_a_row(counted.group(), source))
        + 2 * closeness(used, source.name)
        + sum(closeness(used, column.name) >= NEAR for column in source.columns)
        + len(find_filters(question, source))
    )


def _has_function(question: str) -> bool:
    return bool(
        COUNT.search(question)
        or any(pattern.search(question) for _, pattern in _FUNCTIONS)
        or _CORRELATION.search(question)
        or TOP.search(question)
        or _SHARE.search(question)
        or FREQUENT.search(question)
        or COMPARED.search(question)
        or _DUPLICATES.search(question)
        or _DATES.search(question)
    )


def _is_profile(question: str, source: Source) -> bool:
    if _has_function(question) or _MISSING.search(question) or _TREND.search(question):
        return False
    return not (GROUP.search(question) and group_columns(question, source))


def _ask(question: str, source: Source) -> Ask:
    filters = find_filters(question, source)
    groups = [c for c in group_columns(question, source) if c.sort != "number" or is_year(c) or not TOP.search(question)]
    taken = {column.name for column, _, _ in filters if column.sort != "number"} | {column.name for column in groups}
    measures, notes = measure_columns(question, source, taken | {column.name for column, operator, _ in filters if operator == "="})
    plain = re.sub(r"\bat (?:least|most)\b", " ", AVERAGE.sub(" ", question), flags=re.IGNORECASE)
    functions = tuple(function for function, pattern in _FUNCTIONS if pattern.search(plain))
    if len(functions) > 1 and "sum" in functions and re.search(r"\bhow much\b", question, re.IGNORECASE):
        functions = tuple(function for function in functions if function != "sum")
    if len(functions) > 1 and names_extreme(question, measures):
        functions = tuple(function for function in functions if function not in ("min", "max"))
    is_either = bool(re.search(r"\bor\b", question, re.IGNORECASE)) and not (_CONTRAST.search(question) or COMPARED.search(question))
    compared = [column for column, operator, values in filters if operator == "in" and len(values) > 1 and column not in groups and not is_either]
    groups = [*groups, *compared]
    if _CONTRAST.search(question):
        groups += [column for column, operator, _ in filters if operator == "true" and column not in groups]
        filters = tuple(f for f in filters if f[1] != "true")
    base = Ask(source, "value", functions, tuple(measures), tuple(groups), filters, is_contrast=bool(_CONTRAST.search(question)), notes=tuple(notes))
    if _DUPLICATES.search(question):
        return with_(base, shape="duplicates", groups=(), measures=())
    if _MISSING.search(question) and not groups:
        named = [c for c in source.columns if closeness(terms(question), " ".join(c.words)) >= 0.99]
        return with_(base, shape="missing", measures=tuple(named or measures))
    if _DATES.search(question) and not measures and source.of("date"):
        return with_(base, functions=("min", "max"), measures=tuple(source.of("date")[:1]), groups=())
    if _CORRELATION.search(question):
        named = [c for c in source.measures if closeness(terms(question), " ".join(c.words)) >= 0.99]
        numbers = in_full(named, question, source) if len(named) > 1 else [c for c in measures if c.sort == "number"]
        numbers = numbers if len(numbers) >= 2 else [*numbers, *(c for c in source.measures if c not in numbers)]
        if len(numbers) >= 2:
            return with_(base, shape="correlation", measures=tuple(numbers[:2]), groups=())
    if _SHARE.search(question) and (found := _share(question, base)):
        return found
    if not measures and not COUNT.search(question) and not FREQUENT.search(question) and (lacking := not_measured(question, source)):
        return refused(base, f"{source.name} has no column for {join_words(f'“{word}”' for word in lacking)}")
    if _TREND.search(question) and not calendar_columns(question, source) and (found := _trend(question, base)):
        return found
    if found := ranking(question, base):
        return found
    if re.match(r"\s*(?:which|who)\b", question, re.IGNORECASE) and COMPARED.search(question):
        return refused(base, "what is to be ranked was not understood")
    return _rows(question, base) or _aggregate(question, base)


def _share(question: str, base: Ask) -> Ask | None:
    """Understand a share: of what is true among all, of rows that meet a condition, or of each group in the total."""
    after = question[found.end() :] if (found := _SHARE.search(question)) else ""
    splits = [find_filters(after[verb.start() :], base.source) for pattern in (_VERB, _PAST) for verb in pattern.finditer(after)]
    whether = next((part for said in splits if 0 < len(part := tuple(f for f in base.filters if f in said)) < len(base.filters)), ())
    if len(base.filters) > 1 and not whether:
        return refused(base, "the words do not say of which rows the share is meant")
    if whether or (base.filters and all(operator in ORDERED - {"="} or operator == "between" for _, operator, _ in base.filters)):
        whether = whether or base.filters
        kept = tuple(f for f in base.filters if f not in whether)
        across = tuple(column for column in base.groups if all(column is not other for other, _, _ in base.filters))
        return with_(base, shape="group" if across else "value", functions=(), measures=(), groups=across, filters=kept, whether=whether)
    answered_yes = next((column for column, operator, _ in base.filters if operator == "true"), None)
    if answered_yes is not None:
        rest = tuple(f for f in base.filters if f[0] is not answered_yes)
        which = WHICH.search(question)
        asked = [c for c in base.source.categories if which and closeness(terms(which.group(1)), " ".join(c.words)) >= 0.99]
        across = tuple(column for column in base.groups or asked if column is not answered_yes)
        return with_(base, shape="group" if across else "value", functions=("rate",), measures=(answered_yes,), groups=across, filters=rest)
    used = terms(question)
    named = [c for c in base.source.categories if c.sort == "text" and closeness(used, c.name) >= NEAR and c not in base.groups]
    by = list(base.groups) or [c for c, operator, _ in base.filters if operator in ("in", "=")][:1] or named[:1]
    if not by:
        return None
    kept = tuple(f for f in base.filters if f[0] not in by)
    additive = tuple(m for m in base.measures if m not in by and default_function(m) == "sum")
    focus = tuple(show(value) for column, operator, values in base.filters if column is by[0] and operator in ("in", "=") for value in values)
    return with_(base, shape="share", groups=tuple(by[:1]), filters=kept, measures=additive, focus=focus)


def _rows(question: str, base: Ask) -> Ask | None:
    """Understand "list the employees in HR": the rows themselves, when there are conditions and nothing is to be computed."""
    if any(is_named(question, c) for c in base.source.categories if c.sort == "text" and all(c is not column for column, _, _ in base.filters)):
        return None
    if not _LISTED.search(question) or not base.filters or base.groups or base.functions or COUNT.search(question) or CHART.search(question):
        return None
    return with_(base, shape="rows")


def _aggregate(question: str, base: Ask) -> Ask:
    source, functions, measures = base.source, base.functions, base.measures
    is_plain_count = bool(COUNT.search(question)) and not any(f in ("mean", "median", "stddev", "min", "max") for f in functions)
    if (_DISTINCT.search(question) and not functions) or is_plain_count:
        columns = _counted(question, source) or [c for c in source.columns if _DISTINCT.search(question) and closeness(terms(question), c.name) >= 1]
        columns = [c for c in columns if c not in base.groups and all(c is not column for column, _, _ in base.filters)]
        if not columns and _DISTINCT.search(question):
            return refused(base, f"no column of {source.name} holds what different ones are to be counted of")
        if columns:
            return with_(base, shape="group" if base.groups else "value", functions=("distinct",), measures=tuple(columns[:1]))
    shape: Shape = "group" if base.groups else "value"
    if COUNT.search(question) and base.groups and not measures and set(functions) <= {"mean", "median"} and functions:
        return with_(base, shape=shape, functions=("count",), measures=(), doubts=(f"these are the counts; their {functions[0]} is not computed",))
    if is_plain_count:
        amounts = amounts_counted(question, measures)
        if not amounts and (pieces := _pieces(question, base)):
            return with_(base, shape=shape, functions=("sum",), measures=(pieces,), notes=(f"{pieces.name} is added up",))
        return with_(base, shape=shape, functions=("sum",) if amounts else ("count",), measures=amounts, notes=base.notes if amounts else ())
    if not functions and not (measures and not base.notes) and not base.groups:
        listed = [c for c in source.categories if c.sort == "text" and is_named(question, c) and all(c is not column for column, _, _ in base.filters)]
        if listed and _LISTED.search(question):
            return with_(base, shape="group", functions=("count",), measures=(), groups=tuple(listed[:1]), notes=())
        if not base.filters and not measures:
            return with_(base, shape="profile")
    if not functions:
        functions = tuple(dict.fromkeys(default_function(measure) for measure in measures)) or ("count",)
    if not measures and functions != ("count",) and (worded := _worded(question, base)):
        vain = f"{worded.name} holds words{_such_as(worded)}, so its {functions[0]} cannot be computed and rows are counted"
        return with_(base, shape=shape, functions=("count",), doubts=(*base.doubts, vain))
    if not measures and functions != ("count",) and (unnamed := _unnamed(base)).measures:
        return with_(unnamed, shape=shape)
    if not measures:
        doubt = (f"there is no column of numbers to compute the {functions[0]} of, so rows are counted",) if functions != ("count",) else ()
        base, functions = with_(base, doubts=(*base.doubts, *doubt)), ("count",)
    doubts = (*base.doubts, *uncounted(question, measures))
    notes = base.notes if measures or doubts else (*base.notes, "no column to compute with is named, so rows are counted")
    return with_(base, shape=shape, functions=functions, measures=measures, notes=notes, doubts=doubts)


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
    return with_(base, measures=measures, notes=(*base.notes, note))


def amounts_counted(question: str, measures: Sequence[Column]) -> tuple[Column, ...]:
    """Return the measure that is counted itself: "how many units" where `units` holds amounts."""
    found = re.search(r"\b(?:how many|number of|count of)\s+(?:the\s+)?([\w-]+)", question, re.IGNORECASE)
    noun = stem(found.group(1).lower()) if found else ""
    return tuple(m for m in measures if noun in m.words)[:1]


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
    if COUNT.search(question):
        measures = amounts_counted(question, measures)
        functions = ("sum",)
    doubts = uncounted(question, measures)
    notes = base.notes
    if not measures:
        functions = ("count",)
        notes = () if doubts or COUNT.search(question) else ("no column to compute with is named, so rows are counted",)
    kept = tuple(column for column in base.groups if column != axis and column.sort != "date")[:1]
    return with_(
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


def _pieces(question: str, base: Ask) -> Column | None:
    """Return the column that says how many of a thing each row is about, when it is asked how many of it were sold."""
    traded = _TRADED.search(question)
    kinds = {stem(word) for column, _, values in base.filters if column.sort == "text" for value in values for word in words(str(value))}
    if not traded or stem(traded.group(1).lower()) not in kinds | _PIECES:
        return None
    pieces = [c for c in base.source.measures if set(c.words) & QUANTITIES and all(c is not column for column, _, _ in base.filters)]
    return pieces[0] if len(pieces) == 1 else None


def _counted(question: str, source: Source) -> list[Column]:
    """Return the column whose distinct values are counted: "how many species" where `species` is a column."""
    found = re.search(r"\b(?:how many|number of|count)\s+(?:the\s+)?(?:distinct|different|unique\s+)?\s*([\w-]+)(?:\s+([\w-]+))?", question, re.IGNORECASE)
    if not found:
        return []
    if re.match(r"days?\b|dates?\b", found.group(1), re.IGNORECASE):
        return day_of(source)
    noun = [stem(word) for word in words(found.group(1)) if word not in STOP_WORDS]
    near = 0.84 if _DISTINCT.search(question) else 1
    return [c for c in source.columns if noun and closeness(noun, " ".join(c.words)) >= near and c.sort in ("text", "date")]
