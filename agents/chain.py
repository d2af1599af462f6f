"""Which model of a chain is asked next: a pure reading of what was recorded of the calls of this turn.

    how the last call ended                            same model               next model
    rate_limit                                         once more, after a wait  yes, at once if the wait is long
    overloaded, server, timeout, connection            once more                yes
    cut (in the middle, and perhaps billed)            last of all              yes, at once
    interrupted (its worker died)                      once more, at once       yes
    malformed, auth, billing, not_found                no                       yes
    over_budget, unpriced (it was not asked)           no                       yes
    slow (it is being asked still)                     no                       yes, beside it: see `turn.hedge_of`
    breaker_open (it was not asked)                    last of all, if soon     yes
    context_length                                     no                       only one with a larger window
    content_filter                                     no                       only if the worker was set up so
    bad_request                                        no                       no: our own mistake, which another model would hide

Waits are full jitter, derived from the ids of task and call instead of drawn, so that a replay waits for the same time. No
provider is waited for longer than `WAIT_S_MAX`: that ends the attempt, and the queue waits instead of a worker.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple
from zlib import crc32

import msgspec

from crewlog.schemas.ids import TaskId
from crewlog.schemas.task_events import Link
from crewlog.schemas.text import shorten
from crewlog.schemas.values import Failure, Shortfall

TRIES_PER_LINK: Final = 2
"""Calls to one model in one turn of one attempt."""
WAIT_S_MAX: Final = 5.0
"""Longest a worker waits before it asks the same model again, in seconds."""
JITTER_BASE_S: Final = 0.5
JITTER_CAP_S: Final = 8.0
"""Full jitter: a wait between nothing and `base * 2^tries`, at most `cap`, in seconds."""

INTERRUPTED: Final = "interrupted"
CUT: Final = "cut"
BREAKER_OPEN: Final = "breaker_open"
OVER_BUDGET: Final = "over_budget"
UNPRICED: Final = "unpriced"
SLOW: Final = "slow"
HEDGE_LOST: Final = "hedge_lost"
"""A call that was given up because the one beside it was answered first: no failure, so nothing follows from it."""
CONTEXT_LENGTH: Final = "context_length"
CONTENT_FILTER: Final = "content_filter"

_AGAIN: Final = frozenset({"rate_limit", "overloaded", "server", "timeout", "connection", INTERRUPTED})
_ONWARD: Final = frozenset({"malformed", "auth", "billing", "not_found", CUT, BREAKER_OPEN, OVER_BUDGET, UNPRICED, SLOW})
_PASSES: Final = _AGAIN | {"malformed", CUT, BREAKER_OPEN}
"""What may be over in a while: another attempt is worth it."""
_SAID_CHARS_MAX: Final = 300


class Tried(msgspec.Struct, frozen=True):
    """One call that brought no answer, or was not made. `link` is its place in the chain."""

    link: int
    kind: str
    message: str
    retry_after_s: float = 0.0
    status: int | None = None
    request_id: str = ""
    shortfall: Shortfall | None = None
    """Of a model that was not asked because a budget has no room: what was missing."""


class Ask(NamedTuple):
    """Ask the model at this place of the chain, after a wait in seconds."""

    link: int
    wait_s: float = 0.0


class Exhausted(NamedTuple):
    """No model is left to ask. `too_long`: one with a larger window, or a shorter conversation, would have helped."""

    failure: Failure
    too_long: bool = False
    shortfall: Shortfall | None = None
    """The least money that would have let a model be asked."""


def next_link(
    chain: Sequence[Link], tried: Sequence[Tried], *, task_id: TaskId, call_id: str, first: int = 0, refusals_fall_through: bool = False
) -> Ask | Exhausted:
    """Decide which model is asked, given what this turn has tried so far.

    Args:
        tried: calls without an answer, in order. Those that found the conversation too long may be of earlier turns: it only grows.
        call_id: id of the call to be decided on; with `task_id` it fixes the jitter.
        first: place where the chain begins, when a budget's soft limit moved it to a cheaper model.
        refusals_fall_through: setting of the worker that began the attempt.
    """
    last = tried[-1] if tried else None
    if last is None or last.kind == CONTEXT_LENGTH:
        start = first if last is None else 0
    elif last.kind in _AGAIN and sum(t.link == last.link for t in tried) < TRIES_PER_LINK and (wait_s := _wait_s(tried, last, task_id, call_id)) <= WAIT_S_MAX:
        return Ask(last.link, wait_s)
    elif last.kind in _AGAIN or last.kind in _ONWARD or (last.kind == CONTENT_FILTER and refusals_fall_through):
        start = last.link + 1
    else:
        return Exhausted(Failure(f"model_{last.kind}", f"no other model is asked: {_listed(chain, tried)}"))
    asked = {t.link for t in tried}
    needed = max((chain[t.link].window + 1 for t in tried if t.kind == CONTEXT_LENGTH), default=0)
    for place in range(max(start, first), len(chain)):
        if place not in asked and chain[place].window >= needed:
            return Ask(place)
    return _once_more([t for t in tried if chain[t.link].window >= needed], task_id, call_id) or exhausted(chain, tried)


def _once_more(tried: Sequence[Tried], task_id: TaskId, call_id: str) -> Ask | None:
    """Ask a model again that was passed over for the others, now that no other is left, rather than end the attempt.

    Args:
        tried: calls to models whose window has room for the conversation.
    """
    for last in {t.link: t for t in tried}.values():
        may_be_back = last.retry_after_s <= WAIT_S_MAX and (last.kind == CUT or (last.kind == BREAKER_OPEN and last.retry_after_s > 0))
        if may_be_back and sum(t.link == last.link for t in tried) < TRIES_PER_LINK:
            return Ask(last.link, last.retry_after_s + JITTER_BASE_S * _fraction(task_id, call_id))
    return None


def exhausted(chain: Sequence[Link], tried: Sequence[Tried]) -> Exhausted:
    """Sum up a turn that no model answered: one failure that lists every call.

    The failure is worth another attempt when a model may be back in a while, not before the earliest time one of them named.
    """
    kinds = list(dict.fromkeys(t.kind for t in tried))
    calls = _listed(chain, tried)
    too_long = CONTEXT_LENGTH in kinds
    last_of = {t.link: t for t in tried}.values()
    waiting = [t.retry_after_s for t in last_of if t.kind in _PASSES]
    least = min((t.shortfall for t in tried if t.shortfall is not None), key=lambda s: s.needed_micro_usd, default=None)
    if waiting:
        failure = Failure(_code(kinds), f"no model answered: {calls}", retryable=True, retry_after_s=min(waiting) or None)
        return Exhausted(failure, too_long, least)
    if least is not None:
        return Exhausted(Failure("budget", f"no model fits into the budget: {calls}"), shortfall=least)
    if too_long:
        return Exhausted(Failure(f"model_{CONTEXT_LENGTH}", f"no model has room for the conversation: {calls}"), too_long)
    return Exhausted(Failure(_code(kinds), f"no model answered: {calls}"))


def _listed(chain: Sequence[Link], tried: Sequence[Tried]) -> str:
    return "; ".join(_describe(chain[t.link], t) for t in tried)


def _code(kinds: Sequence[str]) -> str:
    if len(kinds) > 1:
        return "model_unavailable"
    return kinds[0] if kinds[0] == UNPRICED else f"model_{kinds[0]}"


def _describe(link: Link, tried: Tried) -> str:
    status = f", HTTP {tried.status}" if tried.status is not None else ""
    request = f", request {tried.request_id}" if tried.request_id else ""
    said = f": {shorten(tried.message, _SAID_CHARS_MAX)}" if tried.message else ""
    return f"{link} {tried.kind}{status}{request}{said}"


def _wait_s(tried: Sequence[Tried], last: Tried, task_id: TaskId, call_id: str) -> float:
    if last.kind == INTERRUPTED:
        return 0.0
    before = sum(t.link == last.link for t in tried) - 1
    return max(min(JITTER_CAP_S, JITTER_BASE_S * 2.0**before) * _fraction(task_id, call_id), last.retry_after_s)


def _fraction(task_id: TaskId, call_id: str) -> float:
    return crc32(f"{task_id}/{call_id}".encode()) / 2**32
