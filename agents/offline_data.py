"""Rules of the data specialist: look at the sources, compute with SQL what was asked, draw it, and say only what the results hold."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

from crewlog.agents.data_sources import NO_TABLES
from crewlog.agents.offline_conversation import Call, Conversation, Turn, Want
from crewlog.agents.offline_data_ask import understand
from crewlog.agents.offline_data_facts import Source, described, source_names
from crewlog.agents.offline_data_shape import Ask
from crewlog.agents.offline_data_sql import VALUES_MAX, Query, queries, said, values_query
from crewlog.agents.offline_data_words import figures_of, spread, write_summary
from crewlog.agents.offline_tables import Table, as_number, is_cut, read_table
from crewlog.agents.offline_text import closeness, cut_words, terms
from crewlog.schemas.text import shorten

SOURCES_MAX: Final = 4
QUERIES_MAX: Final = 10
ROWS_MAX: Final = 500
"""Rows of a result that are looked at when more than the tool shows at first are needed."""
FIGURES_MAX: Final = 20


class Answered(NamedTuple):
    """A query of an ask, and its result; None when the query failed."""

    ask: Ask
    query: Query
    table: Table | None
    error: str = ""


def analyse(talk: Conversation) -> Turn:
    """Go one step on: sources, their columns, known values, queries, chart, conclusion."""
    if importlib.util.find_spec("sqlglot") is None:
        return _give_up(talk, "The rules need the package sqlglot to write SQL; install crewlog[data].")
    if talk.is_due("list_sources"):
        return Turn("I look at what there is first.", (Want("list_sources", {}),))
    names = _relevant(talk, source_names(talk))
    undescribed = [name for name in names if not any(call.tool == "describe_source" and call.arguments.get("source") == name for call in talk.calls)]
    if undescribed:
        return Turn("", tuple(Want("describe_source", {"source": name}) for name in undescribed))
    sources = _with_values(talk, described(talk))
    if not sources:
        is_there = any(call.is_error and NO_TABLES not in (call.result or "") for call in talk.calls)
        return _give_up(talk, "No table could be read." if is_there else "There is no table to work on: attach a CSV, Parquet or JSON file.")
    if wants := _missing_values(talk, sources):
        return Turn("I look up which values the text columns hold.", wants)
    asks = understand(talk.question, sources)
    planned = [(ask, query) for ask in asks for query in queries(ask)][:QUERIES_MAX]
    open_ = [
        query.sql
        for _, query in planned
        if not any(call.tool == "run_sql" and call.arguments.get("sql") == query.sql for call in talk.calls) and not _only_drawn(query)
    ]
    if open_:
        return Turn("", tuple(Want("run_sql", {"sql": sql}) for sql in dict.fromkeys(open_)))
    if cut := [query.sql for _, query in planned if (found := _last(talk, query.sql)) and "rows_max" not in found.arguments and is_cut(found.result)]:
        return Turn("", tuple(Want("run_sql", {"sql": sql, "rows_max": ROWS_MAX}) for sql in dict.fromkeys(cut)))
    answered = [_answer(talk, ask, query) for ask, query in planned]
    if chart := _chart(talk, asks, answered):
        return Turn("", (chart,))
    return _submit(talk, asks, answered)


def _relevant(talk: Conversation, names: Sequence[str]) -> list[str]:
    used = terms(talk.question)
    return sorted(names, key=lambda name: (-closeness(used, name), names.index(name)))[:SOURCES_MAX]


def _only_drawn(query: Query) -> bool:
    return query.chart in ("scatter", "histogram")


def _needs_values(source: Source) -> list[str]:
    return [
        values_query(source, column)
        for column in source.of("text")
        if not column.is_text_number and 2 <= column.distinct <= VALUES_MAX and column.distinct > len(column.values)
    ][:6]


def _missing_values(talk: Conversation, sources: Sequence[Source]) -> tuple[Want, ...]:
    asked = {call.arguments.get("sql") for call in talk.calls if call.tool == "run_sql"}
    return tuple(Want("run_sql", {"sql": sql}) for source in sources for sql in _needs_values(source) if sql not in asked)


def _with_values(talk: Conversation, sources: Sequence[Source]) -> list[Source]:
    """Add the values that were looked up. The description stays the base, so that the same queries are derived in every turn."""
    results = {str(call.arguments.get("sql")): call.result for call in talk.made("run_sql")}
    made = []
    for source in sources:
        columns = []
        for column in source.columns:
            table = read_table(results.get(values_query(source, column))) if column.sort == "text" else None
            found = tuple(str(value) for value in table.column(table.columns[0]) if value is not None) if table and table.columns else ()
            columns.append(replace(column, values=found) if found else column)
        made.append(replace(source, columns=tuple(columns)))
    return made


def _answer(talk: Conversation, ask: Ask, query: Query) -> Answered:
    call = _last(talk, query.sql)
    if call is None:
        return Answered(ask, query, None)
    if call.is_error:
        return Answered(ask, query, None, shorten(" ".join((call.result or "").split()), 300))
    return Answered(ask, query, read_table(call.result) or Table((), ()))


def _last(talk: Conversation, sql: str) -> Call | None:
    return next((call for call in reversed(talk.calls) if call.tool == "run_sql" and call.arguments.get("sql") == sql), None)


def _chart(talk: Conversation, asks: Sequence[Ask], answered: Sequence[Answered]) -> Want | None:
    """Choose what to draw: the trend, comparison or relation that was asked for; for a profile, the grouping that tells groups apart best."""
    wants_chart = any(ask.wants_chart for ask in asks)
    if not talk.offers("make_chart") or not (wants_chart or any(ask.shape in ("profile", "trend", "correlation") for ask in asks)) or talk.made("make_chart"):
        return None
    if wants_chart:
        # what the drawing was asked for comes first; the rest only when that cannot be drawn
        answered = sorted(answered, key=lambda a: (not a.ask.wants_chart, a.query.chart != "histogram" and a.ask.draws == "histogram"))
    candidates = [a for a in answered if a.query.chart and (_only_drawn(a.query) or (a.table is not None and len(a.table.rows) >= 2))]
    grouped = [a for a in candidates if a.query.title.startswith("by ")]
    ranked = sorted(grouped, key=lambda a: (-spread(a.table, a.query.y), answered.index(a))) if grouped else []
    ranked = [a for a in candidates if a.query.chart == "histogram" and a.ask.draws] + ranked
    ranked += [a for a in candidates if a not in ranked and a.query.title != "missing values"] + [
        a for a in candidates if a.query.title == "missing values" and (wants_chart and not grouped)
    ]
    failures = talk.failed("make_chart")
    if not ranked or len(failures) >= min(2, len(ranked) + 1):
        return None
    best = ranked[min(len(failures), len(ranked) - 1)]
    query = best.query
    y = _best_measure(best) if query.title.startswith("by ") and best.table else query.y
    count = (
        sum(int(as_number(v) or 0) for v in best.table.column("n"))
        if best.table and "n" in best.table.columns
        else len(best.table.rows)
        if best.table
        else best.ask.source.rows
    )
    subject = said(y) if y else f"distribution of {query.x}"
    title = f"{subject} by {query.x}" if query.chart in ("bar", "line") and y else f"{query.x} and {y}" if y else subject
    arguments: dict[str, Any] = {"sql": query.sql, "chart": query.chart, "x": query.x, "title": f"{title[:1].upper()}{title[1:]} (n = {count})"}
    return Want("make_chart", {**arguments, "y": y} if y else arguments)


def _best_measure(answer: Answered) -> str:
    """Return the mean that differs most between the groups, measured in standard deviations of the groups' means."""
    assert answer.table is not None
    means = [name for name in answer.table.columns if name.startswith("mean ")]
    return max(means, key=lambda name: (spread(answer.table, name), -means.index(name)), default=answer.query.y)


def _submit(talk: Conversation, asks: Sequence[Ask], answered: Sequence[Answered]) -> Turn:
    refused = talk.failed("submit_analysis")
    if len(refused) > 2:
        return Turn(f"I could not hand in the analysis. The last reply was: {shorten(refused[-1].result or '', 500)}")
    parts = [(a.ask, a.query, a.table) for a in answered if a.table is not None]
    errors = [f"- {a.query.title}: {a.error}" for a in answered if a.error]
    summary = write_summary(asks, parts)
    if errors:
        summary += "\n\nNot computed:\n\n" + "\n".join(errors)
    if any(ask.wants_chart for ask in asks) and not talk.made("make_chart"):
        failed = talk.failed("make_chart")
        summary += "\n\nNo chart was made" + (
            f": {shorten(' '.join((failed[-1].result or '').split()), 300)}" if failed else ": nothing in the results can be drawn."
        )
    if not parts:
        summary = summary.strip() or "Nothing could be computed."
    for phrase in talk.constraints.must_mention:
        if phrase.lower() not in summary.lower():
            summary += f"\n\nThe tables say nothing about “{phrase}”."
    summary = cut_words(summary, talk.constraints.words_max) if talk.constraints.words_max else summary
    figures = [] if len(refused) == 2 else figures_of(parts)[: FIGURES_MAX if not refused else 5]
    return Turn("", (Want("submit_analysis", {"summary": summary, "figures": figures}),))


def _give_up(talk: Conversation, reason: str) -> Turn:
    errors = [" ".join((call.result or "").split()) for call in talk.calls if call.is_error]
    text = reason + (f" The last error was: {shorten(errors[-1], 400)}" if errors else "")
    if len(talk.failed("submit_analysis")) > 1:
        return Turn(text)
    return Turn("", (Want("submit_analysis", {"summary": re.sub(r"\s+", " ", text), "figures": []}),))
