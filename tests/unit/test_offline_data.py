"""What the data rules understand of a question: shape, functions, measures, groups, conditions, and what they say they did not understand."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from crewlog.agents.offline_data_ask import understand
from crewlog.agents.offline_data_facts import Column, Source, read_source
from crewlog.agents.offline_data_shape import Ask
from crewlog.agents.offline_data_sql import queries
from crewlog.agents.offline_data_time import spans
from crewlog.agents.offline_data_words import write_summary
from crewlog.agents.offline_tables import Table


def number(name: str, distinct: int = 90, *values: str, kind: str = "BIGINT") -> Column:
    return Column(name, kind, "number", distinct=distinct, values=values)


def text(name: str, *values: str, distinct: int = 0) -> Column:
    return Column(name, "VARCHAR", "text", distinct=distinct or len(values), values=values)


BOOKINGS = Source(
    "bookings",
    500,
    (
        number("nr", 500),
        Column("Arrival", "DATE", "date", distinct=200),
        text("Hotel", "Alpha", "Beta", "Gamma"),
        text("Guest", "Ann", "Bob", distinct=300),
        number("Nights", 14, "1", "2", "3"),
        number("Price (EUR)", 40, kind="DOUBLE"),
        number("Discount", 5, "0", "5", "10"),
        Column("cancelled", "BOOLEAN", "bool", distinct=2, values=("false", "true")),
    ),
)
CALLS = Source(
    "calls",
    80,
    (
        text("agent_name", *(f"Agent{n}" for n in range(5)), distinct=80),
        Column("started_at", "TIMESTAMP", "date", distinct=80),
        number("code", 4, "200", "404", "503"),
        number("wait_s", 60),
        number("temp_max_c", 60),
        number("temp_min_c", 60),
        text("gender", "female", "male"),
        text("would_recommend", "yes", "no", "unknown"),
    ),
)


def one(question: str, source: Source = BOOKINGS) -> Ask:
    asks = understand(question, [source])
    assert len(asks) == 1, [ask.shape for ask in asks]
    return asks[0]


def conditions(ask: Ask) -> list[tuple[Any, ...]]:
    return [(column.name, operator, *values) for column, operator, values in ask.filters]


def names(columns: tuple[Column, ...]) -> list[str]:
    return [column.name for column in columns]


def test_a_chart_clause_belongs_to_the_question_before_it() -> None:
    first, second = understand("How many bookings of each hotel are there, and what are the mean nights per hotel? Draw a bar chart.", [BOOKINGS])
    assert (first.functions, names(first.groups), first.wants_chart) == (("count",), ["Hotel"], False)
    assert (second.functions, names(second.measures), names(second.groups), second.wants_chart) == (("mean",), ["Nights"], ["Hotel"], True)


def test_a_histogram_is_drawn_when_it_is_named() -> None:
    assert [query.chart for query in queries(one("Draw a histogram of the nights"))][-1] == "histogram"


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("How many bookings between 2024-02-01 and 2024-02-29?", ("Arrival", "span", "2024-02-01", "2024-03-01")),
        ("How many bookings since March 2024?", ("Arrival", "span", "2024-03-01", "")),
        ("How many bookings before 5 May 2023?", ("Arrival", "span", "", "2023-05-05")),
        ("How many bookings in Q4 2023?", ("Arrival", "span", "2023-10-01", "2024-01-01")),
        ("How many bookings after 2022?", ("Arrival", "span", "2023-01-01", "")),
        ("How many bookings in April?", ("Arrival", "month", 4.0)),
        ("How many bookings with nights between 2 and 5?", ("Nights", "between", 2.0, 5.0)),
        ("How many bookings of 7 nights or more?", ("Nights", ">=", 7.0)),
        ("How many bookings cheaper than 90?", ("Price (EUR)", "<", 90.0)),
        ("How many bookings have nights above the average?", ("Nights", "> mean")),
        ("How many bookings were not for Alpha?", ("Hotel", "not in", "Alpha")),
        ("How many bookings had discount 10?", ("Discount", "=", 10.0)),
    ],
)
def test_conditions(question: str, expected: tuple[Any, ...]) -> None:
    ask = one(question)
    assert conditions(ask) == [expected]
    assert ask.functions == ("count",)
    assert not ask.doubts


def test_more_conditions_and_other_words_for_values() -> None:
    assert conditions(one("How many 503 errors were there?", CALLS)) == [("code", "=", 503.0)]
    assert conditions(one("How many calls waited longer than 30?", CALLS)) == [("wait_s", ">", 30.0)]
    assert conditions(one("What is the mean wait of women?", CALLS)) == [("gender", "in", "female")]
    both = one("How many days with more than 20 in temp_max_c and temp_min_c?", CALLS)
    assert conditions(both) == [("temp_max_c", ">", 20.0), ("temp_min_c", ">", 20.0)]


WARD = Source(
    "ward",
    200,
    (
        text("PatientID", *(f"P{n}" for n in range(9)), distinct=200),
        text("Sex", "F", "M"),
        text("Diagnosis", "flu", "burn"),
        number("Age", 80),
        number("stayMinutes", 90),
        number("year", 30),
        Column("readmitted", "BOOLEAN", "bool", distinct=2, values=("false", "true")),
    ),
)


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("How many women are there?", ("Sex", "in", "F")),
        ("How many patients under 18 are there?", ("Age", "<", 18.0)),
        ("How many stayed longer than 2 hours?", ("stayMinutes", ">", 120.0)),
        ("How many came in the 1990s?", ("year", "between", 1990.0, 1999.0)),
        ("How many were not readmitted?", ("readmitted", "false")),
    ],
)
def test_people_units_decades_and_what_is_not_so(question: str, expected: tuple[Any, ...]) -> None:
    ask = one(question, WARD)
    assert conditions(ask) == [expected]
    assert not ask.doubts


def test_people_are_compared_by_age_even_when_another_column_is_named() -> None:
    assert conditions(one("Mean stay of patients over 60", WARD)) == [("Age", ">", 60.0)]


def test_a_mean_of_counts_is_not_passed_over() -> None:
    assert "not computed" in one("How many patients per diagnosis on average?", WARD).doubts[0]


def test_rows_with_a_number_of_their_own_are_ranked_by_it() -> None:
    orders = Source("orders", 50, (number("order_id", 50), Column("order_date", "DATE", "date", distinct=40), number("price", kind="DOUBLE")))
    ask = one("Show me the 5 cheapest orders", orders)
    assert (names(ask.groups), names(ask.measures), ask.functions, ask.limit, ask.is_ascending) == (["order_id"], ["price"], ("value",), 5, True)


def test_the_sexes_are_compared() -> None:
    ask = one("Difference between the mean age of men and women", WARD)
    assert (names(ask.groups), ask.functions, names(ask.measures)) == (["Sex"], ("mean",), ["Age"])


def test_the_noun_after_most_frequent_is_ranked() -> None:
    ask = one("What is the most frequent diagnosis among patients under 18?", WARD)
    assert (names(ask.groups), ask.functions, conditions(ask)) == (["Diagnosis"], ("count",), [("Age", "<", 18.0)])


@pytest.mark.parametrize("question", ["What is the 90th percentile of age?", "Forecast the age per year", "What was the profit per diagnosis?"])
def test_what_cannot_be_computed_is_said(question: str) -> None:
    assert one(question, WARD).doubts


@pytest.mark.parametrize("question", ["Total nights in Lisbon", 'Total nights for "Delta"', "Total nights where the floor is 17"])
def test_what_matches_nothing_is_said(question: str) -> None:
    (doubt,) = one(question).doubts
    assert "not among the known values of bookings" in doubt


LOANS = Source(
    "loans",
    400,
    (
        text("branch", "Altona", "Mitte"),
        Column("borrowed_on", "DATE", "date", distinct=200),
        Column("returned_on", "DATE", "date", nulls=30, distinct=200),
        Column("fine_eur", "DOUBLE", "number", nulls=20, distinct=30),
        number("pm25", 60),
        number("no2", 60),
    ),
)


@pytest.mark.parametrize(
    ("question", "column"),
    [
        ("How many loans were never returned?", "returned_on"),
        ("How many loans have not been returned yet?", "returned_on"),
        ("Number of loans without a fine by branch", "fine_eur"),
        ("How many loans weren't returned?", "returned_on"),
    ],
)
def test_what_never_happened_is_an_empty_cell(question: str, column: str) -> None:
    ask = one(question, LOANS)
    assert conditions(ask) == [(column, "missing")]
    assert not ask.doubts
    assert any(f'"{column}" IS NULL' in query.sql for query in queries(ask))


def test_a_cell_that_is_never_empty_is_no_condition() -> None:
    ask = one("How many loans were never borrowed?", LOANS)
    assert not ask.filters
    assert ask.doubts


@pytest.mark.parametrize(("question", "measure"), [("Monthly average of pm25 by branch", "pm25"), ("monthly mean no2", "no2")])
def test_a_name_with_a_digit_is_one_word(question: str, measure: str) -> None:
    ask = one(question, LOANS)
    assert (ask.shape, ask.functions, [m.name for m in ask.measures]) == ("trend", ("mean",), [measure])


def test_a_function_over_time_without_a_column_takes_what_there_is_and_says_so() -> None:
    ask = one("Monthly average by branch", LOANS)
    assert [m.name for m in ask.measures] == ["fine_eur", "pm25", "no2"]
    assert "no column is named" in ask.notes[0]


def test_a_mean_of_a_table_without_numbers_is_not_silently_a_count() -> None:
    words_only = Source("towns", 60, (text("town", "Bonn", "Köln"), text("temperature", "cold", "mild", "warm")))
    ask = one("Average temperature by town", words_only)
    assert ask.functions == ("count",)
    assert "temperature holds words, such as “cold”, so its mean cannot be computed" in ask.doubts[0]


WEATHER = Source("wetter", 60, (text("Ort", "Bonn", "Köln"), Column("Temperatur", "DOUBLE", "number", distinct=50)))


@pytest.mark.parametrize(
    ("question", "lacking"),
    [
        ("Average temperature and total precipitation by town", ["precipitation", "town"]),
        ("Average temperature per Ort", []),
        ("Average temperature in Bonn", []),
        ("Average temperature by month", []),
        ("Mean temperature per station", ["station"]),
    ],
)
def test_what_no_column_answers_to_is_said(question: str, lacking: list[str]) -> None:
    doubts = [doubt for ask in understand(question, [WEATHER]) for doubt in ask.doubts if "has no column for" in doubt]
    assert [word for word in ("precipitation", "temperature", "town", "station") if any(f"“{word}”" in doubt for doubt in doubts)] == lacking


def test_a_negation_without_a_value_is_said() -> None:
    assert "negation" in one("Which guests did not arrive in April?").doubts[0]


def test_revenue_is_computed_from_quantity_and_price() -> None:
    orders = Source("orders", 50, (text("item", "pen", "ink"), number("qty"), number("unit_price", kind="DOUBLE"), number("discount_pct", 3)))
    ask = one("Which item made the most revenue?", orders)
    assert (ask.shape, names(ask.measures), ask.functions) == ("top", ["qty × unit_price"], ("sum",))
    assert "discount_pct is not taken off" in ask.notes[0]
    assert 'SUM("qty" * "unit_price")' in queries(ask)[0].sql


def test_without_a_column_for_it_rows_are_counted_and_that_is_said() -> None:
    assert "rows are counted instead" in one("Revenue per month", CALLS).doubts[0]


def test_a_trend_keeps_its_group() -> None:
    ask = one("Total nights by hotel and month")
    assert (ask.shape, names(ask.groups), ask.period) == ("trend", ["Hotel"], "month")
    assert one("Show bookings per hour").functions == ("count",)


@pytest.mark.parametrize(
    ("question", "source", "labels", "measures", "functions", "is_ascending"),
    [
        ("Which hotel has the fewest nights?", BOOKINGS, ["Hotel"], ["Nights"], ("sum",), True),
        ("What is the most common hotel?", BOOKINGS, ["Hotel"], [], ("count",), False),
        ("Top 3 hotels by nights", BOOKINGS, ["Hotel"], ["Nights"], ("sum",), False),
        ("What was the coldest day?", CALLS, ["day"], ["temp_min_c"], ("min",), True),
        ("Who waited longest?", CALLS, ["agent_name"], ["wait_s"], ("value",), False),
        ("Who called most recently?", CALLS, ["agent_name"], ["started_at"], ("value",), False),
    ],
)
def test_rankings(question: str, source: Source, labels: list[str], measures: list[str], functions: tuple[str, ...], *, is_ascending: bool) -> None:
    ask = one(question, source)
    assert (ask.shape, names(ask.groups), names(ask.measures), ask.functions, ask.is_ascending) == ("top", labels, measures, functions, is_ascending)


def test_a_share_of_answers_names_the_answers() -> None:
    ask = one("What share of callers would recommend us?", CALLS)
    assert (ask.shape, names(ask.groups)) == ("share", ["would_recommend"])
    assert one("What percentage of calls ended with code 404?", CALLS).focus == ("404",)


def test_a_maximum_in_a_name_is_no_function() -> None:
    ask = one("What is the mean maximum temp?", CALLS)
    assert (ask.functions, names(ask.measures)) == (("mean",), ["temp_max_c"])


def test_different_things_are_counted_once() -> None:
    ask = one("How many hotels did Ann book?")
    assert (ask.functions, names(ask.measures), conditions(ask)) == (("distinct",), ["Hotel"], [("Guest", "in", "Ann")])


def test_rows_are_listed() -> None:
    ask = one("List the bookings of Ann over 100 euros in price")
    assert ask.shape == "rows"
    assert len(queries(ask)) == 2


def test_what_numbers_the_rows_is_no_measure() -> None:
    assert "nr" not in names(tuple(BOOKINGS.measures))


def test_yes_and_no_are_compared() -> None:
    ask = one("Compare the mean price of cancelled and other bookings")
    assert (names(ask.groups), ask.functions, ask.filters) == (["cancelled"], ("mean",), ())


@pytest.mark.parametrize(
    ("text", "start", "end"),
    [
        ("from 2021 to 2023", "2021-01-01", "2024-01-01"),
        ("between March 3rd, 2024 and 9 April 2024", "2024-03-03", "2024-04-10"),
        ("in the third quarter of 2023", "2023-07-01", "2023-10-01"),
        ("in the second half of 2023", "2023-07-01", "2024-01-01"),
        ("until 2024-12", "", "2025-01-01"),
        ("on 2024-02-29", "2024-02-29", "2024-03-01"),
        ("in January and February 2024", "2024-01-01", "2024-03-01"),
    ],
)
def test_spans_of_time(text: str, start: str, end: str) -> None:
    assert [(span.start, span.end) for span in spans(f"How many {text}?") if not span.month] == [(start, end)]


@pytest.mark.parametrize("text", ["on 2024-02-30", "2050 rows", "may it rain", "march on"])
def test_what_is_no_time(text: str) -> None:
    assert spans(text) == []


def test_columns_are_found_by_names_of_any_alphabet_and_what_was_read_otherwise_is_said() -> None:
    told = """\
verkauf (verkauf.csv): 9 rows

| column | type | missing | distinct | min | max | mean | values |
| --- | --- | --- | --- | --- | --- | --- | --- |
| Größe (cm) | DOUBLE | 1 | 8 | 1 | 9 | 5 | 1 (1), 2 (1), 3 (1), … |
| Umsatz € | DOUBLE | 1 | 8 | 12 | 1234.5 | 448.8 | 12.0 (1), 99.9 (1), … |
| v | BIGINT | 0 | 9 | 1 | 9 | 5 | 1 (1), 2 (1), … |
| Straße | VARCHAR | 0 | 2 | A | B | NULL | A (5), B (4) |

the 3 lines above the headings are left out
Umsatz €: read as numbers, 1.234,50 as 1234.5 and - as missing"""
    source = read_source("verkauf", told)
    assert source is not None
    above, amounts = source.notes
    total, size, letter = (one(question, source) for question in ("Total Umsatz by Straße", "Average Größe per Straße", "Sum of v"))
    assert ([c.name for c in total.measures], [c.name for c in total.groups], total.doubts) == (["Umsatz €"], ["Straße"], ())
    assert ([c.name for c in size.measures], [c.name for c in size.groups], size.doubts) == (["Größe (cm)"], ["Straße"], ())
    assert ([c.name for c in letter.measures], letter.doubts) == (["v"], ())
    assert (total.notes, size.notes, letter.notes) == ((above, amounts), (above,), (above,))


def test_one_long_word_is_read_in_time_that_grows_with_its_length_alone() -> None:
    began = time.process_time()
    assert conditions(one("How many calls of " + "ACGT" * 4_000 + " waited longer than 30?", CALLS)) == [("wait_s", ">", 30.0)]
    assert time.process_time() - began < 10, "it took minutes, in which the worker answered nobody"


SALES = Source(
    "orders",
    400,
    (
        number("order_id", 400),
        Column("order_date", "DATE", "date", distinct=120),
        text("region", "North", "South", "East"),
        text("product", "Lamp", "Sofa, red"),
        text("sales rep", "Ann", "Bob"),
        number("units", 9),
        Column("unit_price", "DOUBLE", "number", nulls=9, distinct=300),
        Column("gdp per capita (k USD)", "DOUBLE", "number", distinct=300),
        Column("returned", "BOOLEAN", "bool", distinct=2, values=("false", "true")),
        number("status", 4, "200", "404", "500", "503"),
        text("team", "A", "B"),
        number("year", 30, "2022", "2023"),
    ),
)


def measured(ask: Ask) -> tuple[Any, ...]:
    return ask.shape, ask.functions, names(ask.measures), names(ask.groups)


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Median unit price by product", ("group", ("median",), ["unit_price"], ["product"])),
        ("Total units and average unit price", ("value", ("mean", "sum"), ["units", "unit_price"], [])),
        ("Total revenue by region", ("group", ("sum",), ["units × unit_price"], ["region"])),
        ("Which sales rep has the highest average unit price?", ("top", ("mean",), ["unit_price"], ["sales rep"])),
        ("Mean gdp per capita in the North", ("value", ("mean",), ["gdp per capita (k USD)"], [])),
        ("Correlation between gdp per capita and units", ("correlation", (), ["units", "gdp per capita (k USD)"], [])),
        ("Which region has the highest return rate?", ("group", ("rate",), ["returned"], ["region"])),
        ("What is the maximum unit price and which order had it?", ("top", ("max",), ["unit_price"], ["order_id"])),
        ("Average units by weekday", ("group", ("mean",), ["units"], ["weekday"])),
        ("Total units by decade", ("group", ("sum",), ["units"], ["decade"])),
        ("On how many days were lamps sold?", ("value", ("distinct",), ["order_date"], [])),
        ("Are there duplicate rows?", ("duplicates", (), [], [])),
        ("Which products are sold in the North?", ("group", ("count",), [], ["product"])),
        ("Top 2 products by units in Q2 2024", ("top", ("sum",), ["units"], ["product"])),
        ("Difference between the mean units of team A and team B", ("group", ("mean",), ["units"], ["team"])),
        ("How many different teams are there?", ("value", ("distinct",), ["team"], [])),
        ("List all regions", ("group", ("count",), [], ["region"])),
        ("What is the range of the unit price?", ("value", ("min", "max"), ["unit_price"], [])),
        ("How much did the North sell on average in units?", ("value", ("mean",), ["units"], [])),
        ("What are the three most sold products?", ("top", ("sum",), ["units"], ["product"])),
        ("Which region has the most orders with a unit price over 9?", ("top", ("count",), [], ["region"])),
        ("What is the cheapest order?", ("top", ("value",), ["unit_price"], ["order_id"])),
        ("What is the most common region among returned orders?", ("top", ("count",), [], ["region"])),
    ],
)
def test_what_is_measured_and_grouped(question: str, expected: tuple[Any, ...]) -> None:
    ask = one(question, SALES)
    assert measured(ask) == expected
    assert not ask.doubts


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("How many orders in the North with more than 5 units?", [("region", "in", "North"), ("units", ">", 5.0)]),
        ("How many orders cost between 50 and 100?", [("unit_price", "between", 50.0, 100.0)]),
        ("How many orders with a unit price over 20?", [("unit_price", ">", 20.0)]),
        ("How many with status 404, 500 or 503?", [("status", "in", 404.0, 500.0, 503.0)]),
        ("What is the unit price of order 1005?", [("order_id", "=", 1005.0)]),
        ("Mean units of team B", [("team", "in", "B")]),
        ("How many orders of Sofa, red?", [("product", "in", "Sofa, red")]),
        ("How many orders in the North or East?", [("region", "in", "East", "North")]),
        ("How many orders are neither in the North nor in the East?", [("region", "not in", "East", "North")]),
        ("How many orders of at least 5 units?", [("units", ">=", 5.0)]),
        ("How many orders with more than 5 units were not returned?", [("returned", "false"), ("units", ">", 5.0)]),
        ("How many orders had more than two units?", [("units", ">", 2.0)]),
        ("How many orders above 7 units and with a unit price below 9?", [("units", ">", 7.0), ("unit_price", "<", 9.0)]),
    ],
)
def test_whose_number_it_is(question: str, expected: list[tuple[Any, ...]]) -> None:
    ask = one(question, SALES)
    assert conditions(ask) == expected
    assert not ask.groups, "either of two is one number"
    assert not ask.doubts


@pytest.mark.parametrize(
    ("question", "spans_"),
    [
        ("Total units in Q1 2024 versus Q2 2024", [("2024-01-01", "2024-04-01"), ("2024-04-01", "2024-07-01")]),
        ("Mean units after 2022 and before 2022", [(2023.0,), (2022.0,)]),
        ("Total units in March or April", [(3.0,), (4.0,)]),
        ("Total units in January, February and March 2024", [("2024-01-01", "2024-04-01")]),
        ("Total units in January, March and May 2024", [("2024-01-01", "2024-02-01"), ("2024-03-01", "2024-04-01"), ("2024-05-01", "2024-06-01")]),
    ],
)
def test_times_that_exclude_each_other_are_asked_for_one_by_one(question: str, spans_: list[tuple[Any, ...]]) -> None:
    assert [ask.filters[-1][2] for ask in understand(question, [SALES])] == spans_


def test_times_that_overlap_are_one_condition() -> None:
    assert len(one("Total units after March 2023 and before May 2024", SALES).filters) == 2


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ("What is the average discount per region?", "no column for “discount”"),
        ("Total payroll", "no column for “payroll”"),
        ("Which region has the highest profit margin?", "no column for “profit margin”"),
        ("Average units by city", "no column for “city”"),
        ("Who is the oldest?", "nothing in orders says “oldest”"),
        ("How many orders with fewer than half a dozen units?", "“fewer than half a dozen” was not understood"),
        ("What is the p95 of the unit price?", "“p95”"),
        ("What is the ratio of returned orders?", "“ratio”"),
        ("How many orders had units below 3 or above 7?", "“or” only between values of one column"),
        ("Which regions have an average unit price above 100?", "not groups of them"),
        ("Total units in the last month", "“last month”"),
        ("Average units of the 10 latest orders", "“the 10 latest orders”"),
        ("Which region weighed the most?", "“weighed the most”"),
        ("Median units of women", "says who “women” are"),
        ("How many different colours are there?", "different ones"),
    ],
)
def test_what_cannot_be_answered_gets_no_number(question: str, said: str) -> None:
    ask = one(question, SALES)
    assert ask.shape == "none"
    assert not queries(ask)
    assert said in ask.doubts[0]


@pytest.mark.parametrize(
    ("question", "whether", "kept"),
    [
        ("What percentage of orders in the North have more than 5 units?", [("units", ">")], [("region", "in")]),
        ("What percentage of returned orders are from the North?", [("region", "in")], [("returned", "true")]),
        ("What share of orders is above 100 in unit price?", [("unit_price", ">")], []),
        ("What percentage of orders in the North ended with status 404?", [("status", "=")], [("region", "in")]),
    ],
)
def test_a_share_is_of_what_stands_before_the_verb(question: str, whether: list[tuple[str, str]], kept: list[tuple[str, str]]) -> None:
    ask = one(question, SALES)
    assert ([(c.name, operator) for c, operator, _ in ask.whether], [(c.name, operator) for c, operator, _ in ask.filters]) == (whether, kept)
    assert "AVG(CAST(" in queries(ask)[0].sql


@pytest.mark.parametrize(
    ("question", "said"),
    [
        ("Total units of sales to gold customers", "“gold” stands in buyers, in the column tier"),
        ("How many orders were made by gold buyers?", "“gold” stands in buyers"),
        ("Total units per tier", "tier is a column of buyers"),
    ],
)
def test_what_another_table_holds_is_not_passed_over(question: str, said: str) -> None:
    buyers = Source("buyers", 40, (text("buyer", "Ann", "Bob"), text("tier", "gold", "silver")))
    (ask,) = understand(question, [SALES, buyers])
    assert ask.shape == "none"
    assert said in ask.doubts[0]


@pytest.mark.parametrize(
    ("question", "said"),
    [("Total units pro region", "“region” is a column"), ("Average shipping price", "“shipping”"), ("What is the weather in it?", "was not understood")],
)
def test_what_played_no_part_is_said(question: str, said: str) -> None:
    assert said in one(question, SALES).doubts[0]


def test_values_with_commas_and_brackets_are_read_whole_and_what_was_cut_is_none() -> None:
    told = """\
| column | type | missing | distinct | values |
| --- | --- | --- | --- | --- |
| item | VARCHAR | 0 | 4 | Sofa, red (87), Desk (old) (3), Table…, (2), a very long na… |"""
    source = read_source("t", told)
    assert source is not None
    assert source.columns[0].values == ("Sofa, red", "Desk (old)", "Table…,")


RAIN = Source("rain", 5, (text("city", "Oslo", "Bergen", "Narvik"), number("rain_mm", 5)))


@pytest.mark.parametrize(
    "question", ["Which city had the most rain in total, and how much?", "Which city has the highest total rain?", "Which city saw the most rain?"]
)
def test_most_of_what_a_column_and_the_table_are_called_is_of_the_column(question: str) -> None:
    ask = one(question, RAIN)
    assert (ask.shape, ask.functions, names(ask.measures), names(ask.groups), ask.doubts) == ("top", ("sum",), ["rain_mm"], ["city"], ())


def test_rows_are_counted_for_want_of_a_column_and_that_is_said() -> None:
    ask = one("Which hotel had the most complaints?")
    assert (ask.functions, names(ask.groups)) == (("count",), ["Hotel"])
    assert ask.doubts == ("nothing in bookings is called “complaints”, so rows are counted instead",)
    assert one("Which hotel had the most bookings?").doubts == ()


PIECES = Source("sales", 40, (text("product", "chair", "desk"), number("quantity"), number("price"), text("country", "DE", "FR"), number("order_id", 40)))


@pytest.mark.parametrize(
    ("question", "function", "measures"),
    [
        ("How many chairs were sold?", "sum", ["quantity"]),
        ("How many units of the chair did we sell in DE?", "sum", ["quantity"]),
        ("How many items were shipped to FR?", "sum", ["quantity"]),
        ("How many orders were shipped to FR?", "count", []),
        ("How many chairs are in the table?", "count", []),
    ],
)
def test_what_is_sold_is_counted_by_the_piece(question: str, function: str, measures: list[str]) -> None:
    ask = one(question, PIECES)
    assert (ask.functions, [c.name for c in ask.measures]) == ((function,), measures)
    assert ask.notes == (("quantity is added up",) if measures else ())


SALES_OF_MONTHS = Source("months", 3, (text("month", "Jan", "Feb", "Mar"), number("amount", 3)))


def test_a_row_of_sums_is_spoken_of_unless_it_is_asked_for() -> None:
    months = Source("months", 4, (text("month", "Jan", "Feb", "Mar", "Total:"), number("amount", 4)))
    said = "in month stands “Total:”, which looks like the sum of other rows and is taken for one of them"
    assert said in one("What is the mean amount?", months).doubts
    assert said in one("Which month has the highest amount?", months).doubts
    assert one("What is the mean amount?", SALES_OF_MONTHS).doubts == ()


def test_rows_without_a_group_are_spoken_of() -> None:
    staff = Source("staff", 60, (replace(text("dept", "IT", "HR"), nulls=2), number("salary", 50)))
    asked = one("How many people are in each dept?", staff)
    (query,) = queries(asked)
    assert "Missing values are left out: dept 2." in write_summary([asked], [(asked, query, Table(("dept", "n"), (("HR", 1), ("IT", 2))))])
    of_it = one("How many people are in dept IT?", staff)
    assert "Missing" not in write_summary([of_it], [(of_it, queries(of_it)[0], Table(("n",), ((2,),)))])
