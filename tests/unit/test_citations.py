from __future__ import annotations

import pytest

from crewlog.agents.citations import marker_problems, markers, quote_problem, unknown_references, used_citations
from crewlog.schemas.values import Citation

TEXT = "# Prices\n\nThe basic plan costs\n  12 euros   per month.\n\nSeats: five.\nSeats: five."


@pytest.mark.parametrize(
    ("line", "quote"),
    [
        (3, "The basic plan costs"),
        (3, "plan costs 12 euros per month."),
        (3, "The basic plan costs\n12 euros"),
        (4, "12 euros per month."),
        (6, "Seats: five."),
        (7, "Seats: five."),
        (6, "five. Seats: five."),
    ],
)
def test_a_quote_may_begin_anywhere_in_its_line_and_run_on(line: int, quote: str) -> None:
    assert quote_problem(TEXT, Citation("prices.md", line, quote)) is None


def test_a_quote_at_another_line_is_told_where_it_stands() -> None:
    assert quote_problem(TEXT, Citation("prices.md", 1, "12 euros per month.")) == "the quote stands at line 4 of prices.md, not at line 1"
    assert quote_problem(TEXT, Citation("prices.md", 2, "The basic plan")) == "the quote stands at line 3 of prices.md, not at line 2"


def test_a_changed_quote_is_told_what_stands_there() -> None:
    problem = quote_problem(TEXT, Citation("prices.md", 4, "15 euros per month."))
    assert problem == "the quote does not stand in prices.md; its line 4 reads: 12 euros per month."
    assert "(empty)" in (quote_problem(TEXT, Citation("prices.md", 2, "15 euros")) or "")


def test_lines_that_do_not_exist_and_empty_quotes() -> None:
    assert quote_problem(TEXT, Citation("prices.md", 8, "five")) == "prices.md has lines 1 to 7, there is no line 8"
    assert quote_problem(TEXT, Citation("prices.md", 1, " \n ")) == "the quote is empty"


def test_markers_are_numbers_in_brackets_outside_code_and_links() -> None:
    assert markers("a [2], b [1][3], c [1, 4]; `x[5]` ```\ny[6]\n``` [7](https://example.org) [2024] [x]") == [2, 1, 3, 4]


def test_markers_must_fit_the_citations() -> None:
    assert marker_problems("one [1], two [2]", 2) == []
    assert marker_problems("no marker", 0) == []
    (unknown, unused) = marker_problems("one [3] [0]", 2)
    assert unknown.startswith("the answer uses [0], [3], but there are 2 citations")
    assert unused.startswith("the answer never uses [1], [2]")


def test_used_citations_are_named_quoted_or_numbered() -> None:
    a, b, c, d = (Citation(f"{name}.md", 12, f"quote of {name}") for name in "abcd")
    assert used_citations("see [a.md:12]", [a, b]) == (a,)
    assert used_citations("see a.md, line 12", [a, b]) == (a,)
    assert used_citations("see a.md:123 or aa.md:12", [a, b]) == ()
    assert used_citations("as they say: “quote\nof b”", [a, b]) == (b,)
    assert used_citations("first [1] and third [3]", [a, b, c, d]) == (a, c)
    assert used_citations("see [a.md:12] and [a.md:12]", [a, a]) == (a,)


def test_references_nobody_cited_are_found() -> None:
    known = [Citation("plays/03.md", 7, "x"), Citation("notes", 1, "y")]
    assert unknown_references("[plays/03.md:7] at [12:30], `[a.md:1]`, [see: 5]", known) == []
    assert unknown_references("[plays/03.md:8] [other.md:1] [notes:2]", known) == ["plays/03.md:8", "other.md:1", "notes:2"]
