"""For any way in which calls, tools and workers may fail: a task comes to its end within bounds, and its log derives from itself."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import UUID

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from crewlog.agents.chain import TRIES_PER_LINK
from crewlog.agents.conversation import build_request
from crewlog.agents.model_call import given_up
from crewlog.agents.setup import make_setup
from crewlog.agents.spec import AgentSpec
from crewlog.agents.task_state import TaskState, evolve, initial_state
from crewlog.agents.turn import AskModel, Fail, Finish, GiveUpCall, next_step
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
ENDINGS = (
    *("rate_limit", "overloaded", "server", "timeout", "connection", "malformed", "auth", "billing", "not_found"),
    *("context_length", "content_filter", "bad_request", "breaker_open", "over_budget"),
    *("death", "other_worker", "says", "says_json", "pauses"),
)
CALLS_MAX = (5 + 3 + 6) * TRIES_PER_LINK * len(CHAIN)
"""Turns, structured answers and pauses, each with as many calls as a turn may have."""


def read(payload: Payload) -> str:
    return payload.inline or ""


def began(worker: str, chain: tuple[Link, ...] = CHAIN) -> TaskStarted:
    return TaskStarted(worker, 1, "1", chain[0].model, chain[0].provider, False, pack("{}")[0], pack("count")[0], "", chain)


def ending(state: TaskState, step: AskModel, how: str, worker: str) -> Iterator[TaskEvent]:
    link = state.chain[step.link]
    if how in ("breaker_open", "over_budget"):
        yield ModelCallSkipped(step.call_id, step.turn, link.wire, link.provider, link.model, how, step.link)  # type: ignore[arg-type]
        return
    request = build_request(state, SETUP, read, link=step.link, purpose=step.purpose)
    begun = ModelCallStarted(step.call_id, step.turn, link.provider, link.model, request.request_hash(), len(request.messages))
    yield replace(begun, wire=link.wire, reserved_micro_usd=9, purpose=step.purpose, link=step.link)
    match how:
        case "death":
            yield began(worker)
        case "other_worker":
            yield began(worker, CHAIN[::-1])
        case "says" | "says_json" | "pauses":
            text = '{"n": 1}' if how == "says_json" else "well"
            problems = ("no",) if step.purpose == "output" and how == "says" else ()
            stop = "pause" if how == "pauses" else "end_turn"
            usage, price = Usage(3, 4), Price(5, "test")
            said = ModelCallFinished(step.call_id, step.turn, stop, pack(text)[0], (), usage, price, link.provider, link.model, link.simulated, 1)  # type: ignore[arg-type]
            yield replace(said, wire=link.wire, purpose=step.purpose, problems=problems)
        case _:
            error = Failure(f"model_{how}", how, retryable=True)
            yield ModelCallFailed(step.call_id, step.turn, link.provider, link.model, error, 1, Price(2, "test"), link.wire, step.link)


@settings(deadline=None)
@given(hows=st.lists(st.sampled_from(ENDINGS), min_size=CALLS_MAX, max_size=CALLS_MAX))
def test_a_task_comes_to_its_end(hows: list[str]) -> None:
    state = evolve(initial_state(), TaskOpened("data", "a", 0, msgspec.Raw(TASK.model_dump_json().encode())))
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
        changes += how == "other_worker"
        event_of = how if changes <= 3 or how != "other_worker" else "death"
        for event in ending(state, step, event_of, f"w{number}"):
            if isinstance(event, ModelCallFinished | ModelCallFailed):
                money += event.price.cost_micro_usd or 0
            state = evolve(state, event)
    else:
        raise AssertionError(f"no end after {CALLS_MAX} calls: {hows}")
    assert state.cost_micro_usd == money, "every call is charged once"
    if isinstance(step, Finish) and step.outcome.output is not None:
        assert step.outcome.output == {"n": 1}
