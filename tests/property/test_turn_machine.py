"""For any way in which calls, tools and workers may fail: a task comes to its end within bounds, and its log derives from itself."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from crewlog.agents.chain import HEDGE_LOST, TRIES_PER_LINK
from crewlog.agents.conversation import build_request
from crewlog.agents.fresh_setup import make_setup
from crewlog.agents.model_call import given_up
from crewlog.agents.spec import AgentSpec
from crewlog.agents.task_state import TaskState, evolve, initial_state, open_model_calls
from crewlog.agents.turn import AskModel, Fail, Finish, GiveUpCall, hedge_of, next_step
from crewlog.schemas.payload import Payload, pack
from crewlog.schemas.task import parse_task
from crewlog.schemas.task_events import (
    Link,
    ModelCallFailed,
    ModelCallFinished,
    ModelCallSkipped,
    ModelCallStarted,
    TaskEvent,
    TaskOpened,
    TaskStarted,
)
from crewlog.schemas.usage import Price, Usage
from crewlog.schemas.values import Failure

CHAIN = (Link("w", "p", "a", window=10_000), Link("w", "q", "b", window=20_000), Link("offline", "offline", "rules", simulated=True))
SCHEMA = {"type": "object", "required": ["n"]}
SPEC = AgentSpec("data", "test agent", "Answer in plain text.")
SETUP = make_setup(SPEC, (), has_schema=True)[0]
TASK = parse_task({"task_id": str(UUID(int=1)), "type": "data", "objective": "count", "output_schema": SCHEMA, "limits": {"turns_max": 5}})
HEDGED = ("first_wins", "second_wins", "first_fails", "second_fails", "both_fail", "both_die", "both_move", "no_second")
ENDINGS = (
    *("rate_limit", "overloaded", "server", "timeout", "connection", "cut", "malformed", "auth", "billing", "not_found"),
    *("context_length", "content_filter", "bad_request", "breaker_open", "over_budget"),
    *("death", "other_worker", "says", "says_json", "pauses"),
    *HEDGED,
)
CALLS_MAX = (5 + 3 + 6) * TRIES_PER_LINK * len(CHAIN)
"""Turns, structured answers and pauses, each with as many calls as a turn may have."""


def read(payload: Payload) -> str:
    return payload.inline or ""


def began(worker: str, chain: tuple[Link, ...] = CHAIN) -> TaskStarted:
    return TaskStarted(worker, 1, "1", chain[0].model, chain[0].provider, False, pack("{}")[0], pack("count")[0], "", chain, hedge_after_s=1.0)


def begun(state: TaskState, step: AskModel) -> ModelCallStarted:
    link, request = state.chain[step.link], build_request(state, SETUP, read, link=step.link, purpose=step.purpose)
    call = ModelCallStarted(step.call_id, step.turn, link.provider, link.model, request.request_hash(), len(request.messages))
    return replace(call, wire=link.wire, reserved_micro_usd=9, purpose=step.purpose, link=step.link, hedge=step.is_hedge)


def hedged(state: TaskState, first: AskModel, how: str, worker: str) -> Iterator[TaskEvent]:
    """Two calls side by side, or the first one alone where there is no second."""
    yield begun(state, first)
    state = evolve(state, begun(state, first))
    second = hedge_of(state)
    if second is None or how == "no_second":
        if second is not None:
            link = state.chain[second.link]
            yield ModelCallSkipped(second.call_id, second.turn, link.wire, link.provider, link.model, "over_budget", second.link, hedge=True)
        yield said(state, first, "says_json")
        return
    yield begun(state, second)
    state = evolve(state, begun(state, second))
    assert [call.call_id for call in open_model_calls(state)] == [second.call_id, first.call_id]
    assert hedge_of(state) is None, "there is never a third call"
    if how in ("both_die", "both_move"):
        yield began(worker, CHAIN if how == "both_die" else CHAIN[::-1])
        return
    code = HEDGE_LOST if how.endswith("wins") else "model_timeout"
    order = (second, first) if how in ("first_wins", "second_fails") else (first, second)
    yield not_said(state, order[0], code)
    yield not_said(state, order[1], "model_server") if how == "both_fail" else said(state, order[1], "says_json")


def said(state: TaskState, step: AskModel, how: str) -> ModelCallFinished:
    link = state.chain[step.link]
    text = '{"n": 1}' if how == "says_json" else "well"
    problems = ("no",) if step.purpose == "output" and how == "says" else ()
    stop = "pause" if how == "pauses" else "end_turn"
    usage, price = Usage(3, 4), Price(5, "test")
    answer = ModelCallFinished(step.call_id, step.turn, stop, pack(text)[0], (), usage, price, link.provider, link.model, link.simulated, 1)  # type: ignore[arg-type]
    return replace(answer, wire=link.wire, purpose=step.purpose, problems=problems)


def not_said(state: TaskState, step: AskModel, code: str) -> ModelCallFailed:
    link = state.chain[step.link]
    return ModelCallFailed(step.call_id, step.turn, link.provider, link.model, Failure(code, code, retryable=True), 1, Price(2, "test"), link.wire, step.link)


def ending(state: TaskState, step: AskModel, how: str, worker: str) -> Iterator[TaskEvent]:
    link = state.chain[step.link]
    if how in HEDGED:
        yield from hedged(state, step, how, worker)
        return
    if how in ("breaker_open", "over_budget"):
        yield ModelCallSkipped(step.call_id, step.turn, link.wire, link.provider, link.model, how, step.link)  # type: ignore[arg-type]
        return
    yield begun(state, step)
    match how:
        case "death":
            yield began(worker)
        case "other_worker":
            yield began(worker, CHAIN[::-1])
        case "says" | "says_json" | "pauses":
            yield said(state, step, how)
        case _:
            yield not_said(state, step, f"model_{how}")


@given(hows=st.lists(st.sampled_from(ENDINGS), min_size=CALLS_MAX, max_size=CALLS_MAX))
def test_a_task_comes_to_its_end(hows: list[str]) -> None:
    state = evolve(initial_state(), TaskOpened("data", "a", 0, msgspec.Raw(msgspec.json.encode(TASK))))
    state = evolve(state, began("w0"))
    money, changes = 0, 0
    for number, how in enumerate(hows):
        step = next_step(state, SETUP)
        while isinstance(step, GiveUpCall):
            event = given_up(step.asking)
            money += event.price.cost_micro_usd or 0
            state = evolve(state, event)
            step = next_step(state, SETUP)
        if isinstance(step, Fail | Finish):
            break
        assert isinstance(step, AskModel), step
        # a worker with another chain starts its turn anew, so only so many of them are met
        changes += how in ("other_worker", "both_move")
        event_of = how if changes <= 3 or how not in ("other_worker", "both_move") else "death"
        for event in ending(state, step, event_of, f"w{number}"):
            if isinstance(event, ModelCallFinished | ModelCallFailed):
                money += event.price.cost_micro_usd or 0
            state = evolve(state, event)
    else:
        raise AssertionError(f"no end after {CALLS_MAX} calls: {hows}")
    assert state.cost_micro_usd == money, "every call is charged once"
    if isinstance(step, Finish) and step.outcome.output is not None:
        assert step.outcome.output == {"n": 1}
