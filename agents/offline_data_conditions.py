"""The conditions in a question: values that stand in the data, comparisons, spans of time; and what was said but matches nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice
from typing import Final

from crewlog.agents.offline_data_facts import MISSING_SPELLINGS, Column, Source, is_key, is_year
from crewlog.agents.offline_data_match import GROUP, NEAR, in_full, likely_columns
from crewlog.agents.offline_data_time import MONTHS, Span, spans
from crewlog.agents.offline_tables import as_number
from crewlog.agents.offline_text import NUMBER, closeness, name_tokens, quoted, stem, stems, terms, words

Condition = tuple[Column, str, tuple[str | float, ...]]
"""A column, an operator and its operands: `in`, `not in`, `true`, `missing`, a comparison, `span` (from, before), `month`, or a comparison with the mean."""

_COMPARE: Final = re.compile(
    (
        r"([A-Za-z_][\w ]{0,40}?)\s*(?:is |are |was |were )?(over|above|greater than|more than|higher than|larger than|at least|from|"
        r"under|below|less than|lower than|smaller than|fewer than|at most|[a-z]{1,20}er than|more [a-z]{1,20} than|>=|<=|>|<|=|equals?)"
        r"\s*[$€£]?(-?\d[\d,]*(?:\.\d+)?)"
    ),
    re.IGNORECASE,
)
_LESS: Final = re.compile(
    r"^(?:under|below|<)|\b(?:less|lower|smaller|fewer|younger|cheaper|shorter|lighter|colder|cooler|earlier|faster|quicker)\b", re.IGNORECASE
)
COMPARISONS_MAX: Final = 20
"""Comparisons of one question that are looked at; each is held against the whole of it."""
ORDERED: Final = frozenset({">", ">=", "<", "<=", "="})
_COMPARISON: Final = re.compile(
    r"\b(?:above|below|under|at least|at most|(?!other\b|rather\b)(?:more|less|[a-z]{2,20}er)(?: [a-z]{1,20})? than)\s+(?!time\b)"
    r"[^\s,.;?]+(?: [^\s,.;?]+){0,2}",
    re.IGNORECASE,
)
"""What compares something with something, in whatever words."""
_OPERATORS: Final = {"at least": ">=", "from": ">=", ">=": ">=", "at most": "<=", "<=": "<=", "=": "=", "equal": "=", "equals": "="}
_BETWEEN: Final = re.compile(
    r"([A-Za-z_][\w ]{0,40}?)\s*\b(?:between|from)\s+[$€£]?(-?\d[\d,]*(?:\.\d+)?)\s+(?:and|to)\s+[$€£]?(-?\d[\d,]*(?:\.\d+)?)", re.IGNORECASE
)
_OR_MORE: Final = re.compile(
    r"([A-Za-z_][\w ]{0,40}?)\s+(-?\d[\d,]*(?:\.\d+)?)\s+(?:[a-z]+\s+)?or (more|older|higher|above|over|longer|less|fewer|younger|lower|below|under|shorter)\b"
    r"(?!\s+(?:than\s+)?[$€£]?\d)",
    re.IGNORECASE,
)
AVERAGE: Final = re.compile(
    r"\b(above|over|below|under|(?:more|less|higher|lower|larger|smaller|greater|\w+er) than)\s+(?:the\s+)?(?:average|mean)\b", re.IGNORECASE
)
_NOT: Final = r"\b(?:not|neither|nor|except|excluding|without|other than|besides|outside|apart from|exclude|ignoring)\s+(?:\w+\s+){0,3}"
_WITHOUT: Final = re.compile(r"(?:\b(?:not|never|without|no)|n't)\s+(?:(?:yet|ever|been|being|an?|any|the|have|has|had)\s+)*([a-z]+)")
_NAME: Final = re.compile(r"(?<=[\w,] )([A-Z][\w-]*[a-z][\w-]*(?: [A-Z][\w-]*[a-z][\w-]*)*)")
WOMEN: Final = frozenset({"woman", "women", "female", "females", "girl", "girls"})
MEN: Final = frozenset({"man", "men", "male", "males", "boy", "boys"})
_PEOPLE: Final = re.compile(
    r"\b(?:people|persons?|patients?|passengers?|employees?|children|students?|customers?|respondents?|users?|men|women|aged?)"
    r"(?:\s+(?:over|above|under|below))?\W*$",
    re.IGNORECASE,
)
_SECONDS: Final = {"millisecond": 0.001, "second": 1.0, "minute": 60.0, "hour": 3600.0, "day": 86_400.0, "week": 604_800.0}
_TIME_UNITS: Final = {
    **{name: name for name in _SECONDS}, **{f"{name}s": name for name in _SECONDS}, "ms": "millisecond", "s": "second", "sec": "second", "secs": "second",
    "min": "minute", "mins": "minute", "h": "hour", "hr": "hour", "hrs": "hour",
}  # fmt: skip
_ORDER: Final = re.compile(
    r"\b(?:top|best|first|bottom|worst|last|highest|lowest|largest|smallest|biggest)\s+\d{1,3}\b|"
    r"\b\d{1,3}(?=\s+(?:[\w-]+\s+){1,4}?(?:with|have|has|had)\s+(?:the\s+)?(?:most|fewest|[a-z]{2,}est)\b)|\b\d{1,3}\s+(?=(?:highest|largest|biggest|best|most|top|lowest|smallest|worst|[a-z]{3,}est)\b)",
    re.IGNORECASE,
)


def find_filters(question: str, source: Source) -> tuple[Condition, ...]:
    """Return the conditions in a question: values that stand in the data, comparisons with numbers, spans of time."""
    found = _values(question, source)
    used = terms(GROUP.sub(" ", question))
    for column in source.columns:
        if column.is_yes_or_no and closeness(used, " ".join(column.words)) >= 0.8:
            is_refused = any(re.search(rf"(?:\b(?:not|never|no)\s+|n't\s+|\bnon-?)(?:\w+\s+)?{re.escape(word[:5])}", question.lower()) for word in column.words)
            found.append((column, "false" if is_refused else "true", ()))
    found += _left_empty(question, source, found)
    timed, plain = _times(question, source)
    found += timed
    found += _comparisons(plain, source)
    found += [c for c in _equal_numbers(plain, source) if not any(c[0] is other[0] for other in found)]
    return tuple(dict.fromkeys(found))


def _left_empty(question: str, source: Source, found: Sequence[Condition]) -> list[Condition]:
    """Understand "never returned" or "without a fine" by a column of that name which has empty cells."""
    said = {stem(word) for word in _WITHOUT.findall(question.lower())}
    known = {column.name for column, _, _ in found}
    fits = next((c for c in source.columns if c.nulls and c.name not in known and said & set(c.words) and not c.is_yes_or_no), None)
    return [(fits, "missing", ())] if fits else []


def _values(question: str, source: Source) -> list[Condition]:
    found: list[Condition] = []
    names = {token for column in source.columns for token in name_tokens(column.name)}
    lowered = f" {_plain(question)} "
    said = set(lowered.split())
    for column in source.of("text", "bool"):
        if {"sex", "gender"} & set(column.words):
            meant = [*(("f", "w") if said & WOMEN else ()), *(("m",) if said & MEN else ())]
            if kept := [v for v in column.values if meant and v.lower().startswith(tuple(meant)) and (len(v) == 1 or v.lower() in WOMEN | MEN)]:
                found.append((column, "in", tuple(sorted(kept))))
            continue
        hits = [
            v
            for v in column.values
            if v not in MISSING_SPELLINGS and _says(lowered, v, _plain(column.name)) and (v in quoted(question) or not {stem(w) for w in words(v)} <= names)
        ]
        if hits and column.sort == "text":
            refused = [v for v in hits if re.search(_NOT + re.escape(_plain(v)), lowered)]
            kept = [v for v in hits if v not in refused]
            found += [(column, "in", tuple(sorted(kept)))] if kept else []
            found += [(column, "not in", tuple(sorted(refused)))] if refused else []
    return found


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", " ", text.lower()).strip()


def _says(lowered: str, value: str, name: str) -> bool:
    """Say whether a text holds a value; a letter or a number only behind the name of its column, as in "class B"."""
    plain = _plain(value)
    named = re.search(rf" {re.escape(name)} {re.escape(plain)} ", lowered)
    if not plain or ((len(plain) < 2 or plain.isdigit()) and not named):
        return False
    return f" {plain} " in lowered or (len(plain) > 2 and (f" {plain}s " in lowered or (plain.endswith("y") and f" {plain[:-1]}ies " in lowered)))


def _times(question: str, source: Source) -> tuple[list[Condition], str]:
    """Return the conditions on time, and the question without the words they were made of."""
    dates = source.of("date")
    used = terms(question)
    date = max(dates, key=lambda c: (closeness(used, c.name), -dates.index(c)), default=None)
    year = next((c for c in source.columns if is_year(c)), None)
    found: list[Condition] = []
    plain = question
    for span in spans(question):
        made = _on_year(year, span) if year is not None and span.is_years else _on_date(date, span)
        if made is not None:
            found.append(made)
            plain = plain.replace(span.text, " " * len(span.text), 1)
    return found, plain


def _on_year(year: Column, span: Span) -> Condition:
    first, end = (int(text[:4]) if text else None for text in (span.start, span.end))
    if first is not None and end is not None and end - first == 1:
        return (year, "=", (float(first),))
    if first is not None and end is not None:
        return (year, "between", (float(first), float(end - 1)))
    return (year, ">=", (float(first),)) if first is not None else (year, "<", (float(end or 0),))


def _on_date(date: Column | None, span: Span) -> Condition | None:
    if date is None:
        return None
    return (date, "month", (float(span.month),)) if span.month else (date, "span", (span.start, span.end))


def _comparisons(question: str, source: Source) -> list[Condition]:
    found: list[Condition] = []
    for match in _BETWEEN.finditer(question):
        low, high = (as_number(match.group(n).replace(",", "")) for n in (2, 3))
        if low is not None and high is not None and (column := _compared(match.group(1), question, source)):
            found.append((column, "between", (low, high)))
            question = question.replace(match.group(), " " * len(match.group()), 1)
    for match in _OR_MORE.finditer(question):
        number = as_number(match.group(2).replace(",", ""))
        is_less = match.group(3).lower() in ("less", "fewer", "younger", "lower", "below", "under", "shorter")
        if number is not None and (column := _compared(f"{match.group(1)} {match.group(3)}", question, source)):
            found.append((column, "<=" if is_less else ">=", (number,)))
    for match in islice(_COMPARE.finditer(question), COMPARISONS_MAX):
        said = match.group(2).lower()
        operator = _OPERATORS.get(said, "<" if _LESS.search(said) else ">")
        number = as_number(match.group(3).replace(",", ""))
        own = "" if said in _OPERATORS else said
        if number is not None:
            columns = _compared_all(f"{match.group(1)} {own}", question, match.end(), source)
            found += [(column, operator, (_converted(number, question[match.end() :], column),)) for column in columns]
    for match in AVERAGE.finditer(question):
        if column := _compared(question[: match.start()] + match.group(1), question, source):
            found.append((column, "< mean" if _LESS.search(match.group(1)) else "> mean", ()))
    return found


def _converted(number: float, after: str, column: Column) -> float:
    """Convert a time to the unit of a column: "2 hours" to 120 for `runtime_minutes`."""
    given, held = _time_unit(after), _held_unit(column)
    return number * _SECONDS[given] / _SECONDS[held] if given and held else number


def _time_unit(after: str) -> str:
    said = re.match(r"\s*([a-z]+)\b", after, re.IGNORECASE)
    return _TIME_UNITS.get(said.group(1).lower(), "") if said else ""


def _held_unit(column: Column) -> str:
    parts = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", column.name).lower())
    return _TIME_UNITS.get(parts[-1], "") if parts else ""


def _compared_all(before: str, question: str, end: int, source: Source) -> list[Column]:
    """Return the columns a comparison is about: as `_compared`, or all that are named after it, as in "more than 80 in maths and physics"."""
    ahead = re.split(r"[,.;?]", question[end:], maxsplit=1)[0]
    # "longer than 2 hours and rated above 7": what is compared on its own is named for itself
    after = terms(re.split(r"\b(?:and|or)\b", ahead, maxsplit=1)[0] if re.search(r"\d", ahead) else ahead)[:6]
    numbers = [c for c in source.of("number") if not is_key(c, source.rows) and not is_year(c)]
    named = in_full([c for c in numbers if after and closeness(after, " ".join(c.words)) >= 0.99], question, source)
    tail = terms(before)[-3:]
    if named and not any(closeness(tail, " ".join(c.words)) >= NEAR for c in numbers):
        return named
    unit = re.match(r"\s*([a-z]+)\b", question[end:], re.IGNORECASE)
    of_unit = [c for c in numbers if unit and re.findall(r"[a-z]+|$", c.name.lower().rstrip(")"))[-2:][0] == unit.group(1).lower()]
    timed = [c for c in numbers if _held_unit(c)] if _time_unit(question[end:]) else of_unit
    if len(timed) == 1:
        return timed
    return [column] if (column := _compared(before, question, source)) else []


def _compared(before: str, question: str, source: Source) -> Column | None:
    """Return the column a comparison is about: named just before it, else meant by its adjective, else named anywhere in the question."""
    numbers = [c for c in source.of("number") if c is not source.numbering and ("id" in words(before) or not is_key(c, source.rows))]
    if _PEOPLE.search(before) and (ages := [c for c in numbers if "age" in c.words]):
        return ages[0]
    tail = terms(before)[-3:]
    if named := _nearest(tail, numbers):
        return named
    if likely := likely_columns([*tail, *(stem(word) for word in words(before)[-2:])], numbers):
        return likely[0]
    return _nearest(terms(question), numbers) or next(iter(likely_columns(terms(question), numbers)), None)


def _nearest(used: Sequence[str], numbers: Sequence[Column]) -> Column | None:
    scored = [(closeness(used, " ".join(column.words)), len(column.words), -at) for at, column in enumerate(numbers)]
    score, _, at = max(scored, default=(0.0, 0, 0))
    return numbers[-at] if score >= NEAR else None


def _equal_numbers(question: str, source: Source) -> list[Condition]:
    """Find numbers that are values of a column: "status 500 or 503", "500 errors" when one column alone holds 500, or "order 17" when orders are numbered."""
    found: dict[Column, list[float]] = {}
    keys = [c for c in source.of("number") if is_key(c, source.rows)]
    holders = [c for c in source.of("number") if c.distinct and c.distinct <= 30 and not is_year(c)]
    plain = _ORDER.sub(" ", question)
    for match in re.finditer(r"(?<![\w.,-])(\d{1,9})(?![\w.,]*\d|\w|%)", plain):
        if re.search(
            r"(?:than|over|above|below|under|least|most|[<>=$€£]|between|from|between \S+ and|from \S+ to)\s*$", plain[: match.start()], re.IGNORECASE
        ):
            continue
        having = [c for c in holders if match.group(1) in c.values]
        before = [stem(word) for word in words(plain[: match.start()])[-3:]]
        named = [c for c in having if set(c.words) & set(before)] or [c for c in keys if before[-1:] in ([c.words[-1]], ["id"])]
        named = named or [c for c in having if c in found and before[-1:] in (["or"], ["and"])]
        if named or (len(having) == 1 and len(match.group(1)) >= 3):
            found.setdefault((named or having)[0], []).append(float(match.group(1)))
    return [(column, "=" if len(numbers) == 1 else "in", tuple(numbers)) for column, numbers in found.items()]


def not_compared(question: str, source: Source, conditions: Sequence[Condition]) -> list[str]:
    """Return the comparisons in a question that became no condition, as far as their number tells."""
    _, plain = _times(question, source)
    made = sum(operator in ORDERED or operator == "between" or operator.endswith("mean") for _, operator, _ in conditions)
    said = [match.group() for match in _COMPARISON.finditer(plain)]
    worded = [text for text in said if not re.search(r"\d|average|mean", text)]
    return (worded or said)[: max(0, len(said) - made)]


def unmatched(question: str, source: Source, conditions: Sequence[Condition]) -> list[str]:
    """Return the numbers, quoted texts and names of a question that look like conditions and match nothing that is known of the table."""
    _, plain = _times(question, source)
    plain = _ORDER.sub(" ", plain)
    if any(operator in ORDERED for _, operator, _ in conditions):
        plain = _COMPARE.sub(" ", plain)  # the number may have been converted to the column's unit
    known = {_plain(str(value)) for _, _, values in conditions for value in values}
    known |= {f"{value:g}" for _, _, values in conditions for value in values if isinstance(value, float)}
    tokens = {token for column in source.columns for token in name_tokens(column.name)} | set(name_tokens(source.name))
    tokens |= {stem(word) for value in known for word in value.split()} | {stem(month) for month in MONTHS}
    found = [number for number in (n.replace(",", "") for n in NUMBER.findall(plain)) if number not in known and number not in tokens]
    said = [*quoted(plain), *(name.group(1) for name in _NAME.finditer(plain))]
    for text in said:
        stems_ = {stem(word) for word in words(text)}
        if _plain(text) and _plain(text) not in known and not stems_ <= tokens and not stems_ <= _COMMON:
            found.append(text)
    return list(dict.fromkeys(found))


_COMMON: Final = stems("i mean median average sum count total csv sql table chart plot bar line scatter histogram top give show draw list")
