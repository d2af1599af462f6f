"""Model calls in the turn machine, given events / then next step: chains, deaths of workers, pauses, structured output, old logs."""

from __future__ import annotations

from uuid import UUID

import msgspec
import pytest
from msgspec.structs import replace

from crewlog.agents.conversation import build_request
from crewlog.agents.setup import CORRECTION_PROMPT, OUTPUT_PROMPT, Setup, SetupTool
from crewlog.agents.task_state import TaskState, evolve, initial_state
from crewlog.agents.turn import AskModel, Fail, Finish, GiveUpCall, RunCalls, Step, next_step
from crewlog.schemas.blocks import Text, ToolDef
from crewlog.schemas.ids import ApprovalId, Hash
from crewlog.schemas.payload import pack
from crewlog.schemas.task import parse_task
from crewlog.schemas.task_events import (
    ApprovalRequested,
    AttemptFailed,
    BudgetWarned,
    CallPurpose,
    Link,
    ModelCallFailed,
    ModelCallFinished,
    ModelCallSkipped,
    ModelCallStarted,
    TaskEvent,
    TaskOpened,
    TaskStarted,
    ToolCall,
    ToolFinished,
    ToolStarted,
)
from crewlog.schemas.usage import Price, Usage
from crewlog.schemas.values import Failure, Outcome

A, B = Link("w", "p", "a", window=10), Link("w", "p", "b", window=20)
DEFINITION = ToolDef("submit", "submit", {"type": "object"})
SUBMIT = SetupTool(DEFINITION, "1", "read", "trusted", needs_approval=False, ends_task=True, calls_max=None, refusals_max=2)
SETUP = Setup("data", "1", "system", (SUBMIT,), 100, "call submit", output_prompt=OUTPUT_PROMPT, correction_prompt=CORRECTION_PROMPT)
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def opened(**changes: object) -> TaskOpened:
    task = parse_task({"task_id": str(UUID(int=1)), "type": "data", "objective": "count", **changes})
    return TaskOpened("data", "a", 0, msgspec.Raw(msgspec.json.encode(task)))


def started(*chain: Link, attempt: int = 1, worker: str = "w1", refusals_fall_through: bool = False, deadline_us: int = 0) -> TaskStarted:
    setup, opening = pack("{}")[0], pack("hello")[0]
    first = (chain or (A,))[0]
    return TaskStarted(
        worker, attempt, "1", first.model, first.provider, False, setup, opening, "", chain, deadline_us, refusals_fall_through=refusals_fall_through
    )


def asked(call_id: str = "m1-1", link: int = 0, *, turn: int = 1, reserved: int = 7, purpose: CallPurpose = "turn") -> ModelCallStarted:
    of = (A, B)[link]
    begun = ModelCallStarted(call_id, turn, of.provider, of.model, Hash("0" * 64), 1)
    return replace(begun, wire=of.wire, reserved_micro_usd=reserved, purpose=purpose, link=link)


def failed(kind: str, call_id: str = "m1-1", link: int = 0, *, turn: int = 1) -> ModelCallFailed:
    of = (A, B)[link]
    return ModelCallFailed(call_id, turn, of.provider, of.model, Failure(f"model_{kind}", kind, retryable=True), 1, Price(3, "test"), of.wire, link)


def answered(*tools: str, call_id: str = "m1-1", turn: int = 1, text: str = "", stop: str = "tool_use", purpose: CallPurpose = "turn") -> ModelCallFinished:
    calls = tuple(ToolCall(f"t{turn}-{n}", tool, pack("{}")[0]) for n, tool in enumerate(tools, 1))
    price, usage = Price(5, "test"), Usage(10, 5)
    return ModelCallFinished(call_id, turn, stop, pack(text)[0], calls, usage, price, "p", "a", False, 1, wire="w", purpose=purpose)  # type: ignore[arg-type]


def submitted(outcome: Outcome | None, turn: int = 1) -> tuple[TaskEvent, ...]:
    status = "ok" if outcome else "error"
    finished = ToolFinished(f"t{turn}-1", "submit", status, pack("that is no plan")[0], 1, outcome=outcome)  # type: ignore[arg-type]
    return ToolStarted(f"t{turn}-1", "submit", "1", "read", "key"), finished


def given(*events: TaskEvent) -> TaskState:
    state = initial_state()
    for event in events:
        state = evolve(state, event)
    return state


def then(*events: TaskEvent, setup: Setup = SETUP) -> Step:
    return next_step(given(*events), setup)


def test_a_failed_call_is_followed_by_another_and_what_it_cost_counts() -> None:
    begun = (opened(), started(A, B), asked())
    assert then(*begun, failed("malformed")) == AskModel("m1-2", 1, link=1)
    again = then(*begun, failed("overloaded"))
    assert isinstance(again, AskModel)
    assert (again.call_id, again.link) == ("m1-2", 0)
    assert given(*begun, failed("malformed")).cost_micro_usd == 3


def test_a_log_without_a_chain_is_held_to_the_rules_it_was_written_under() -> None:
    old = replace(asked(), wire="", reserved_micro_usd=0)
    assert then(opened(), started(), old, replace(failed("overloaded"), wire="")) == Fail(Failure("model_overloaded", "overloaded", retryable=True))
    assert then(opened(), started(), old, started(worker="w2")) == AskModel("m1-2", 1), "what became of the call is not to be found out"


def test_a_call_whose_worker_died_is_given_up_first_and_then_made_again() -> None:
    died = (opened(), started(A, B), asked(), started(A, B, worker="w2"))
    step = then(*died)
    assert isinstance(step, GiveUpCall)
    assert (step.asking.call_id, step.asking.reserved_micro_usd) == ("m1-1", 7)
    assert then(*died, failed("interrupted")) == AskModel("m1-2", 1, link=0)
    twice = (*died, failed("interrupted"), asked("m1-2"), started(A, B, worker="w3"), failed("interrupted", "m1-2"))
    assert then(*twice) == AskModel("m1-3", 1, link=1), "what kills workers is not repeated forever"


def test_a_worker_with_another_chain_begins_at_its_own_first_model() -> None:
    other = Link("w", "p", "c")
    died = given(opened(), started(A, B), asked(link=1), started(other, worker="w2"))
    assert isinstance(next_step(died, SETUP), GiveUpCall)
    assert died.asking is not None
    assert died.asking.link == -1
    assert next_step(evolve(died, failed("interrupted", link=-1)), SETUP) == AskModel("m1-2", 1, link=0)


def test_another_attempt_begins_at_the_first_model_again() -> None:
    over = (opened(), started(A), asked(), failed("auth"), AttemptFailed(1, Failure("model_auth", "no")))
    assert then(*over, started(A, attempt=2)) == AskModel("m1-2", 1, link=0)


def test_a_skipped_model_takes_a_call_id_and_no_money() -> None:
    skipped = ModelCallSkipped("m1-1", 1, "w", "p", "a", "breaker_open", 0, 1, 60.0, "server")
    state = given(opened(), started(A, B), skipped)
    assert next_step(state, SETUP) == AskModel("m1-2", 1, link=1)
    assert state.cost_micro_usd == 0


def test_past_a_soft_limit_the_chain_begins_at_the_cheaper_model() -> None:
    warned = (opened(), started(A, B), asked(), BudgetWarned("run/1", "m1-1", 1), answered("look"))
    state = given(*warned, ToolFinished("t1-1", "look", "refused", pack("no such tool")[0], 0))
    assert state.warned == ("run/1",)
    assert next_step(state, SETUP) == AskModel("m2-1", 2, link=1)


def test_a_refusal_falls_through_only_if_the_worker_was_set_up_so() -> None:
    refusal = answered(stop="refusal", text="I will not")
    stopped = then(opened(), started(A, B), asked(), refusal)
    assert isinstance(stopped, Fail)
    assert stopped.failure.code == "model_content_filter"
    state = given(opened(), started(A, B, refusals_fall_through=True), asked(), refusal)
    assert next_step(state, SETUP) == AskModel("m1-2", 1, link=1)
    assert state.exchanges == (), "what refused is not part of the conversation"
    assert (state.cost_micro_usd, state.usage) == (5, Usage(10, 5)), "but it was paid"


def test_a_pause_asks_again_with_what_was_said() -> None:
    paused = (opened(), started(A), asked(), answered(text="so far", stop="pause"))
    assert then(*paused) == AskModel("m2-1", 2)
    request = build_request(given(*paused), SETUP, lambda p: p.inline or "")
    assert [(m.role, m.content) for m in request.messages][1:] == [("assistant", (Text("so far"),))]
    whole = given(*paused, asked("m2-1", turn=2), answered(text=" and the end", stop="end_turn", call_id="m2-1", turn=2))
    request = build_request(whole, SETUP, lambda p: p.inline or "")
    assert [m.role for m in request.messages] == ["user", "assistant", "user"], "one message, in two pieces"


def test_output_that_fits_needs_no_further_call() -> None:
    done = (opened(output_schema=SCHEMA), started(A), asked(), answered("submit"), *submitted(Outcome("42", {"n": 42})))
    assert then(*done) == Finish(Outcome("42", {"n": 42}))


def test_output_that_does_not_fit_is_asked_for_and_taken() -> None:
    done = (opened(output_schema=SCHEMA), started(A), asked(), answered("submit"), *submitted(Outcome("42")))
    assert then(*done) == AskModel("m2-1", 2, purpose="output")
    told = (*done, asked("m2-1", turn=2, purpose="output"), answered(call_id="m2-1", turn=2, text='{"n": 42}', stop="end_turn", purpose="output"))
    assert then(*told) == Finish(Outcome("42", {"n": 42}))
    old = replace(SETUP, output_prompt="")
    assert then(*done, setup=old) == Finish(Outcome("42")), "a log of a program that did not ask for it"


def test_wrong_output_is_corrected_twice() -> None:
    events: list[TaskEvent] = [opened(output_schema=SCHEMA), started(A), asked(), answered("submit"), *submitted(Outcome("42"))]
    for turn in (2, 3, 4):
        assert then(*events) == AskModel(f"m{turn}-1", turn, purpose="output")
        wrong = answered(call_id=f"m{turn}-1", turn=turn, text="{}", stop="end_turn", purpose="output")
        events += [asked(f"m{turn}-1", turn=turn, purpose="output"), replace(wrong, problems=("$: 'n' is a required property",))]
    step = then(*events)
    assert isinstance(step, Fail)
    assert step.failure.code == "output_invalid"
    assert "3 answers did not satisfy output_schema; the last one: $: 'n' is a required property" in step.failure.message


def test_a_plan_is_corrected_twice_and_then_the_task_fails() -> None:
    events: list[TaskEvent] = [opened(), started(A)]
    for turn in (1, 2, 3):
        assert isinstance(then(*events), AskModel)
        events += [asked(f"m{turn}-1", turn=turn), answered("submit", call_id=f"m{turn}-1", turn=turn), *submitted(None, turn)]
    step = then(*events)
    assert isinstance(step, Fail)
    assert (step.failure.code, step.failure.retryable) == ("output_invalid", False)
    assert "submit was refused 3 times; the last time: that is no plan" in step.failure.message


def test_an_attempt_has_one_deadline_until_a_person_was_asked() -> None:
    state = given(opened(), started(A, deadline_us=99), asked(), answered("submit"))
    assert state.deadline_us == 99
    assert evolve(state, AttemptFailed(1, Failure("x", "y"))).deadline_us == 0
    assert isinstance(next_step(state, SETUP), RunCalls)
    waiting = ApprovalRequested(ApprovalId(UUID(int=7)), "t1-1", "submit", pack("{}")[0], Hash("1" * 64), "why", 0)
    assert evolve(state, waiting).deadline_us == 0


@pytest.mark.parametrize("kind", ["bad_request", "content_filter"])
def test_what_stops_stops(kind: str) -> None:
    assert isinstance(then(opened(), started(A, B), asked(), failed(kind)), Fail)
