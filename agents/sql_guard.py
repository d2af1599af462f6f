"""Lets one reading SELECT over known tables through, and nothing else.

An allow-list that fails closed: one statement, its root and every part a query, tables by scope (a name is a table unless the query
itself defines it *there*), functions that are known and harmless. What is executed is the checked tree written out again, never the
text that came in. The database behind it is locked down as well (`data_child`): this is the first of two walls, and the one that can
explain.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final, NamedTuple

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError
from sqlglot.optimizer.scope import Scope, traverse_scope

SQL_CHARS_MAX: Final = 20_000

STATEMENTS: Final = (
    *(exp.DDL, exp.DML, exp.Command, exp.Into, exp.Lock, exp.Set, exp.SetItem, exp.Use, exp.Pragma, exp.Describe, exp.Attach, exp.Detach, exp.Copy),
    *(exp.Show, exp.Kill, exp.Analyze, exp.Transaction, exp.Commit, exp.Rollback, exp.Alter, exp.Drop, exp.Cache, exp.Summarize, exp.Install, exp.LoadData),
)
VARIABLES: Final = (exp.Parameter, exp.SessionParameter, exp.Placeholder)
TABLE_FUNCTIONS: Final = (exp.Unnest, exp.GenerateSeries)
DENIED_FUNCTIONS: Final = (
    exp.ReadCSV,
    exp.ReadParquet,
    exp.CurrentUser,
    exp.SessionUser,
    exp.CurrentSchema,
    exp.CurrentCatalog,
    exp.CurrentDatabase,
    exp.CurrentVersion,
)
MORE_FUNCTIONS: Final = frozenset(
    """
    age array_aggregate array_length ascii bar bit_count chr columns contains corr covar_pop covar_samp damerau_levenshtein date_part datepart
    dayname dayofmonth dayofweek dayofyear entropy epoch epoch_ms even favg first format format_bytes fsum gcd hamming histogram isfinite isinf isnan
    isodow isoyear jaccard jaro_similarity jaro_winkler_similarity kahan_sum kurtosis kurtosis_pop last lcm list_aggregate list_avg list_contains
    list_count list_distinct list_max list_median list_min list_position list_sort list_sum list_unique list_value mad make_date make_timestamp
    mode monthname multiply nfc_normalize parse_filename printf product quantile quantile_cont quantile_disc regexp_extract_all regexp_full_match
    regexp_matches regr_avgx regr_avgy regr_count regr_intercept regr_r2 regr_slope regr_sxx regr_sxy regr_syy reservoir_quantile reverse round_even
    sem skewness strip_accents string_split_regex struct_pack subtract suffix prefix sumkahan time_bucket trunc try_strptime unicode weekofyear yearweek
    geomean geometric_mean weighted_avg countif count_if any_value arg_max arg_min bool_and bool_or
    """.split()  # noqa: SIM905  (a list literal would take seventy lines)
)
"""Functions of DuckDB that the parser has no name for. None of them reaches files, settings, the network or other queries."""


class Checked(NamedTuple):
    """A query that may run: written out from the checked tree, and the tables it reads."""

    sql: str
    tables: tuple[str, ...]


class SqlRefused(ValueError):
    """The query may not run; the text says why and what is allowed, for whoever wrote it."""


def check_sql(sql: str, tables: Collection[str]) -> Checked:
    """Check one query.

    Args:
        sql: what a model wrote.
        tables: the names it may read, in lower case.

    Raises:
        SqlRefused: it is not one SELECT over these tables with known functions.
    """
    if len(sql) > SQL_CHARS_MAX:
        raise SqlRefused(f"the query has {len(sql)} characters; at most {SQL_CHARS_MAX} are allowed")
    try:
        tree = _one_query(sql)
        for node in tree.walk():
            _check_node(node)
        used = sorted(set(_tables(tree, {name.lower() for name in tables})))
        return Checked(tree.sql(dialect="duckdb"), tuple(used))
    except SqlglotError as error:
        raise SqlRefused(f"this is not valid DuckDB SQL: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise SqlRefused("the query is nested too deeply") from None


def _one_query(sql: str) -> exp.Query:
    statements = [statement for statement in sqlglot.parse(sql, read="duckdb") if statement is not None]
    if len(statements) != 1:
        raise SqlRefused(f"send exactly one statement; this has {len(statements)}")
    root = statements[0]
    if not isinstance(root, exp.Select | exp.SetOperation):
        raise SqlRefused(f"only SELECT is allowed, not {root.key.upper()}")
    return root


def _check_node(node: exp.Expr) -> None:
    if isinstance(node, STATEMENTS):
        raise SqlRefused(f"only SELECT is allowed, not {node.key.upper()}")
    if isinstance(node, VARIABLES):
        raise SqlRefused(f"{node.sql('duckdb')}: parameters and variables are not allowed; write the value")
    if isinstance(node, exp.CTE | exp.Subquery) and not isinstance(node.this, exp.Query | exp.Table | exp.Values | exp.Join):
        raise SqlRefused(f"only a SELECT may stand in {node.sql('duckdb')[:80]}")
    if isinstance(node, exp.Func):
        _check_function(node)


def _check_function(node: exp.Func) -> None:
    if isinstance(node, exp.Anonymous | exp.AnonymousAggFunc | exp.CombinedAggFunc):
        name = str(node.this).lower()
        if name not in MORE_FUNCTIONS:
            raise SqlRefused(f"function {name!r} is not known here; use the usual SQL functions of DuckDB")
    elif isinstance(node, DENIED_FUNCTIONS):
        raise SqlRefused(f"function {node.sql('duckdb')[:60]} is not allowed")


def _tables(tree: exp.Query, allowed: set[str]) -> Iterator[str]:
    """Yield every real table by resolving each name in its own scope.

    Collecting the names of all CTEs first would let `with t as (select * from t)` read the table t.
    """
    defined: set[int] = set()
    for scope in traverse_scope(tree):
        for table in scope.tables:
            source = scope.sources.get(table.alias_or_name)
            if isinstance(source, Scope) and scope.cte_sources.get(table.name) is source and not table.db:
                defined.add(id(table))
    for table in tree.find_all(exp.Table):
        if id(table) not in defined and not isinstance(table.this, TABLE_FUNCTIONS):
            yield _allowed(table, allowed)


def _allowed(table: exp.Table, allowed: set[str]) -> str:
    known = f"the sources are: {', '.join(sorted(allowed)) or 'none'}"
    if not isinstance(table.this, exp.Identifier):
        raise SqlRefused(f"table function {table.this.sql('duckdb')[:60]} is not allowed; {known}")
    if table.db or table.catalog:
        raise SqlRefused(f"{table.sql('duckdb')[:80]}: qualified names are not allowed; {known}")
    if table.name.lower() not in allowed:
        raise SqlRefused(f"there is no source {table.name[:80]!r}; {known}")
    return table.name.lower()
