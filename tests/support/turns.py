"""Finished turns as a task's state holds them."""

from __future__ import annotations

from collections.abc import Sequence

from crewlog.agents.task_state import Exchange, Result
from crewlog.schemas.payload import pack
from crewlog.schemas.task_events import ToolCall

Used = tuple[str, str, str]
"""Tool, arguments as JSON, result."""


def turn(*used: Used, number: int = 1, text: str = "") -> Exchange:
    """One turn with its calls and their results."""
    calls = tuple(ToolCall(f"t{number}-{n}", tool, pack(arguments)[0]) for n, (tool, arguments, _) in enumerate(used, 1))
    results = tuple(Result(call.call_id, call.tool, pack(result)[0], is_error=False) for call, (_, _, result) in zip(calls, used, strict=True))
    return Exchange(pack(text)[0], calls, results)


def turns(*rounds: Sequence[Used] | Used) -> tuple[Exchange, ...]:
    """Turns in order; a turn of one call may be given as that call."""
    listed = [[r] if isinstance(r[0], str) else r for r in rounds]
    return tuple(turn(*used, number=number) for number, used in enumerate(listed, 1))  # type: ignore[misc, arg-type]
