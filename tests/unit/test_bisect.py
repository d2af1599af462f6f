"""The search behind `crewlog bisect`: it finds the one place where candidates turn bad, in few tries, and claims no more than it tried."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, log2

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crewlog.orchestrator.bisect import Found, Verdict, conclude, confirmed, next_probe, rests_on


def search(count: int, verdict_of: Callable[[int], Verdict]) -> tuple[Found, dict[int, Verdict]]:
    verdicts: dict[int, Verdict] = {}
    while (n := next_probe(count, verdicts)) is not None:
        assert n not in verdicts
        verdicts[n] = verdict_of(n)
    return conclude(count, verdicts), verdicts


@given(data=st.data(), count=st.integers(2, 200))
def test_the_first_bad_one_is_found_in_few_tries(data: st.DataObject, count: int) -> None:
    first_bad = data.draw(st.integers(1, count - 1))
    found, verdicts = search(count, lambda n: "bad" if n >= first_bad else "good")
    assert (found.outcome, found.last_good, found.first_bad) == ("first bad", first_bad - 1, first_bad)
    assert len(verdicts) <= 2 + ceil(log2(count))


@given(data=st.data(), count=st.integers(3, 60))
def test_what_cannot_be_told_leaves_suspects_and_the_culprit_is_one_of_them(data: st.DataObject, count: int) -> None:
    first_bad = data.draw(st.integers(1, count - 1))
    skipped = data.draw(st.sets(st.integers(1, count - 2)))
    found, verdicts = search(count, lambda n: "skip" if n in skipped else "bad" if n >= first_bad else "good")
    if found.outcome == "first bad":
        assert found.first_bad == first_bad
    else:
        assert found.outcome == "among several"
        assert first_bad in found.suspects
        assert all(n in skipped for n in found.suspects[:-1])
    assert all(verdicts[n] == "skip" for n in skipped & verdicts.keys())


@pytest.mark.parametrize(
    ("verdicts", "outcome", "tries"),
    [("bb", "all bad", 1), ("ggg", "none bad", 2), ("sb", "unknown", 1), ("gs", "unknown", 2), ("gb", "first bad", 2), ("gsb", "among several", 3)],
)
def test_ends(verdicts: str, outcome: str, tries: int) -> None:
    names: dict[str, Verdict] = {"g": "good", "b": "bad", "s": "skip"}
    found, tried = search(len(verdicts), lambda n: names[verdicts[n]])
    assert (found.outcome, len(tried)) == (outcome, tries)


@pytest.mark.parametrize(("verdicts", "asked"), [("gb", (0, 1)), ("gggb", (2, 3)), ("gsb", (0, 2)), ("bb", (0,)), ("gg", (1,)), ("sb", ())])
def test_what_was_found_stands_while_the_check_says_the_same_again(verdicts: str, asked: tuple[int, ...]) -> None:
    names: dict[str, Verdict] = {"g": "good", "b": "bad", "s": "skip"}
    found, tried = search(len(verdicts), lambda n: names[verdicts[n]])
    assert rests_on(found) == asked
    assert confirmed(found, tried, {n: tried[n] for n in asked}) == found
    for n in asked:
        assert confirmed(found, tried, {n: tried[n] for n in asked} | {n: "skip"}) == Found("unsteady check", suspects=(n,))
