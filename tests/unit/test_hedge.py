"""A second call beside a slow one in the turn machine, given events / then next step: who may be asked, and what each ending leaves open."""

from __future__ import annotations

from uuid import UUID

import msgspec
import pytest
from msgspec.structs import replace

from crewlog.agents.chain import HEDGE_LOST
from crewlog.agents.setup import CORRECTION_PROMPT, OUTPUT_PROMPT, Setup
from crewlog.agents.task_state import Count, TaskState, evolve, initial_state, open_model_calls
from crewlog.agents.turn import AskModel, Fail, Finish, GiveUpCall, hedge_of, next_step
from crewlog.schemas.ids import Hash
from crewlog.schemas.payload import pack
from crewlog.schemas.task import parse_task
from crewlog.schemas.task_events import (
    AttemptFailed,
    BudgetWarned,
    Link,
    ModelCallFailed,
    ModelCallFinished,
    ModelCallSkipped,
    ModelCallStarted,
    SkipReason,
    TaskEvent,
    TaskOpened,
    TaskStarted,
)
from crewlog.schemas.usage import Price, Usage
from crewlog.schemas.values import Failure, Outcome

A, B, C = Link("w", "p", "a", window=10), Link("w", "q", "b", window=20), Link("w", "q", "c", window=20)
OFFLINE = Link("offline", "offline", "rules", simulated=True)
SETUP = Setup("data", "1", "system", (), 100, "", output_prompt=OUTPUT_PROMPT, correction_prompt=CORRECTION_PROMPT)
TASK = parse_task({"task_id": str(UUID(int=1)), "type": "data", "objective": "count", "output_schema": {"type": "object", "required": ["n"]}})
HEDGE = AskModel("m2-2", 2, 1, purpose="output", is_hedge=True)


def began(*chain: Link, worker: str = "w1", after_s: float | None = 1.5, **more: bool) -> TaskStarted:
    first = chain[0]
    return TaskStarted(worker, 1, "1", first.model, first.provider, False, pack("{}")[0], pack("hello")[0], "", chain, hedge_after_s=after_s, **more)


def asked(number: int = 1, link: Link = A, place: int = 0, *, hedge: bool = False, estimated: int = 0) -> ModelCallStarted:
    call = ModelCallStarted(f"m2-{number}", 2, link.provider, link.model, Hash("0" * 64), 1, wire=link.wire, reserved_micro_usd=7, purpose="output", link=place)
    return replace(call, hedge=hedge, estimated_tokens=estimated)


def failed(code: str, number: int = 1, link: Link = A, place: int = 0) -> ModelCallFailed:
    return ModelCallFailed(f"m2-{number}", 2, link.provider, link.model, Failure(code, code, retryable=True), 1, Price(3, "test"), link.wire, place)


def answered(number: int = 1, link: Link = A, *, stop: str = "end_turn") -> ModelCallFinished:
    answer = ModelCallFinished(f"m2-{number}", 2, "end_turn", pack('{"n": 1}')[0], (), Usage(10, 5), Price(5, "test"), link.provider, link.model, False, 1)
    return replace(answer, wire=link.wire, purpose="output", stop=stop)  # type: ignore[arg-type]


def skipped(reason: SkipReason, number: int = 2, link: Link = B, place: int = 1) -> ModelCallSkipped:
    return ModelCallSkipped(f"m2-{number}", 2, link.wire, link.provider, link.model, reason, place, hedge=True)


def given(start: TaskStarted, *events: TaskEvent) -> TaskState:
    """A task whose agent has said in plain text that it is done, and is asked for its result as JSON."""
    state, first = initial_state(), start.chain[0]
    plain = ModelCallFinished("m1-1", 1, "end_turn", pack("42")[0], (), Usage(), Price(0, "test"), first.provider, first.model, False, 1, wire=first.wire)
    turn = ModelCallStarted("m1-1", 1, first.provider, first.model, Hash("0" * 64), 1, wire=first.wire)
    for event in (TaskOpened("data", "a", 0, msgspec.Raw(msgspec.json.encode(TASK))), start, turn, plain, *events):
        state = evolve(state, event)
    return state


TWO = (asked(), asked(2, B, 1, hedge=True))


def test_the_next_model_of_the_chain_is_asked_beside_a_slow_one() -> None:
    assert hedge_of(given(began(A, B), asked())) == HEDGE
    assert hedge_of(given(began(A, B), asked(), BudgetWarned("run/1", "m2-1", 1))) == HEDGE
    after_failure = given(began(A, B, C), asked(), failed("model_malformed"), asked(2, B, 1))
    assert hedge_of(after_failure) == AskModel("m2-3", 2, 2, purpose="output", is_hedge=True)


@pytest.mark.parametrize(
    "state",
    [
        given(began(A, B)),
        given(began(A, B, after_s=None), asked()),
        given(began(A, B), replace(asked(), purpose="turn")),
        given(began(A), asked()),
        given(began(A, OFFLINE), asked()),
        given(began(A, B), failed("model_malformed", 1, B, 1), asked(2)),
        given(began(A, B), *TWO),
        given(began(A, B, C), *TWO, failed("model_timeout")),
        given(began(A, B, C), *TWO, failed("model_timeout", 2, B, 1)),
        given(began(A, B, C), asked(), skipped("over_budget")),
        given(began(A, B), asked(), began(A, B, worker="w2")),
        given(began(A, replace(B, window=5)), asked(), failed("model_context_length"), asked(2)),
    ],
    ids=["no call", "off", "no structured answer", "no other", "offline", "tried", "hedged", "first failed", "second failed", "skipped", "lost", "too small"],
)
def test_nobody_is_asked_beside(state: TaskState) -> None:
    assert hedge_of(state) is None


@pytest.mark.parametrize("winner", [1, 2])
def test_the_first_answer_counts_and_the_other_call_is_paid_and_forgotten(winner: int) -> None:
    lost, won = (failed(HEDGE_LOST, 2, B, 1), answered()) if winner == 1 else (failed(HEDGE_LOST), answered(2, B))
    assert given(began(A, B), *TWO, lost).tried == (), "what lost has not failed"
    state = given(began(A, B), *TWO, lost, won)
    assert next_step(state, SETUP) == Finish(Outcome("42", {"n": 1}))
    assert (open_model_calls(state), state.tried, state.turn, state.tries) == ((), (), 2, 0)
    assert state.cost_micro_usd == 3 + 5
    assert state.exchanges[-1].model == ("a" if winner == 1 else "b")


def test_when_one_fails_the_other_goes_on() -> None:
    for state, left in (
        (given(began(A, B), *TWO, failed("model_server")), "m2-2"),
        (given(began(A, B), *TWO, failed("model_server", 2, B, 1)), "m2-1"),
    ):
        assert [call.call_id for call in open_model_calls(state)] == [left]
    state = given(began(A, B), *TWO, failed("model_server"), answered(2, B))
    assert next_step(state, SETUP) == Finish(Outcome("42", {"n": 1}))


def test_when_both_fail_the_chain_goes_on_behind_them() -> None:
    state = given(began(A, B, C), *TWO, failed("model_malformed"), failed("model_malformed", 2, B, 1))
    assert next_step(state, SETUP) == AskModel("m2-3", 2, 2, purpose="output")
    over = next_step(given(began(A, B), *TWO, failed("model_auth", 2, B, 1), failed("model_malformed")), SETUP)
    assert isinstance(over, Fail)
    assert "p/a malformed" in over.failure.message
    assert "q/b auth" in over.failure.message


def test_a_model_that_was_not_asked_beside_may_still_be_asked_behind() -> None:
    state = given(began(A, B), asked(), skipped("over_budget"), failed("model_malformed"))
    assert next_step(state, SETUP) == AskModel("m2-3", 2, 1, purpose="output")


def test_a_refusal_that_falls_through_leaves_the_other_call_open() -> None:
    state = given(began(A, B, refusals_fall_through=True), *TWO, answered(stop="refusal"))
    assert [call.call_id for call in open_model_calls(state)] == ["m2-2"]
    assert [tried.kind for tried in state.tried] == ["content_filter"]


def test_a_worker_that_takes_over_gives_both_calls_up_and_begins_with_the_first_model() -> None:
    state = given(began(A, B), *TWO, began(A, B, worker="w2"))
    for call_id, link, place in (("m2-2", B, 1), ("m2-1", A, 0)):
        step = next_step(state, SETUP)
        assert isinstance(step, GiveUpCall)
        assert (step.asking.call_id, step.asking.reserved_micro_usd) == (call_id, 7)
        state = evolve(state, failed("interrupted", int(call_id[-1]), link, place))
    assert next_step(state, SETUP) == AskModel("m2-3", 2, 0, purpose="output")


def test_a_worker_with_another_chain_gives_both_up_without_their_places() -> None:
    state = given(began(A, B), *TWO, began(C, worker="w2"))
    assert [call.link for call in open_model_calls(state)] == [-1, -1]


def test_another_attempt_has_no_open_calls() -> None:
    assert open_model_calls(given(began(A, B), *TWO, AttemptFailed(1, Failure("internal", "a bug")))) == ()


@pytest.mark.parametrize(("winner", "counts"), [(1, (10, 0)), (2, (0, 10))])
def test_tokens_are_counted_for_the_model_that_answered(winner: int, counts: tuple[int, int]) -> None:
    two = (asked(estimated=9), asked(2, B, 1, hedge=True, estimated=8))
    ended = (failed(HEDGE_LOST, 2, B, 1), answered()) if winner == 1 else (failed(HEDGE_LOST), answered(2, B))
    state = given(began(A, B), *two, *ended)
    assert state.counts == (Count("p", "a", 9, counts[0]), Count("q", "b", 8, counts[1]))
