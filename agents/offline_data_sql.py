"""SQL for what was asked, built as a syntax tree: names and values from files and people are never pasted into text."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

from crewlog.agents.offline_data_conditions import Condition
from crewlog.agents.offline_data_facts import MISSING_SPELLINGS, Column, Source
from crewlog.agents.offline_data_shape import Ask, Function
from crewlog.agents.offline_text import join_words

if TYPE_CHECKING:
    from sqlglot import exp

GROUPS_MAX = 40
COLUMNS_MAX = 6
VALUES_MAX = 50
PERIODS_MAX = 400
WHETHER = "percent of rows"
"""Name of the result column that holds the share of rows for which something is so."""


@dataclass(frozen=True, slots=True)
class Query:
    """One statement, what it answers, and how its result is drawn."""

    title: str
    sql: str
    x: str = ""
    y: str = ""
    chart: str = ""
    rows_max: int = 0
    """Where the result is cut off; 0 for nowhere."""


def values_query(source: Source, column: Column) -> str:
    """Return the distinct values of a text column, most frequent first."""
    from sqlglot import exp

    name = _name(column)
    query = (
        _from(exp.select(name, exp.alias_(exp.Count(this=exp.Star()), "n", quoted=True)), source)
        .where(name.copy().is_(exp.Null()).not_())
        .group_by(name.copy())
    )
    return _text(query.order_by(exp.column("n", quoted=True).desc(), name.copy()).limit(VALUES_MAX))


def queries(ask: Ask) -> list[Query]:
    """Return the statements that answer an ask."""
    build = {
        "profile": _profile,
        "missing": _missing,
        "correlation": _correlation,
        "trend": _trend,
        "share": _share,
        "top": _top,
        "rows": _rows,
        "duplicates": _duplicates,
        "none": _nothing,
    }.get(ask.shape, _aggregates)
    made = build(ask)
    if ask.draws == "histogram" and (measure := next((m for m in ask.measures or ask.source.measures if m.sort == "number"), None)):
        made = [query for query in made if query.chart != "histogram"] + [_distribution(ask, measure)]
    return made


def label(function: Function, measure: Column | None) -> str:
    """Name a result column: `mean body_mass_g`, or `n` for a count of rows."""
    if measure is None:
        return "n"
    return f"percent {measure.name}" if function == "rate" else measure.name if function == "value" else f"{function} {measure.name}"


def said(name: str) -> str:
    """Name a result column for people."""
    return "number of rows" if name == "n" else name


def _profile(ask: Ask) -> list[Query]:
    """Rows, spread of each measure, and the means by each column worth grouping by."""
    source = ask.source
    made = [Query("rows", _text(_from(_select(_count()), source)))]
    if source.measures:
        made.append(Query("measures", _measures(source)))
    missing = _missing(ask)
    made += missing
    for group in sorted(source.categories, key=lambda column: (column.distinct, source.columns.index(column)))[:3]:
        outputs = [_aliased(_aggregate("mean", measure), label("mean", measure)) for measure in source.measures[:4] if measure != group]
        first = next((m for m in source.measures if m != group), None)
        grouped = _grouped(source, [group], [_aliased(_count(), "n"), *outputs], ask)
        made.append(Query(f"by {group.name}", _text(grouped), group.name, label("mean", first) if first else "n", "bar"))
    if not source.categories and source.measures:
        made.append(Query("largest", _text(_listing(source, source.measures[0]))))
    return made


def _measures(source: Source) -> str:
    from sqlglot import exp

    parts = []
    for measure in source.measures[:12]:
        columns = [exp.alias_(exp.Literal.string(measure.name), "column", quoted=True), _aliased(exp.Count(this=_number(measure)), "n")]
        columns += [_aliased(_aggregate(function, measure), function) for function in ("mean", "median", "stddev", "min", "max")]
        parts.append(_from(exp.select(*columns), source))
    return _text(parts[0] if len(parts) == 1 else exp.union(*parts, distinct=False))


def _listing(source: Source, measure: Column) -> exp.Select:
    from sqlglot import exp

    shown = [_name(column) for column in source.columns[:6]]
    return _from(exp.select(*shown), source).order_by(exp.Ordered(this=_number(measure), desc=True, nulls_first=False)).limit(5)


def _missing(ask: Ask) -> list[Query]:
    from sqlglot import exp

    columns = list(ask.measures or ask.source.columns)[:60]
    parts = []
    for column in columns:
        absent = exp.Sum(this=exp.If(this=_is_missing(column), true=exp.Literal.number(1), false=exp.Literal.number(0)))
        parts.append(
            _from(
                exp.select(exp.alias_(exp.Literal.string(column.name), "column", quoted=True), _aliased(absent, "missing"), _aliased(_count(), "rows")),
                ask.source,
            )
        )
    if not parts:
        return []
    return [Query("missing values", _text(parts[0] if len(parts) == 1 else exp.union(*parts, distinct=False)), "column", "missing", "bar")]


def _correlation(ask: Ask) -> list[Query]:
    from sqlglot import exp

    one, other = (_number(column) for column in ask.measures[:2])
    select = exp.select(_aliased(exp.func("CORR", one, other), "correlation"), _aliased(exp.func("REGR_COUNT", one.copy(), other.copy()), "n"))
    points = _where(_from(exp.select(_aliased(one.copy(), ask.measures[0].name), _aliased(other.copy(), ask.measures[1].name)), ask.source), ask)
    names = [column.name for column in ask.measures[:2]]
    return [
        Query(f"correlation of {names[0]} and {names[1]}", _text(_where(_from(select, ask.source), ask))),
        Query(f"{names[0]} and {names[1]}", _text(points.limit(50_000)), names[0], names[1], "scatter"),
    ]


def _duplicates(ask: Ask) -> list[Query]:
    from sqlglot import exp

    whole = exp.Count(this=exp.Distinct(expressions=[exp.Tuple(expressions=[_name(column) for column in ask.source.columns])]))
    return [Query("rows", _text(_where(_from(exp.select(_aliased(_count(), "rows"), _aliased(whole, "different rows")), ask.source), ask)))]


def _nothing(_: Ask) -> list[Query]:
    return []


def _trend(ask: Ask) -> list[Query]:
    from sqlglot import exp

    assert ask.date is not None
    axis: exp.Expr = exp.func("DATE_TRUNC", exp.Literal.string(ask.period), _name(ask.date)) if ask.period else _name(ask.date)
    name = ask.period or ask.date.name
    if ask.period and ask.period != "hour":
        axis = exp.cast(axis, "date")
    outputs = _outputs(ask)
    counted = [expression for _, expression in outputs] + ([] if any(label == "n" for label, _ in outputs) else [_aliased(_count(), "n")])
    keys = [_name(column) for column in ask.groups]
    labelled = [_aliased(key, column.name) for key, column in zip(keys, ask.groups, strict=True)]
    select = _where(_from(exp.select(_aliased(axis, name), *labelled, *counted), ask.source), ask)
    for column in ask.groups:
        select = select.where(exp.not_(_is_missing(column)))
    order = [axis, *keys]
    select = (
        select.where(_name(ask.date).is_(exp.Null()).not_())
        .group_by(*(key.copy() for key in order))
        .order_by(*(key.copy() for key in order))
        .limit(PERIODS_MAX)
    )
    by = join_words([name, *(column.name for column in ask.groups)])
    return [Query(f"{said(outputs[0][0])} by {by}", _text(select), name, outputs[0][0], "" if ask.groups else "line", PERIODS_MAX)]


def _share(ask: Ask) -> list[Query]:
    from sqlglot import exp

    group = ask.groups[0]
    measure = next((m for m in ask.measures if m != group), None)
    amount: exp.Expr = exp.Sum(this=_number(measure)) if measure else _count()
    total = exp.Window(this=exp.Sum(this=amount.copy()))
    percent = exp.func(
        "ROUND",
        exp.Div(this=exp.Mul(this=exp.Literal.number("100.0"), expression=amount.copy()), expression=exp.func("NULLIF", total, exp.Literal.number(0))),
        exp.Literal.number(2),
    )
    name = label("sum", measure)
    grouped = _grouped(ask.source, [group], [_aliased(amount, name), _aliased(percent, "percent")], ask, order=name, descending=True)
    return [Query(f"share of {name if measure else 'rows'} by {group.name}", _text(grouped), group.name, "percent", "bar")]


def _top(ask: Ask) -> list[Query]:
    group, outputs = ask.groups[0], _outputs(ask)
    name = outputs[0][0]
    grouped = _grouped(
        ask.source,
        [group],
        [outputs[0][1], *([_aliased(_count(), "n")] if name != "n" and ask.functions != ("value",) else [])],
        ask,
        order=name,
        descending=not ask.is_ascending,
        limit=ask.limit,
    )
    return [Query(f"{group.name} by {said(name)}, {'lowest' if ask.is_ascending else 'highest'} first", _text(grouped), group.name, name, "bar")]


def _aggregates(ask: Ask) -> list[Query]:
    from sqlglot import exp

    outputs = _outputs(ask)
    title = ", ".join(said(name) for name, _ in outputs)
    expressions = [expression for _, expression in outputs]
    if any(name == "n" for name, _ in outputs):
        counted = expressions
    else:
        what = exp.Count(this=_all_hold(ask)) if ask.whether else exp.Count(this=_value(ask.measures[0])) if len(ask.measures) == 1 else _count()
        counted = [*expressions, _aliased(what, "n")]
    if ask.groups:
        # of more groups than are shown, those with the most
        is_many = prod(column.distinct or 1 for column in ask.groups) > GROUPS_MAX
        grouped = _grouped(ask.source, list(ask.groups), counted, ask, order=outputs[0][0] if is_many else "", descending=True)
        return [Query(f"{title} by {', '.join(c.name for c in ask.groups)}", _text(grouped), ask.groups[0].name, outputs[0][0], "bar", GROUPS_MAX)]
    made = [Query(title, _text(_where(_from(exp.select(*counted), ask.source), ask)))]
    if ask.wants_chart and (numbers := [m for m in ask.measures if m.sort == "number"]):
        made.append(_distribution(ask, numbers[0]))
    return made


def _distribution(ask: Ask, measure: Column) -> Query:
    from sqlglot import exp

    values = _where(_from(exp.select(_aliased(_number(measure), measure.name)), ask.source), ask).limit(50_000)
    return Query(f"distribution of {measure.name}", _text(values), measure.name, "", "histogram")


def _rows(ask: Ask) -> list[Query]:
    from sqlglot import exp

    used = [*(column for column, _, _ in ask.filters), *ask.measures]
    shown = [c for at, c in enumerate(ask.source.columns) if at < COLUMNS_MAX or c in used]
    listed = _where(_from(exp.select(*(_name(column) for column in shown)), ask.source), ask)
    listed = listed.order_by(*(_name(column) for column in shown[:2])).limit(GROUPS_MAX)
    counted = _where(_from(_select(_count()), ask.source), ask)
    return [Query("rows", _text(counted)), Query("listed", _text(listed))]


def _outputs(ask: Ask) -> list[tuple[str, Any]]:
    if ask.whether:
        return [(WHETHER, _aliased(_percent(_all_hold(ask)), WHETHER))]
    made: list[tuple[str, Any]] = []
    for function in ask.functions or ("count",):
        if function == "count" or not ask.measures:
            made.append(("n", _aliased(_count(), "n")))
            continue
        for measure in ask.measures[:6]:
            name = label(function, measure)
            made.append((name, _aliased(_aggregate(function, measure), name)))
    return list({name: (name, expression) for name, expression in made}.values())


def _grouped(
    source: Source, groups: list[Column], outputs: list[Any], ask: Ask, *, order: str = "", descending: bool = False, limit: int = GROUPS_MAX
) -> exp.Select:
    from sqlglot import exp

    names = [_name(column) for column in groups]
    select = _where(_from(exp.select(*(_aliased(name, column.name) for name, column in zip(names, groups, strict=True)), *outputs), source), ask)
    for column in groups:
        select = select.where(exp.not_(_is_missing(column)))
    select = select.group_by(*(name.copy() for name in names))
    first = [exp.Ordered(this=exp.column(order, quoted=True), desc=descending, nulls_first=False)] if order else []
    return select.order_by(*first, *(name.copy() for name in names)).limit(limit)


def _aggregate(function: Function, measure: Column) -> exp.Expr:
    from sqlglot import exp

    if function == "distinct":
        return exp.Count(this=exp.Distinct(expressions=[_value(measure)]))
    if function == "rate":
        return _percent(_number(measure))
    number = _number(measure)
    made: dict[str, exp.Expr] = {
        "sum": exp.Sum(this=number),
        "mean": exp.Avg(this=number),
        "median": exp.Median(this=number),
        "min": exp.Min(this=number),
        "max": exp.Max(this=number),
        "value": exp.Max(this=number),
        "stddev": exp.StddevSamp(this=number),
    }
    return exp.func("ROUND", made[function], exp.Literal.number(4)) if function in ("mean", "median", "stddev") else made[function]


def _percent(truth: exp.Expr) -> exp.Expr:
    from sqlglot import exp

    percent = exp.Mul(this=exp.Literal.number("100.0"), expression=exp.Avg(this=exp.cast(truth, "int")))
    return exp.func("ROUND", percent, exp.Literal.number(2))


def _all_hold(ask: Ask) -> exp.Expr:
    from sqlglot import exp

    return exp.and_(*(part for condition in ask.whether for part in _holds(condition, ask.source)))


def _where(select: exp.Select, ask: Ask) -> exp.Select:
    for condition in ask.filters:
        for part in _holds(condition, ask.source):
            select = select.where(part)
    return select


def _holds(condition: Condition, source: Source) -> list[exp.Expr]:
    """Write a condition; what it returns is to be true all together."""
    from sqlglot import exp

    column, operator, values = condition
    literals: list[exp.Expr] = [exp.Literal.string(value) if isinstance(value, str) else exp.Literal.number(f"{value:.15g}") for value in values]
    match operator:
        case "in":
            return [exp.In(this=_name(column), expressions=literals)]
        case "not in":
            return [exp.not_(exp.In(this=_name(column), expressions=literals))]
        case "between":
            return [exp.Between(this=_number(column), low=literals[0], high=literals[1])]
        case "span":
            ends = zip((exp.GTE, exp.LT), literals, values, strict=True)
            return [kind(this=_name(column), expression=exp.cast(literal, "date")) for kind, literal, value in ends if value]
        case "month":
            return [exp.EQ(this=exp.func("MONTH", _name(column)), expression=literals[0])]
        case "> mean" | "< mean":
            mean = _from(exp.select(exp.Avg(this=_number(column))), source).subquery()
            return [(exp.GT if operator == "> mean" else exp.LT)(this=_number(column), expression=mean)]
        case "missing":
            return [_is_missing(column)]
        case "true" | "false":
            yes = exp.cast(_number(column), "boolean")
            return [yes if operator == "true" else exp.not_(yes)]
        case _:
            kind = {"=": exp.EQ, ">": exp.GT, ">=": exp.GTE, "<": exp.LT, "<=": exp.LTE}[operator]
            return [kind(this=_number(column), expression=literals[0])]


def _is_missing(column: Column) -> exp.Expr:
    from sqlglot import exp

    name = _name(column)
    empty = name.copy().is_(exp.Null())
    if column.type.upper().startswith(("VARCHAR", "TEXT", "STRING", "CHAR")):
        spelled = exp.In(this=exp.Trim(this=name.copy()), expressions=[exp.Literal.string(text) for text in MISSING_SPELLINGS if text not in ("-", "?")])
        return exp.or_(empty, spelled)
    return empty


def _value(column: Column) -> exp.Expr:
    from sqlglot import exp

    return (
        exp.func("NULLIF", _name(column), exp.Literal.string("NA"))
        if column.sort == "text" and not column.part
        else _number(column)
        if column.sort == "number"
        else _name(column)
    )


def _number(column: Column) -> exp.Expr:
    from sqlglot import exp

    if column.factors and not column.part:
        one, other = (_number(factor) for factor in column.factors)
        return exp.Mul(this=one, expression=other)
    return exp.TryCast(this=_name(column), to=exp.DataType.build("double")) if column.is_text_number else _name(column)


def _name(column: Column) -> exp.Expr:
    from sqlglot import exp

    if not column.part:
        return exp.column(column.name, quoted=True)
    of = _name(column.factors[0])
    match column.part:
        case "day":
            return exp.cast(of, "date")
        case "weekday":
            return exp.func("DAYNAME", of)
        case "hour of day":
            return exp.func("HOUR", of)
        case _:
            year = exp.func("YEAR", of) if column.factors[0].sort == "date" else of
            return exp.Sub(this=year, expression=exp.paren(exp.Mod(this=year.copy(), expression=exp.Literal.number(10))))


def _count() -> exp.Expr:
    from sqlglot import exp

    return exp.Count(this=exp.Star())


def _select(expression: exp.Expr) -> exp.Select:
    from sqlglot import exp

    return exp.select(_aliased(expression, "n"))


def _aliased(expression: Any, name: str) -> Any:
    from sqlglot import exp

    return exp.alias_(expression, name, quoted=True)


def _from(select: exp.Select, source: Source) -> exp.Select:
    from sqlglot import exp

    return select.from_(exp.to_identifier(source.name, quoted=True))


def _text(query: exp.Query) -> str:
    return query.sql(dialect="duckdb")
