"""Does a task go round in circles? Looks at the recorded turns alone: which tools were called with what, and what came of it. Pure.

Two turns are the same when they call the same tools with the same arguments (as JSON values, so spacing and the order of keys do not
matter) and get the same results. A poll whose answer changes, or the same question put to other data, is therefore no repetition.
Arguments too large to stand in an event are compared by their exact text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from crewlog.agents.task_state import Exchange
from crewlog.schemas.payload import Payload
from crewlog.schemas.task_events import ToolCall
from crewlog.schemas.text import shorten

PERIOD_MAX: Final = 8
"""Turns of the longest cycle that is looked for."""
ARGUMENTS_CHARS_MAX: Final = 80
"""What is shown of one call's arguments."""
CALLS_SHOWN_MAX: Final = 6

_decode: Final = msgspec.json.Decoder().decode
_encode: Final = msgspec.json.Encoder(order="deterministic").encode


def find_cycle(exchanges: Sequence[Exchange], repeats: int) -> tuple[Exchange, ...]:
    """Return one round of the shortest cycle that the last turns went through `repeats` times; empty when they did not.

    Args:
        exchanges: finished turns in order; all their calls are answered.
        repeats: 2 or more.
    """
    for period in range(1, min(PERIOD_MAX, len(exchanges) // repeats) + 1):
        compared = range(1, period * (repeats - 1) + 1)
        if all(_is_same(exchanges[-at], exchanges[-at - period]) for at in compared):
            return tuple(exchanges[-period:])
    return ()


def describe_cycle(cycle: Sequence[Exchange]) -> str:
    """Name the calls of a cycle for people and models, in order: `look {"text": "a"} → put {"text": "b"}`."""
    calls = [call for exchange in cycle for call in exchange.calls]
    named = [_describe(call) for call in calls[:CALLS_SHOWN_MAX]]
    return " → ".join(named) + (f" → {len(calls) - CALLS_SHOWN_MAX} more" if len(calls) > CALLS_SHOWN_MAX else "")


def _is_same(one: Exchange, other: Exchange) -> bool:
    """Compare what can differ most cheaply first: in a task that gets on, results do."""
    if not one.calls or len(one.calls) != len(other.calls) or len(one.results) != len(other.results):
        return False
    results = zip(one.results, other.results, strict=True)
    if any(a.content != b.content or a.is_error != b.is_error for a, b in results):
        return False
    return all(a.tool == b.tool and _same_arguments(a.arguments, b.arguments) for a, b in zip(one.calls, other.calls, strict=True))


def _same_arguments(one: Payload, other: Payload) -> bool:
    if one == other:
        return True
    return one.inline is not None and other.inline is not None and _canonical(one.inline) == _canonical(other.inline)


def _canonical(arguments: str) -> bytes:
    try:
        return _encode(_decode(arguments or "{}"))
    except msgspec.DecodeError:
        return arguments.encode()


def _describe(call: ToolCall) -> str:
    arguments = call.arguments.inline
    return f"{call.tool} " + (f"({call.arguments.size} bytes)" if arguments is None else shorten(arguments or "{}", ARGUMENTS_CHARS_MAX))
