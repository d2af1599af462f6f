"""Whatever is cut out of a document is found where it was cut out."""

from __future__ import annotations

from hypothesis import assume, given
from hypothesis import strategies as st

from crewlog.agents.citations import normalised, quote_problem
from crewlog.agents.mail import address_problem
from crewlog.agents.url_guard import is_public
from crewlog.schemas.values import Citation

LINES = st.lists(st.text(alphabet="ab .\t", max_size=12), min_size=1, max_size=12)


@given(LINES, st.data())
def test_a_quote_is_accepted_at_the_line_it_was_cut_from(lines: list[str], data: st.DataObject) -> None:
    text = "\n".join(lines)
    begin = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(begin, len(text)))
    quote = text[begin:end]
    assume(quote.strip())
    line = text[: begin + len(quote) - len(quote.lstrip())].count("\n") + 1
    assert quote_problem(text, Citation("a", line, quote)) is None


@given(LINES, st.integers(-2, 15), st.text(alphabet="ab .", max_size=8))
def test_an_accepted_quote_begins_in_its_line(lines: list[str], line: int, quote: str) -> None:
    if quote_problem("\n".join(lines), Citation("a", line, quote)) is None:
        rest = normalised("\n".join(lines[line - 1 :]))
        assert normalised(quote) in rest
        assert rest.index(normalised(quote)) < len(normalised(lines[line - 1]))


@given(LINES, st.integers(1, 12), st.text(alphabet="ab .", min_size=1, max_size=8))
def test_the_line_a_problem_names_is_the_right_one(lines: list[str], line: int, quote: str) -> None:
    problem = quote_problem("\n".join(lines), Citation("a", line, quote)) or ""
    if problem.startswith("the quote stands at line "):
        named = int(problem.split()[5])
        assert quote_problem("\n".join(lines), Citation("a", named, quote)) is None


@given(st.text(max_size=40))
def test_an_address_never_holds_what_could_end_a_header(text: str) -> None:
    if address_problem(text) is None:
        assert text.isascii()
        assert text.isprintable()
        assert not set(text) & set(' ,;:<>()[]\\"')


@given(st.ip_addresses(v=4))
def test_an_address_in_another_coat_is_the_same_address(address: object) -> None:
    for coat in ("::ffff:{}", "64:ff9b::{}"):
        assert is_public(coat.format(address)) == is_public(str(address))
