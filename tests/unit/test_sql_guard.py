from __future__ import annotations

import pytest

from crewlog.agents.sql_guard import SQL_CHARS_MAX, SqlRefused, check_sql

ALLOWED = ["penguins", "islands"]

LEGITIMATE = [
    "select * from penguins",
    "FROM penguins SELECT species",
    "select species, count(*) as n, avg(mass) from penguins group by all order by n desc limit 3",
    "with p as (select * from penguins) select * from p join islands using (island)",
    "with secrets as (select 1 as a) select a from secrets",
    "with recursive r(n) as (select 1 union all select n + 1 from r where n < 5) select n from r",
    "select * from (with p as (select mass from penguins) select * from p) q",
    "select species, row_number() over (partition by species order by mass desc) as r from penguins qualify r <= 2",
    "select median(mass), quantile_cont(mass, 0.9), stddev(mass), corr(mass, flipper), mode(sex), skewness(mass) from penguins",
    "select strftime(day, '%Y-%m'), date_trunc('month', day), extract(year from day), try_cast(mass as double) from penguins",
    "select case when sex is null then 'unknown' else lower(trim(sex)) end, nullif(sex, 'NA'), sex ilike '%f%' from penguins",
    "select regexp_matches(species, 'A.*'), list_aggregate([1, 2], 'sum'), list_transform([1], x -> x + 1) from penguins",
    "select count(*) filter (where mass > 4000) from penguins",
    "(select 1 as a from penguins) union all (select 2 from islands) order by 1",
    "select * from range(5)",
    "select unnest([1, 2])",
    "select * exclude (species) from penguins",
    "select * from penguins pivot (sum(mass) for sex in ('male', 'female'))",
    "select p.species from penguins p where p.mass > (select avg(q.mass) from penguins q where q.species = p.species)",
    "select * from penguins p, lateral (select p.mass * 2)",
    "select 'drop table penguins; --' as text from penguins",
]

HOSTILE = [
    # a name is a table unless the query defines it in that very place
    "with secrets as (select * from secrets) select * from secrets",
    "select * from (with secrets as (select 1) select * from secrets) x, secrets",
    "select (with secrets as (select 1) select count(*) from secrets) from secrets",
    "with recursive secrets as (select * from secrets) select * from secrets",
    "with a as (select * from b), b as (select 1) select * from a",
    "with a as (select 1), secrets as (select * from a, secrets) select * from secrets",
    "select * from penguins a, secrets a",
    "with secrets as (select 1) select * from main.secrets",
    # tables that are not sources, in every place a table can stand
    "select * from secrets",
    "table secrets",
    "from secrets",
    "select exists (select 1 from secrets)",
    "select * from penguins where mass in (select a from secrets)",
    "select * from penguins order by (select a from secrets)",
    "select * from penguins limit (select a from secrets)",
    "select * from penguins union select * from secrets",
    "select * from penguins positional join secrets",
    "select * from penguins, lateral (select * from secrets)",
    "select * from unnest((select list(a) from secrets))",
    "select * from secrets pivot (sum(a) for b in ('x'))",
    "select * from information_schema.tables",
    "select * from duckdb_tables",
    "select * from sqlite_master",
    # files, settings, and functions that run other queries
    "select * from '/etc/passwd'",
    "select * from read_csv('/etc/passwd')",
    "select * from read_text('/etc/passwd')",
    "select * from glob('*')",
    "select * from sniff_csv('x')",
    "select * from parquet_metadata('x')",
    "select * from duckdb_settings()",
    "select * from pragma_table_info('penguins')",
    "select * from query('select 1')",
    "select * from query_table('penguins')",
    "select json_execute_serialized_sql('x')",
    "select getenv('HOME')",
    "select current_setting('memory_limit')",
    "select nextval('s')",
    "select current_user",
    "select version()",
    "select * from which_secret('a', 'b')",
    "select some_function_nobody_knows(mass) from penguins",
    # everything that is not one SELECT
    "drop table penguins",
    "delete from penguins",
    "insert into penguins values (1)",
    "update penguins set mass = 1",
    "merge into penguins using islands on true when matched then delete",
    "truncate penguins",
    "alter table penguins add column x int",
    "create table x as select 1",
    "create macro f() as 1",
    "copy penguins to 'x'",
    "export database 'x'",
    "attach 'x' as y",
    "use y",
    "install httpfs",
    "load httpfs",
    "pragma version",
    "set memory_limit = '1TB'",
    "reset all",
    "call pragma_version()",
    "checkpoint",
    "begin",
    "prepare p as select 1",
    "execute p",
    "explain select 1",
    "describe penguins",
    "show tables",
    "summarize secrets",
    "select * from (describe secrets)",
    "select * from (summarize secrets)",
    "with x as (delete from penguins returning *) select * from x",
    "select * into x from penguins",
    "select * from penguins for update",
    "select 1; select 2",
    "select 1; drop table penguins",
    "select ?",
    "select $1",
    "",
    " ; ",
    "selec 1",
    "select 'unfinished",
    "(" * 3_000 + "select 1" + ")" * 3_000,
    "select " + "(select " * 400 + "1" + ")" * 400,
    "select '" + "x" * SQL_CHARS_MAX + "'",
]


@pytest.mark.parametrize("sql", LEGITIMATE)
def test_reading_queries_pass(sql: str) -> None:
    checked = check_sql(sql, ALLOWED)
    assert set(checked.tables) <= set(ALLOWED)
    assert check_sql(checked.sql, ALLOWED) == checked, "what is run would itself pass"


@pytest.mark.parametrize("sql", HOSTILE, ids=[sql[:60] for sql in HOSTILE])
def test_everything_else_is_refused(sql: str) -> None:
    with pytest.raises(SqlRefused):
        check_sql(sql, ALLOWED)


def test_a_comment_does_not_reach_the_database() -> None:
    assert check_sql("select mass -- ; drop table penguins\nfrom penguins", ALLOWED).sql.count("drop table") <= 1
    assert "\n" not in check_sql("select mass -- ; drop table penguins\nfrom penguins", ALLOWED).sql


def test_names_are_matched_without_regard_to_case() -> None:
    assert check_sql('select * from "Penguins" join ISLANDS using (island)', ALLOWED).tables == ("islands", "penguins")


def test_a_refusal_names_the_sources() -> None:
    with pytest.raises(SqlRefused, match=r"no source 'pengiuns'; the sources are: islands, penguins"):
        check_sql("select * from pengiuns", ALLOWED)
