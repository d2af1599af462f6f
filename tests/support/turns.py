"""Finished turns as a task's state holds them, and the texts behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

import msgspec
from msgspec.structs import replace

from crewlog.agents.fresh_setup import make_setup
from crewlog.agents.setup import Setup, opening_message
from crewlog.agents.spec import AgentSpec
from crewlog.agents.task_state import Exchange, Result, TaskState, evolve, initial_state
from crewlog.schemas.payload import Payload, pack
from crewlog.schemas.task import parse_task
from crewlog.schemas.task_events import TaskOpened, TaskStarted, ToolCall

Used = tuple[str, str, str]
"""Tool, arguments as JSON, result."""

SETUP: Setup = make_setup(AgentSpec("data", "test agent", "Do what you are told."), ())[0]


@dataclass
class Texts:
    """Payloads and what they stand for."""

    blobs: dict[str, str] = field(default_factory=dict)

    def pack(self, text: str) -> Payload:
        payload, blob = pack(text)
        if payload.ref is not None and blob is not None:
            self.blobs[payload.ref] = blob.decode()
        return payload

    def read(self, payload: Payload) -> str:
        return payload.inline if payload.inline is not None else self.blobs[str(payload.ref)]


def turn(*used: Used, number: int = 1, text: str = "", texts: Texts | None = None) -> Exchange:
    """One turn with its calls and their results."""
    store = (texts or Texts()).pack
    calls = tuple(ToolCall(f"t{number}-{n}", tool, store(arguments)) for n, (tool, arguments, _) in enumerate(used, 1))
    results = tuple(Result(call.call_id, call.tool, store(result), is_error=False) for call, (_, _, result) in zip(calls, used, strict=True))
    return Exchange(store(text), calls, results)


def turns(*rounds: Sequence[Used] | Used, texts: Texts | None = None) -> tuple[Exchange, ...]:
    """Turns in order; a turn of one call may be given as that call."""
    listed = [[r] if isinstance(r[0], str) else r for r in rounds]
    return tuple(turn(*used, number=number, texts=texts) for number, used in enumerate(listed, 1))  # type: ignore[misc, arg-type]


def state_behind(exchanges: Sequence[Exchange], objective: str = "count") -> TaskState:
    """A task that is at work and has these turns behind it."""
    task = parse_task({"task_id": str(UUID(int=1)), "type": "data", "objective": objective})
    state = evolve(initial_state(), TaskOpened("data", "a", 0, msgspec.Raw(msgspec.json.encode(task))))
    setup, opening = pack(msgspec.json.encode(SETUP).decode())[0], pack(opening_message(task), inline_max=1 << 30)[0]
    state = evolve(state, TaskStarted("w1", 1, "1", "script-1", "offline", simulated=True, setup=setup, opening=opening))
    return replace(state, exchanges=tuple(exchanges), turn=len(exchanges))
