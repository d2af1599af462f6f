"""Going round in circles: what is a repetition, and what only looks like one."""

from __future__ import annotations

import pytest
from support.turns import Used, turn, turns

from crewlog.agents.trajectory import ARGUMENTS_CHARS_MAX, describe_cycle, find_cycle

A: Used = ("look", '{"text":"a","limit":3}', "42")
A_SPELT_OTHERWISE: Used = ("look", '{ "limit": 3, "text": "a" }', "42")
B: Used = ("put", '{"text":"b"}', "done")
C: Used = ("look", '{"text":"c"}', "nothing")


def found(*rounds: Used) -> str:
    return describe_cycle(find_cycle(turns(*rounds), 3))


def test_the_same_call_with_the_same_result_three_times_is_a_loop() -> None:
    assert not found(A, A)
    assert found(B, A, A, A) == 'look {"text":"a","limit":3}'


def test_arguments_are_compared_as_values() -> None:
    assert found(A, A_SPELT_OTHERWISE, A)
    broken: Used = ("look", '{"text":', "not valid")
    assert found(broken, broken, broken)


@pytest.mark.parametrize("cycle", [(A, B), (A, B, C), (A, A, B), (A, B, C, B, A, C, B, A)])
def test_cycles_of_several_turns_are_found_and_named(cycle: tuple[Used, ...]) -> None:
    assert not find_cycle(turns(*cycle, *cycle, *cycle[:-1]), 3)
    assert len(find_cycle(turns(C, *cycle, *cycle, *cycle), 3)) == len(cycle)


def test_the_shortest_cycle_is_named() -> None:
    assert found(A, B, A, B, A, B, A, B, A, B, A, B) == 'look {"text":"a","limit":3} → put {"text":"b"}'


def test_turns_of_several_calls_are_compared_as_a_whole() -> None:
    assert find_cycle(turns([A, B], [A, B], [A, B]), 3)
    assert not find_cycle(turns([A, B], [A, C], [A, B]), 3)
    assert not find_cycle(turns([A, B], [A], [A, B]), 3)


@pytest.mark.parametrize(
    "rounds",
    [
        [("poll", "{}", f"{n} of 9 done") for n in range(9)],
        [("look", f'{{"page":{n}}}', "nothing here") for n in range(9)],
        [("look" if n % 2 else "put", f'{{"page":{n // 2}}}', "ok") for n in range(18)],
    ],
    ids=["a poll that gets on", "the same answer to other questions", "two tools in turn over growing pages"],
)
def test_progress_is_no_loop(rounds: list[Used]) -> None:
    assert not any(find_cycle(turns(*rounds[:n]), 3) for n in range(len(rounds) + 1))


def test_answers_in_plain_text_are_no_cycle() -> None:
    assert not find_cycle([turn(text="I think so.")] * 5, 3)


def test_large_arguments_are_compared_by_their_bytes_and_named_by_their_size() -> None:
    large: Used = ("put", '{"text":"' + "x" * 9_000 + '"}', "done")
    assert found(large, large, large) == "put (9011 bytes)"
    assert not found(large, ("put", '{"text":"' + "y" * 9_000 + '"}', "done"), large)
    wordy: Used = ("put", '{"text":"' + "x" * 900 + '"}', "done")
    assert len(found(wordy, wordy, wordy)) == len("put ") + ARGUMENTS_CHARS_MAX
