"""Puts results of queries into words: a sentence and a small table for each, and the key figures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any, Final

from crewlog.agents.offline_data_conditions import Condition
from crewlog.agents.offline_data_facts import Column, Source
from crewlog.agents.offline_data_shape import Ask
from crewlog.agents.offline_data_sql import WHETHER, Query, said
from crewlog.agents.offline_data_time import MONTHS
from crewlog.agents.offline_report import show
from crewlog.agents.offline_tables import Table, as_number, markdown_table
from crewlog.agents.offline_text import capital, join_words

ROWS_SHOWN_MAX: Final = 16
FIGURES_OF_GROUPS_MAX: Final = 12
Part = tuple[Ask, Query, Table]


def write_summary(asks: Sequence[Ask], parts: Sequence[Part]) -> str:
    """Write the analysis: what was found for each ask, its tables, and the choices that were made."""
    lines: list[str] = []
    for ask in asks:
        mine = [(query, table) for owner, query, table in parts if owner is ask]
        lines += [text for doubt in ask.doubts for text in (f"{'This cannot be answered' if ask.shape == 'none' else 'Careful'}: {doubt}.", "")]
        if ask.shape in ("profile", "rows"):
            lines += _profile(ask, mine) if ask.shape == "profile" else _rows(ask, mine)
        else:
            lines += [line for query, table in mine for line in _result(ask, query, table)]
        lines += [text for note in ask.notes for text in (f"Note: {note}.", "")]
    if missing := _caveat(asks):
        lines += [missing]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def figures_of(parts: Sequence[Part]) -> list[dict[str, Any]]:
    """Return the key figures: single values, and each group's first measure."""
    figures: list[dict[str, Any]] = []
    for ask, query, table in parts:
        if query.title == "missing values":
            total = sum(int(as_number(v) or 0) for v in table.column("missing"))
            figures.append({"label": f"missing values in {ask.source.name}", "value": total, "unit": ""})
        elif query.title == "listed":
            continue
        elif query.title == "rows":
            figures.append(
                {
                    "label": f"number of rows{_conditions(ask)}" if ask.filters else f"rows in {ask.source.name}",
                    "value": table.rows[0][0] if table.rows else 0,
                    "unit": "",
                }
            )
        elif query.title == "measures":
            figures += [_figure(f"mean {row[0]}", row[2], _column(ask.source, str(row[0]))) for row in table.rows if row[2] is not None]
        elif query.title.startswith("by "):
            continue
        elif ask.groups or ask.shape == "trend":
            at = table.columns.index(query.y) if query.y in table.columns else len(ask.groups)
            keys = _key_count(ask)
            shown = table.rows[:FIGURES_OF_GROUPS_MAX]
            figures += [_figure(f"{said(query.y)}, {_keys(row, keys, ask.period)}", row[at], _named_in(ask, query.y)) for row in shown if row[at] is not None]
        elif len(table.rows) == 1:
            figures += [
                _figure(_what(ask, name).removeprefix("the "), value, _named_in(ask, name))
                for name, value in zip(table.columns, table.rows[0], strict=True)
                if value is not None and (name != "n" or ask.functions == ("count",))
            ]
    return figures


def spread(table: Table | None, name: str) -> float:
    """Return how far groups lie apart: the range of their means relative to the mean of these."""
    if table is None or name not in table.columns:
        return 0.0
    values = [value for cell in table.column(name) if (value := as_number(cell)) is not None]
    middle = sum(map(abs, values)) / len(values) if values else 0.0
    return (max(values) - min(values)) / middle if middle else 0.0


def _profile(ask: Ask, results: Sequence[tuple[Query, Table]]) -> list[str]:
    source = ask.source
    found = {query.title: table for query, table in results}
    rows = found["rows"].rows[0][0] if "rows" in found and found["rows"].rows else source.rows
    lines = [f"**{source.name}** has {rows} rows and {len(source.columns)} columns: {join_words(c.name for c in source.columns[:20])}.", ""]
    if measures := found.get("measures"):
        lines += [_table(measures), ""]
    if absent := found.get("missing values"):
        gaps = [(str(row[0]), int(as_number(row[1]) or 0)) for row in absent.rows if as_number(row[1])]
        lines += ["Missing values: " + (join_words(f"{name} {count}" for name, count in gaps) + f" (of {rows} rows)." if gaps else "none."), ""]
    groups = [(query, table) for query, table in results if query.title.startswith("by ")]
    for query, table in sorted(groups, key=lambda entry: -max((spread(entry[1], name) for name in entry[1].columns[2:]), default=0.0))[:2]:
        lines += [_contrast(query, table, source), "", _table(table), ""]
    if largest := found.get("largest"):
        lines += [f"The rows with the largest {source.measures[0].name}:", "", _table(largest), ""]
    return lines


def _contrast(query: Query, table: Table, source: Source) -> str:
    """Say in one sentence which measure tells the groups apart most."""
    means = [name for name in table.columns if name.startswith("mean ")]
    best = max(means, key=lambda name: (spread(table, name), -means.index(name)), default="")
    rows = [row for row in table.rows if best and as_number(row[table.columns.index(best)]) is not None]
    if len(rows) < 2:
        return f"{capital(query.title)}:"
    at = table.columns.index(best)
    ordered = sorted(rows, key=lambda row: (as_number(row[at]) or 0.0, str(row[0])))
    unit = _unit(_column(source, best.removeprefix("mean ")))
    low, high = ordered[0], ordered[-1]
    return f"{capital(query.title)}, {best} differs most: {show(low[at])}{unit} for {low[0]} up to {show(high[at])}{unit} for {high[0]}."


def _rows(ask: Ask, results: Sequence[tuple[Query, Table]]) -> list[str]:
    found = {query.title: table for query, table in results}
    count = found["rows"].rows[0][0] if "rows" in found and found["rows"].rows else 0
    lines = [f"{count} {'row fits' if count == 1 else 'rows fit'}{_conditions(ask)}" + (":" if count else "."), ""]
    return [*lines, _table(found["listed"]), ""] if count and "listed" in found else lines


def _key_count(ask: Ask) -> int:
    return 1 + len(ask.groups) if ask.shape == "trend" else max(1, len(ask.groups))


def _result(ask: Ask, query: Query, table: Table) -> list[str]:
    if not table.rows:
        return [f"{capital(query.title)}: no rows fit{_conditions(ask)}.", ""]
    if query.chart in ("scatter", "histogram"):
        return []
    if ask.shape == "duplicates":
        rows, different = (int(as_number(cell) or 0) for cell in table.rows[0])
        again = f"{rows - different or 'none'} {'is a repetition' if rows - different == 1 else 'are repetitions'}"
        return [f"{ask.source.name} has {rows} rows{_conditions(ask)}, {different} different ones: {again}.", ""]
    if len(table.rows) == 1 and not ask.groups and ask.shape not in ("trend", "missing"):
        count = dict(zip(table.columns, table.rows[0], strict=True)).get("n")
        texts = [
            f"{_what(ask, name)} is {show(value)}{' %' if name.startswith('percent') else _unit(_named_in(ask, name))}"
            for name, value in zip(table.columns, table.rows[0], strict=True)
            if (name != "n" or ask.functions == ("count",)) and value is not None
        ]
        of = f" (n = {count})" if count is not None and ask.functions != ("count",) else ""
        return [capital("; ".join(texts)) + of + "." if texts else f"There is no value{_conditions(ask)}.", ""]
    return [_headline(ask, query, table), "", _table(table, ask.period), ""]


def _headline(ask: Ask, query: Query, table: Table) -> str:
    if ask.shape == "missing":
        gaps = [(str(row[0]), int(as_number(row[1]) or 0)) for row in table.rows if as_number(row[1])]
        return f"Missing values in {ask.source.name}: " + (
            f"{sum(n for _, n in gaps)} in all, " + join_words(f"{name} {count}" for name, count in gaps) + "." if gaps else "none."
        )
    at = table.columns.index(query.y) if query.y in table.columns else -1
    keys = _key_count(ask)
    ranked = sorted((row for row in table.rows if as_number(row[at]) is not None), key=lambda row: (-(as_number(row[at]) or 0.0), str(row[0])))
    if not ranked and ask.shape != "top":
        return f"{capital(query.title)}{_conditions(ask)}:"
    if ask.shape == "top":
        return f"{capital(query.title)}{_conditions(ask)}: {_place(ask, query, table, at)}"
    unit = _unit(_named_in(ask, query.y)) if not query.y.startswith("percent") else " %"
    high, low = ranked[0], ranked[-1]
    if focused := [row for row in ranked if show(row[0]) in ask.focus]:
        return f"{capital(query.title)}{_conditions(ask)}: " + join_words(f"{_keys(row, keys)} has {show(row[at])}{unit}" for row in focused) + "."
    if len(ranked) > 1 and show(high[at]) == show(low[at]):
        how = "the same" if high[at] == low[at] else "about the same"
        return f"{capital(query.title)}{_conditions(ask)}: {how} for all ({show(high[at])}{unit})."
    text = f"{capital(query.title)}{_conditions(ask)}: "
    is_cut = 0 < query.rows_max <= len(table.rows)
    if is_cut and ask.shape == "trend":
        return f"{text}only the first {len(table.rows)} are looked at, so these rules cannot say where it is highest."
    text += f"highest for {_keys(high, keys, ask.period)} ({show(high[at])}{unit})"
    if is_cut:
        return f"{text}; only the {len(table.rows)} highest are looked at."
    if low is not high:
        text += f", lowest for {_keys(low, keys, ask.period)} ({show(low[at])}{unit})"
    if ask.functions in (("count",), ("sum",)) and len(ask.measures) <= 1 and ask.shape == "group" and 1 < len(ranked) == len(table.rows):
        text += f"; {show(sum(row[at] for row in ranked))}{unit} in all"
    if len(ranked) == 2 and ask.is_contrast:
        text += f"; a difference of {show(high[at] - low[at])}{unit}"
    return f"{text}."


def _place(ask: Ask, query: Query, table: Table, at: int) -> str:
    """Say who is first, and in what place the one is that was asked for; rows come in the order of the ranking."""
    unit = _unit(_named_in(ask, query.y))
    if ask.rank > len(table.rows):
        return f"there are only {len(table.rows)}."
    row = table.rows[ask.rank - 1]
    place = ("first", "second", "third", "fourth", "fifth")[ask.rank - 1]
    equal = [_keys(other, 1) for other in table.rows if other[at] == row[at] and other is not row]
    same = f", as {'has' if len(equal) == 1 else 'have'} {join_words(equal)}" if equal else ""
    return f"{_keys(row, 1)} is {place} with {_key(row[at])}{unit}{same}."


def _what(ask: Ask, name: str) -> str:
    if name == WHETHER:
        return f"the percentage of rows{_conditions(ask)} for which {_told(ask.whether)}"
    if ask.shape == "correlation":
        return f"the {name} of {ask.measures[0].name} and {ask.measures[1].name}{_conditions(ask)}"
    text = "number of rows" if name == "n" else f"number of {name}" if name.startswith("distinct ") else name
    return f"the {text}{_conditions(ask)}"


def _conditions(ask: Ask) -> str:
    told = _told([(column, operator, values) for column, operator, values in ask.filters if column not in ask.groups or operator != "in"])
    return f" where {told}" if told else ""


def _told(conditions: Sequence[Condition]) -> str:
    return join_words(f"{column.name} {_condition(operator, values)}" for column, operator, values in conditions)


def _condition(operator: str, values: Sequence[str | float]) -> str:
    listed = [show(value) for value in values]
    if operator == "span":
        last = (date.fromisoformat(listed[1]) - timedelta(days=1)).isoformat() if listed[1] else ""
        if listed[0] and last:
            return f"is {last}" if listed[0] == last else f"is between {listed[0]} and {last}"
        return f"is {listed[0]} or later" if listed[0] else f"is {last} or earlier"
    if operator == "month":
        return f"is in {MONTHS[int(values[0]) - 1].capitalize()}"
    if operator == "between":
        return f"is between {join_words(listed)}"
    if operator.endswith("mean"):
        return f"is {'above' if operator.startswith('>') else 'below'} its mean"
    word = {"in": "is", "=": "is", "true": "is", "false": "is", "missing": "is", "not in": "is not"}.get(operator, operator)
    return f"{word} {' or '.join(listed) or operator}"


def _caveat(asks: Sequence[Ask]) -> str:
    used = dict.fromkeys(column for ask in asks if ask.shape != "missing" for column in (*ask.measures, *_grouping(ask)) if column.nulls)
    return f"Missing values are left out: {join_words(f'{column.name} {column.nulls}' for column in used)}." if used else ""


def _grouping(ask: Ask) -> list[Column]:
    """Return the columns whose missing values belong to no group, unless a condition left them out before."""
    return [group for group in ask.groups if all(group is not column for column, _, _ in ask.filters)]


def _figure(label: str, value: Any, column: Column | None) -> dict[str, Any]:
    number = as_number(value)
    return {
        "label": label,
        "value": value if number is None else int(number) if number.is_integer() else round(number, 4),
        "unit": "%" if label.startswith("percent") else column.unit if column and "distinct" not in label else "",
    }


def _key(value: Any, period: str = "") -> str:
    """Show a group's name; a month or year by as much of its first day as names it."""
    text = show(value).removesuffix(" 00:00:00")
    return text[: {"month": 7, "year": 4, "hour": 16}.get(period, 10)].replace("T", " ") if period and re.match(r"\d{4}-\d\d-\d\d", text) else text


def _keys(row: Sequence[Any], count: int, period: str = "") -> str:
    return " / ".join(_key(value, period) for value in row[:count])


def _unit(column: Column | None) -> str:
    return f" {column.unit}" if column and column.unit else ""


def _column(source: Source, name: str) -> Column | None:
    return next((column for column in source.columns if column.name == name), None)


def _named_in(ask: Ask, name: str) -> Column | None:
    return (
        None
        if name.startswith(("distinct", "correlation"))
        else next((column for column in ask.source.columns if name.endswith(f" {column.name}") or name == column.name), None)
    )


def _table(table: Table, period: str = "") -> str:
    shown = [[_key(cell, period) if cell is not None else "" for cell in row] for row in table.rows[:ROWS_SHOWN_MAX]]
    more = f"\n\n(the first {ROWS_SHOWN_MAX} rows are shown)" if len(table.rows) > ROWS_SHOWN_MAX else ""
    return markdown_table(table.columns, shown) + more
