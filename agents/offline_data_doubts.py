"""What the data rules say of a question that they did not understand, or that a table cannot answer: before the numbers, or instead of them."""

from __future__ import annotations

import re
from typing import Final

from crewlog.agents.offline_data_conditions import MEN, ORDERED, WOMEN, find_filters, not_compared, unmatched
from crewlog.agents.offline_data_facts import Column, Source, is_key
from crewlog.agents.offline_data_match import in_full, is_named, not_grouped, not_measured
from crewlog.agents.offline_data_shape import COUNT, PROFILE, Ask, refused, with_
from crewlog.agents.offline_data_time import spans
from crewlog.agents.offline_report import show
from crewlog.agents.offline_text import STOP_WORDS, join_words, name_tokens, stem, stems, words

_BEYOND: Final = re.compile(
    r"\b(percentiles?|quartiles?|quantiles?|variance|ratio|growth|grew|grows|grown|moving average|running total|cumulative|forecast|predict\w*|regression|"
    r"significan\w+|outliers?|p-?value|cluster\w*|p\d\d|interquartile|iqr|(?:percentage|percent) change|year[ -]over[ -]year)\b",
    re.IGNORECASE,
)
"""What the rules cannot compute; to be said, not passed over."""
_NEGATION: Final = re.compile(r"\b(?:not|never|none|neither|no longer|except|excluding)\b|n't\b", re.IGNORECASE)
_RELATIVE: Final = re.compile(
    r"\b(?:(?:last|past|previous|next)\s+(?:\d+\s+)?(?:day|week|month|quarter|year)s?|this (?:week|month|quarter|year)|yesterday|today)\b", re.IGNORECASE
)
_OF_SOME: Final = re.compile(
    r"\b(?:mean|average|median|total|sum)\b[^,;.?]{0,60}?\b(?:of|for|among) "
    r"((?:the )?(?:top \d+|\d+ (?:most |least )?[a-z]+(?:est|ive|ular)) \w+)",
    re.IGNORECASE,
)
_SUMS: Final = frozenset({"total", "totals", "grand total", "subtotal", "sub-total", "sum"})
_HAVING: Final = re.compile(
    r"\b(?:which|what|how many)\s+([\w -]+?)\s+(?:has|have|had|with)\s+(?:an?\s+|the\s+)?"
    r"(?:average|mean|median|total|more|fewer|less|at least|at most|over|under)\b",
    re.IGNORECASE,
)
_GENERAL: Final = stems(
    "row rows column columns table data dataset file files csv there value values anything interesting important matter mean content contain"
)


def hopeless(question: str, source: Source) -> str:
    """Return why the rules cannot answer a question whatever its table holds; nothing when they may."""
    if (beyond := _BEYOND.search(question)) and not {stem(w) for w in words(beyond.group())} & {w for c in source.columns for w in c.words}:
        return f"these rules do not compute what “{beyond.group(1)}” asks for"
    if relative := _RELATIVE.search(question):
        return f"these rules do not know from which day “{relative.group()}” counts; name the dates"
    if some := _OF_SOME.search(question):
        return f"these rules do not compute with “{some.group(1)}” alone"
    return ""


def checked(question: str, ask: Ask) -> Ask:
    """Add what was not taken into account; instead of an answer, when the numbers would answer something else."""
    if ask.shape == "none":
        return ask
    if ask.shape == "profile":
        return with_(ask, notes=ask.source.notes, doubts=(*off_the_table(question, ask.source), *_totals(ask)))
    if reasons := _reasons_against(question, ask):
        return refused(ask, *reasons)
    return with_(ask, doubts=(*ask.doubts, *_ignored(question, ask), *_totals(ask)), notes=(*ask.notes, *_as_read(ask)))


def _reasons_against(question: str, ask: Ask) -> list[str]:
    reasons = []
    if texts := not_compared(question, ask.source, (*ask.filters, *ask.whether)):
        reasons.append(f"{join_words(f'“{text}”' for text in texts)} was not understood as a condition")
    ordered = [column for column, operator, _ in ask.filters if operator in ORDERED]
    if ordered and (having := _HAVING.search(question)) and any(is_named(having.group(1), c) for c in ask.source.categories):
        reasons.append("these rules compare rows with a number, not groups of them")
    if ask.filters and re.search(r"\bor\b", _alternatives(question, ask), re.IGNORECASE):
        reasons.append("these rules take an “or” only between values of one column")
    told = {stem(word) for column, _, values in (*ask.filters, *ask.whether) for word in (*column.words, *(w for v in values for w in words(str(v))))}
    people = [w for w in dict.fromkeys(words(question)) if w in WOMEN | MEN and stem(w) not in told]
    if people and not {"sex", "gender"} & (told | {word for column in ask.groups for word in column.words}):
        reasons.append(f"no column of {ask.source.name} says who {join_words(f'“{word}”' for word in people)} are")
    if ask.shape == "value" and (lacking := not_grouped(question, ask.source)):
        lacking = [*not_measured(question, ask.source), *lacking]
        reasons.append(f"{ask.source.name} has no column for {join_words(f'“{word}”' for word in lacking)}")
    return reasons


def _alternatives(question: str, ask: Ask) -> str:
    """Return a question without the alternatives that are values of one column, and without "7 or more"."""
    for span in spans(question):
        question = question.replace(span.text, " ")
    for value in (show(value) for _, operator, values in ask.filters if operator in ("in", "not in") for value in values):
        question = re.sub(rf"\bor\s+(?:\w+\s+){{0,2}}?{re.escape(value)}s?\b|\b{re.escape(value)}s?\s+or\b", " ", question, flags=re.IGNORECASE)
    return re.sub(r"\bor (?:more|older|higher|above|over|longer|less|fewer|younger|lower|below|under|shorter|later|earlier)\b(?! \d)", " ", question)


def off_the_table(question: str, source: Source) -> tuple[str, ...]:
    """Say that an overview answers no definite question."""
    if not re.match(r"\s*(?:what|which|who|whose|when|where|how|why|is|are|was|were|does|do|did|has|have|can)\b", question, re.IGNORECASE):
        return ()
    said = [w for w in dict.fromkeys(words(question)) if w not in STOP_WORDS and not {stem(w)} & (_GENERAL | set(name_tokens(source.name)))]
    if not said or PROFILE.search(question):
        return ()
    return (f"the question was not understood, since no column or value of {source.name} answers to {join_words(f'“{w}”' for w in said)}; this is an overview",)


def _as_read(ask: Ask) -> list[str]:
    """Say what was not read as it stands in the file, of the whole table and of the columns that matter here."""
    used = {column.name for column in (*ask.measures, *ask.groups, *(column for column, _, _ in ask.filters))}
    return [note for note in ask.source.notes if ": read as" not in note or note.partition(": read as")[0] in used]


def _totals(ask: Ask) -> list[str]:
    """Say that a table ends with sums of its rows, as sheets do: the numbers take such a row for one like the others."""
    picked = {show(value) for _, operator, values in ask.filters if operator == "in" for value in values}
    found = [(column, value) for column in ask.source.of("text") for value in column.values if value.strip(" :").lower() in _SUMS and value not in picked]
    return [f"in {column.name} stands “{value}”, which looks like the sum of other rows and is taken for one of them" for column, value in found]


def _ignored(question: str, ask: Ask) -> list[str]:
    """Say which words look like conditions and are none."""
    conditions = find_filters(question, ask.source)
    doubts = []
    if names := unmatched(question, ask.source, conditions):
        listed = join_words(f"“{text}”" for text in names)
        doubts.append(f"{listed} is not among the known values of {ask.source.name}, so the numbers below are not limited to it")
    is_taken = any(note.startswith("taken for") for note in ask.notes)
    if ask.shape in ("value", "group", "trend") and not COUNT.search(question) and (lacking := not_measured(question, ask.source, wholly=is_taken)):
        doubts.append(f"{ask.source.name} has no column for {join_words(f'“{word}”' for word in lacking)}, so the numbers below leave that out of account")
    if ask.shape not in ("profile", "missing", "rows") and (unused := _unused(question, ask)):
        doubts.append(f"{join_words(f'“{c.name}”' for c in unused)} {'is a column' if len(unused) == 1 else 'are columns'} that the numbers below do not use")
    if _NEGATION.search(question) and ask.shape != "missing" and not any(operator in ("not in", "false", "missing") for _, operator, _ in conditions):
        doubts.append("the negation in the question was not understood, so the numbers below leave it out of account")
    return doubts


def _unused(question: str, ask: Ask) -> list[Column]:
    """Return the columns that a question names in full and that played no part."""
    used = [*ask.measures, *ask.groups, *(column for column, _, _ in (*ask.filters, *ask.whether)), *filter(None, (ask.date,))]
    used += [factor for column in used for factor in column.factors]
    spoken = {word for column in used for word in (*column.words, *(stem(w) for value in column.values for w in words(value)))}
    spoken |= {*name_tokens(ask.source.name), *(() if not ask.period else (ask.period,))}
    named = [c for c in ask.source.columns if c not in used and not is_key(c, ask.source.rows) and is_named(question, c)]
    return [c for c in in_full(named, question, ask.source) if not set(c.words) <= spoken]
