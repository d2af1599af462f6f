"""The turn machine, given events / then next step."""

from __future__ import annotations

from uuid import UUID

import msgspec
import pytest

from crewlog.agents.setup import Setup, SetupTool
from crewlog.agents.task_state import TaskState, evolve, initial_state
from crewlog.agents.turn import AskModel, Done, Fail, Finish, Nudge, RunCalls, Start, Step, Wait, approval_of, digest_of, next_step
from crewlog.schemas.blocks import ToolDef
from crewlog.schemas.effects import Effect
from crewlog.schemas.ids import ApprovalId, Hash
from crewlog.schemas.payload import EMPTY, Payload, pack
from crewlog.schemas.task import AgentTask, parse_task
from crewlog.schemas.task_events import (
    ApprovalDecided,
    ApprovalRequested,
    AttemptFailed,
    ModelCallFailed,
    ModelCallFinished,
    ModelCallStarted,
    Nudged,
    TaskCancelled,
    TaskCompleted,
    TaskEvent,
    TaskOpened,
    TaskStarted,
    ToolCall,
    ToolFinished,
    ToolStarted,
)
from crewlog.schemas.usage import Price, Usage
from crewlog.schemas.values import Failure, Outcome

TASK_ID = UUID("00000000-0000-4000-8000-000000000001")


def setup_tool(name: str, effect: Effect = "read", *, needs_approval: bool = False, ends_task: bool = False) -> SetupTool:
    return SetupTool(ToolDef(name, name, {"type": "object"}), "1", effect, "trusted", needs_approval, ends_task, None)


SETUP = Setup(
    "data",
    "1",
    "system",
    (setup_tool("look"), setup_tool("send", "irreversible", needs_approval=True), setup_tool("submit", ends_task=True)),
    100,
    "call submit",
)


def a_task(**changes: object) -> AgentTask:
    return parse_task({"task_id": str(TASK_ID), "type": "data", "objective": "count", **changes})


def opened(task: AgentTask | None = None) -> TaskOpened:
    return TaskOpened("data", "a", 0, msgspec.Raw(msgspec.json.encode(task or a_task())))


def started(attempt: int = 1, worker: str = "w1") -> TaskStarted:
    return TaskStarted(worker, attempt, "1", "rules-1", "offline", simulated=True, setup=pack("{}")[0], opening=pack("hello")[0])


def asked(turn: int = 1, n: int = 1) -> ModelCallStarted:
    return ModelCallStarted(f"m{turn}-{n}", turn, "offline", "rules-1", Hash("0" * 64), 1)


def answered(*tools: str, turn: int = 1, text: str = "", stop: str = "tool_use", cost: int | None = 0) -> ModelCallFinished:
    calls = tuple(ToolCall(f"t{turn}-{n}", tool, pack("{}")[0]) for n, tool in enumerate(tools, 1))
    return ModelCallFinished(
        f"m{turn}-1",
        turn,
        stop,
        pack(text)[0],
        calls,
        Usage(10, 5),
        Price(cost, "test"),
        "offline",
        "rules-1",
        simulated=True,
        latency_ms=1,  # type: ignore[arg-type]
    )


def running(call_id: str, tool: str, effect: Effect = "read") -> ToolStarted:
    return ToolStarted(call_id, tool, "1", effect, "key")


def result(call_id: str, tool: str, *, status: str = "ok", outcome: Outcome | None = None) -> ToolFinished:
    return ToolFinished(call_id, tool, status, pack("42")[0], 1, outcome=outcome)  # type: ignore[arg-type]


def approval(call_id: str = "t1-1") -> ApprovalRequested:
    return ApprovalRequested(ApprovalId(UUID(int=7)), call_id, "send", EMPTY, Hash("1" * 64), "why", 0)


def decided(decision: str, call_id: str = "t1-1") -> ApprovalDecided:
    return ApprovalDecided(ApprovalId(UUID(int=7)), call_id, Hash("1" * 64), decision, "maria", "too early")  # type: ignore[arg-type]


def given(*events: TaskEvent) -> TaskState:
    state = initial_state()
    for event in events:
        state = evolve(state, event)
    return state


def then(*events: TaskEvent, setup: Setup = SETUP) -> Step:
    return next_step(given(*events), setup)


def test_a_task_is_started_then_asks_the_model() -> None:
    assert then() == Done()
    assert then(opened()) == Start()
    assert then(opened(), started()) == AskModel("m1-1", 1)


def test_open_calls_run_and_their_results_go_to_the_model() -> None:
    step = then(opened(), started(), asked(), answered("look", "look"))
    assert isinstance(step, RunCalls)
    assert [c.call.call_id for c in step.calls] == ["t1-1", "t1-2"]
    half = given(opened(), started(), asked(), answered("look", "look"), running("t1-1", "look"), running("t1-2", "look"), result("t1-2", "look"))
    assert [c.call.call_id for c in half.calls if c.status != "done"] == ["t1-1"]
    whole = evolve(half, result("t1-1", "look"))
    assert next_step(whole, SETUP) == AskModel("m2-1", 2)
    assert [r.call_id for r in whole.exchanges[-1].results] == ["t1-1", "t1-2"], "results stand in the order of the calls"


def test_a_tool_that_ends_the_task_ends_it_with_the_label_simulated() -> None:
    step = then(opened(), started(), asked(), answered("submit"), running("t1-1", "submit"), result("t1-1", "submit", outcome=Outcome("42 rows")))
    assert step == Finish(Outcome("42 rows", flags=("simulated",)))


def test_plain_text_that_no_result_can_hold_is_no_empty_result() -> None:
    long = msgspec.structs.replace(answered(stop="end_turn"), text=Payload(70_000, ref=Hash("2" * 64)))
    step = then(opened(), started(), asked(), long, setup=msgspec.structs.replace(SETUP, nudge=""))
    assert isinstance(step, Fail)
    assert (step.failure.code, step.failure.retryable) == ("output_invalid", False)
    assert "70000 bytes" in step.failure.message


def test_plain_text_is_nudged_once_and_then_taken() -> None:
    once = (opened(), started(), asked(), answered(text="42", stop="end_turn"))
    assert then(*once) == AskModel("m2-1", 2)
    step = then(*once, asked(2), answered(text="42 again", stop="end_turn", turn=2))
    assert isinstance(step, Finish)
    assert step.outcome.summary == "42 again"
    assert step.outcome.flags == ("plain_answer", "simulated")


def test_an_empty_answer_is_asked_for_once_more_and_then_taken() -> None:
    plain = msgspec.structs.replace(SETUP, nudge="", empty_nudge="Your answer is empty.")
    once = (opened(), started(), asked(), answered(text=" ", stop="end_turn"))
    assert then(*once, setup=plain) == AskModel("m2-1", 2)
    for text in ("42", ""):
        step = then(*once, asked(2), answered(text=text, stop="end_turn", turn=2), setup=plain)
        assert isinstance(step, Finish)
        assert step.outcome.summary == text
    assert isinstance(then(*once, setup=msgspec.structs.replace(plain, empty_nudge="")), Finish), "as it was for tasks that began before"


def test_an_approval_suspends_until_it_is_decided() -> None:
    waiting = (opened(), started(), asked(), answered("send"), approval())
    assert then(*waiting) == Wait((ApprovalId(UUID(int=7)),))
    approved = then(*waiting, decided("approved"), started(worker="w2"))
    assert isinstance(approved, RunCalls)
    assert approved.calls[0].status == "approved"
    denied = then(*waiting, decided("denied"), started(worker="w2"))
    assert isinstance(denied, RunCalls)
    assert denied.calls[0].note == "denied by maria: too early"


def test_other_calls_of_the_turn_run_before_the_task_suspends() -> None:
    step = then(opened(), started(), asked(), answered("send", "look"), approval())
    assert isinstance(step, RunCalls)
    assert [c.call.tool for c in step.calls] == ["look"]


def test_a_takeover_marks_what_was_running_as_interrupted() -> None:
    state = given(opened(), started(), asked(), answered("send"), running("t1-1", "send", "irreversible"), started(worker="w2"))
    assert state.calls[0].status == "interrupted"
    assert state.calls[0].may_have_happened


def test_a_model_call_without_an_answer_is_asked_again_under_another_id() -> None:
    assert then(opened(), started(), asked(), started(worker="w2")) == AskModel("m1-2", 1)


def test_a_failed_model_call_fails_the_attempt_and_the_next_attempt_goes_on_from_there() -> None:
    failure = Failure("model_overloaded", "try later", retryable=True)
    failed = (
        opened(),
        started(),
        asked(),
        answered("look"),
        running("t1-1", "look"),
        result("t1-1", "look"),
        asked(2),
        ModelCallFailed("m2-1", 2, "p", "m", failure, 1),
    )
    assert then(*failed) == Fail(failure)
    between = (*failed, AttemptFailed(1, failure))
    assert then(*between) == Done()
    assert then(*between, started(2)) == AskModel("m2-2", 2)


@pytest.mark.parametrize(("stop", "code"), [("refusal", "model_content_filter"), ("max_tokens", "model_truncated")])
def test_an_answer_that_cannot_be_used_fails_the_attempt(stop: str, code: str) -> None:
    step = then(opened(), started(), asked(), answered(text="…", stop=stop))
    assert isinstance(step, Fail)
    assert step.failure.code == code
    assert not step.failure.retryable


@pytest.mark.parametrize(
    ("limits", "name", "used"),
    [
        ({"turns_max": 1}, "turns_max", "1 of max 1"),
        ({"output_tokens_max": 5}, "output_tokens_max", "5 of max 5"),
        ({"tokens_max": 12}, "tokens_max", "15 of max 12"),
    ],
)
def test_every_limit_has_an_error_of_its_own_that_says_what_to_raise(limits: dict[str, int], name: str, used: str) -> None:
    step = then(opened(a_task(limits=limits)), started(), asked(), answered("look"), running("t1-1", "look"), result("t1-1", "look"))
    assert step == Fail(Failure(f"limit_{name}", f"limit {name} reached: {used}, raise limits.{name} to go on"))


def test_too_many_tool_calls_are_not_begun() -> None:
    step = then(opened(a_task(limits={"tool_calls_max": 1})), started(), asked(), answered("look", "look"))
    assert step == Fail(Failure("limit_tool_calls_max", "limit tool_calls_max reached: 2 of max 1, raise limits.tool_calls_max to go on"))


def looks(first: int, last: int) -> list[TaskEvent]:
    """The same look in each of these turns, with the same result."""
    turns: list[TaskEvent] = []
    for n in range(first, last + 1):
        turns += [asked(n), answered("look", turn=n), running(f"t{n}-1", "look"), result(f"t{n}-1", "look")]
    return turns


WATCHED = msgspec.structs.replace(SETUP, repeats_max=3)


def test_a_loop_is_nudged_once_and_then_stopped_with_its_name() -> None:
    begun = (opened(), started())
    assert then(*begun, *looks(1, 2), setup=WATCHED) == AskModel("m3-1", 3)
    nudge = then(*begun, *looks(1, 3), setup=WATCHED)
    assert isinstance(nudge, Nudge)
    assert "look {} was done 3 times" in nudge.text
    told = (*begun, *looks(1, 3), Nudged("loop", nudge.text))
    assert then(*told, setup=WATCHED) == AskModel("m4-1", 4)
    assert then(*told, *looks(4, 5), setup=WATCHED) == AskModel("m6-1", 6)
    step = then(*told, *looks(4, 6), setup=WATCHED)
    assert isinstance(step, Fail)
    assert step.failure.code == "loop_detected"
    assert "turns 4 to 6 repeat look {} 3 times" in step.failure.message
    assert not step.failure.retryable


def test_a_task_that_began_before_anybody_looked_for_loops_keeps_its_rules() -> None:
    assert then(opened(), started(), *looks(1, 9)) == AskModel("m10-1", 10)


def test_an_ended_task_does_nothing_more() -> None:
    assert then(opened(), started(), TaskCompleted(Outcome("x"), Usage(), 0, 1, 0)) == Done()
    assert then(opened(), TaskCancelled("stop", "maria")) == Done()


def test_an_unpriced_call_is_counted_and_not_free() -> None:
    assert given(opened(), started(), asked(), answered("look", cost=None)).unpriced_calls == 1


def test_asking_again_is_a_new_question_and_a_permit_is_bound_to_the_arguments() -> None:
    state = given(opened(), started(), asked(), answered("send", "send"))
    first, second = state.calls
    assert approval_of(state, first) != approval_of(state, second)
    again = given(opened(), started(), asked(), answered("send", "send"), approval()).calls[0]
    assert approval_of(state, again) != approval_of(state, first)
    other = msgspec.structs.replace(first, call=ToolCall("t1-1", "send", pack('{"to":"x"}')[0]))
    assert digest_of(state, SETUP, first) != digest_of(state, SETUP, other)


def test_untrusted_results_and_context_make_the_outcome_untrusted() -> None:
    item = {"key": "a", "type": "research", "objective": "o", "outcome": {"summary": "s", "trust": "untrusted"}}
    step = then(
        opened(a_task(context=[item])), started(), asked(), answered("submit"), running("t1-1", "submit"), result("t1-1", "submit", outcome=Outcome("x"))
    )
    assert isinstance(step, Finish)
    assert step.outcome.trust == "untrusted"
