"""Loops and long conversations, over many random ones: nothing is lost that must stay, and nothing goes on for ever."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from support.turns import SETUP, Texts, Used, state_behind, turn, turns

from crewlog.agents.compaction import Compact, _tokens_max, can_shrink, make_room
from crewlog.agents.conversation import build_request
from crewlog.agents.setup import REPEATS_MAX
from crewlog.agents.task_state import TaskState, evolve
from crewlog.agents.tokens import estimate_request
from crewlog.agents.trajectory import PERIOD_MAX, find_cycle
from crewlog.schemas.blocks import ModelRequest, ToolResult, ToolUse
from crewlog.schemas.task_events import ContextCompacted, Link
from crewlog.schemas.values import Failure

words = st.sampled_from(["", "ok", "rows " * 30, "x" * 5_000, "数" * 900, "7,-" * 900, '{"a":[1,2,3]}' * 200])
a_turn = st.tuples(words, st.lists(st.tuples(st.just("look"), st.sampled_from(["{}", '{"q":"' + "y" * 300 + '"}']), words), max_size=3))
STEPS_MAX = 40


def compacted(state: TaskState, step: Compact) -> TaskState:
    return evolve(state, ContextCompacted(1, step.reason, "anthropic", "claude", step.tokens_before, step.tokens_after, step.tokens_max, step.replaced))


def arguments(request: ModelRequest) -> list[tuple[str, str, str]]:
    return [(b.call_id, b.name, b.arguments) for m in request.messages for b in m.content if isinstance(b, ToolUse)]


def assert_paired(request: ModelRequest) -> None:
    """Every message that calls tools is followed by exactly their results, in order; nobody speaks twice in a row."""
    assert [m.role for m in request.messages] == ["user", "assistant"] * (len(request.messages) // 2) + ["user"]
    for said, told in zip(request.messages[1::2], request.messages[2::2], strict=True):
        assert [b.call_id for b in said.content if isinstance(b, ToolUse)] == [b.call_id for b in told.content if isinstance(b, ToolResult)]


@given(st.lists(a_turn, max_size=25), st.integers(500, 30_000), st.booleans())
@settings(max_examples=150)
def test_a_conversation_fits_or_says_that_it_cannot_and_loses_no_call(rounds: list[tuple[str, list[Used]]], window: int, refused: bool) -> None:
    texts = Texts()
    turns_done = [turn(*used, number=n, text=text, texts=texts) for n, (text, used) in enumerate(rounds, 1)]
    whole = state = replace(state_behind(turns_done), chain=(Link("wire", "anthropic", "claude", window=window),))
    before = build_request(whole, SETUP, texts.read)
    step = make_room(state, SETUP, texts.read, is_too_long=refused)
    steps = 0
    while isinstance(step, Compact):
        assert step.replaced
        assert step.tokens_after < step.tokens_before
        assert can_shrink(state, SETUP)
        state, steps = compacted(state, step), steps + 1
        assert steps < STEPS_MAX
        refused = False  # the provider was told less
        step = make_room(state, SETUP, texts.read)

    after = build_request(state, SETUP, texts.read)
    kept = SETUP.room.turns_kept if SETUP.room else 0
    assert_paired(after)
    assert arguments(after) == arguments(before)
    assert after.messages[0] == before.messages[0]
    assert state.exchanges[-kept:] == whole.exchanges[-kept:]
    assert make_room(state, SETUP, texts.read, is_too_long=refused) == step, "deciding again changes nothing"
    needed = estimate_request(after, provider="anthropic")
    if isinstance(step, Failure):
        assert refused or needed > window
    else:
        assert step in (0, needed)
        assert needed <= window
    assert needed <= _tokens_max(state), "the bound below which nobody looks is one"


moves = st.tuples(st.sampled_from(["look", "put"]), st.sampled_from(["{}", '{"a":1}']), st.sampled_from(["yes", "no"]))


@given(st.lists(moves, max_size=30))
def test_a_task_whose_results_all_differ_never_goes_round_in_circles(listed: list[Used]) -> None:
    grown = turns(*[(tool, said, f"{n}: {result}") for n, (tool, said, result) in enumerate(listed)])
    assert not any(find_cycle(grown[:n], REPEATS_MAX) for n in range(len(grown) + 1))


@given(st.lists(moves, max_size=12), st.lists(moves, min_size=1, max_size=PERIOD_MAX))
def test_every_cycle_is_found_by_the_time_it_was_gone_through_that_often(before: list[Used], cycle: list[Used]) -> None:
    rounds = turns(*before, *cycle * REPEATS_MAX)
    found = find_cycle(rounds, REPEATS_MAX)
    assert found
    assert len(found) <= len(cycle)
