"""Cutting documents into passages."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from crewlog.projections.passages import PASSAGE_CHARS_MAX, PASSAGE_CHARS_MIN, cut

LONG = "word " * (PASSAGE_CHARS_MIN // 5 + 1)


def test_headings_and_lines() -> None:
    text = f"# Guide\n\nIntro.\n\n## Retention #\n\n{LONG}\n\nSecond paragraph.\n\n## Access\nWho may read.\n\n# Other\nEnd."
    assert [(p.line, p.heading, p.text.split("\n")[0]) for p in cut(text)] == [
        (1, "Guide", "# Guide"),
        (5, "Guide › Retention", "## Retention #"),
        (9, "Guide › Retention", "Second paragraph."),
        (11, "Guide › Access", "## Access"),
        (14, "Other", "# Other"),
    ]


def test_underlined_titles_and_fences() -> None:
    text = "Title\n=====\nBody.\n\nPart\n----\n```sh\n# no heading\n```\n\nlast line\n---\n"
    assert [(p.line, p.heading) for p in cut(text)] == [(1, "Title"), (5, "Title › Part"), (11, "Title › last line")]


def test_short_paragraphs_are_joined_and_long_ones_cut() -> None:
    (joined,) = cut("one\n\ntwo\n\nthree")
    assert joined.text == "one\n\ntwo\n\nthree"
    lines = "\n".join([LONG] * 10)
    passages = list(cut(lines))
    assert len(passages) > 1
    assert "\n".join(p.text for p in passages) == lines
    assert [p.line for p in passages] == sorted({p.line for p in passages})


def test_one_very_long_line_keeps_its_number() -> None:
    passages = list(cut("x\n\n" + "word " * 2000))
    assert {p.line for p in passages[1:]} == {3}
    assert all(len(p.text) <= PASSAGE_CHARS_MAX for p in passages)


def test_nothing_gives_nothing() -> None:
    assert list(cut("")) == list(cut("\n \n\t\n")) == []


@given(st.text(alphabet=st.sampled_from("ab #=-`~\n\n\t é"), max_size=400))
def test_passages_are_verbatim_and_hold_every_word(text: str) -> None:
    lines = text.split("\n")
    passages = list(cut(text))
    for passage in passages:
        at = passage.line - 1
        assert "\n".join(lines[at : at + passage.text.count("\n") + 1]) == passage.text
        assert lines[at].strip()
    assert " ".join(" ".join(p.text.split()) for p in passages).split() == text.split()
    assert [p.line for p in passages] == sorted(p.line for p in passages)
