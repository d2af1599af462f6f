"""Tables in terminals of any width: nothing runs over the edge, nothing that is copied is broken, and pipes get whole rows."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from crewlog.orchestrator.cli_table import shown_width, table_lines

RUNS = [
    ["RUN", "STATUS", "TASKS", "COST", "SUBMITTED", "TOOK", "GOAL"],
    ["54349ce7", "completed", "3/3", "$0.0000", "2026-11-26 12:42", "1.5 s", "Average temperature by place and total rain by place"],
    ["64431da7", "failed", "12/13", "$10.2500", "2026-11-26 12:42", "1m 40s", "Mean"],
]
RIGHT = {"TASKS", "COST", "TOOK"}


def runs(width: int | None) -> list[str]:
    return list(table_lines(RUNS, right=RIGHT, cut={"GOAL"}, width=width))


def test_a_pipe_gets_each_row_whole_on_one_line() -> None:
    assert runs(None) == [
        "RUN       STATUS     TASKS      COST  SUBMITTED           TOOK  GOAL",
        "54349ce7  completed    3/3   $0.0000  2026-11-26 12:42   1.5 s  Average temperature by place and total rain by place",
        "64431da7  failed     12/13  $10.2500  2026-11-26 12:42  1m 40s  Mean",
    ]
    assert runs(200) == runs(None)


def test_with_less_room_the_column_that_may_be_cut_gives_way() -> None:
    assert runs(80) == [
        "RUN       STATUS     TASKS      COST  SUBMITTED           TOOK  GOAL",
        "54349ce7  completed    3/3   $0.0000  2026-11-26 12:42   1.5 s  Average tempera…",
        "64431da7  failed     12/13  $10.2500  2026-11-26 12:42  1m 40s  Mean",
    ]


def test_in_a_narrow_terminal_the_columns_go_on_below_and_nothing_is_cut() -> None:
    assert runs(40) == [
        "RUN       STATUS     TASKS      COST",
        "    SUBMITTED           TOOK",
        "    GOAL",
        "54349ce7  completed    3/3   $0.0000",
        "    2026-11-26 12:42   1.5 s",
        "    Average temperature by place and",
        "    total rain by place",
        "64431da7  failed     12/13  $10.2500",
        "    2026-11-26 12:42  1m 40s",
        "    Mean",
    ]


def test_sentences_wrap_in_place_while_there_is_room_and_paths_stay_whole() -> None:
    rows = [["ID", "NOTE", "FILE"], ["a", "what a person said about it, at some length", "/srv/reports/2026/november.pdf"], ["b", "", ""]]
    assert list(table_lines(rows, width=64)) == [
        "ID  NOTE                          FILE",
        "a   what a person said about it,  /srv/reports/2026/november.pdf",
        "    at some length",
        "b",
    ]
    assert "    /srv/reports/2026/november.pdf" in list(table_lines(rows, width=20))


def test_columns_of_sentences_share_the_room() -> None:
    rows = [["X", "FOUND", "WHAT HELPS"], ["mail", "no mail server is configured in this environment", "set the host and the port to let the crew send mail"]]
    assert list(table_lines(rows, width=70)) == [
        "X     FOUND                            WHAT HELPS",
        "mail  no mail server is configured in  set the host and the port to",
        "      this environment                 let the crew send mail",
    ]


def test_wide_and_combining_characters_keep_the_columns_aligned() -> None:
    assert [shown_width(text) for text in ("Köln", "Ko\u0308ln", "東京", "✔ ok")] == [4, 4, 4, 4]
    assert list(table_lines([["A", "B"], ["東京", "1"], ["Ko\u0308ln", "2"]])) == ["A     B", "東京  1", "Ko\u0308ln  2"]


WORDS = st.lists(st.text("ab東ö", min_size=1, max_size=9), max_size=12).map(" ".join)


@given(rows=st.lists(st.tuples(WORDS, WORDS, WORDS), max_size=6), width=st.integers(12, 90))
def test_no_line_is_longer_than_the_terminal_and_no_word_is_lost(rows: list[tuple[str, str, str]], width: int) -> None:
    lines = list(table_lines([("X", "Y", "Z"), *rows], right={"Y"}, width=width))
    whole = [part for row in rows for cell in row for part in ([cell] if cell.count(" ") < 2 else cell.split())]
    longest = max(map(shown_width, whole), default=0)
    assert all(shown_width(line) <= max(width, longest + 4) for line in lines)
    assert sorted(re.split(r"\s+", " ".join(lines).strip())) == sorted(["X", "Y", "Z", *(word for row in rows for cell in row for word in cell.split())])
