"""Keep a conversation within the model's context window: what is left out, oldest first, and what stands in its place. Pure.

Only finished turns are touched, the last ones never, and neither is the opening message. Results of tools go first, then what the model
said; what a provider wrote for itself (reasoning, signatures) goes with the first text of its turn. The arguments of a call always stay,
and every call keeps its result, if only as one line, so that no provider finds a call without one. No model is asked for any of it. The
full texts stay in the log, and `recall_result` reads them back.

    make_room(…) -> Compact, recorded as `ContextCompacted`, folded into the state, rendered by `build_request`
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import ceil
from typing import Final, Literal, NamedTuple

import msgspec

from crewlog.agents.recall import RECALL
from crewlog.agents.setup import Room, Setup
from crewlog.agents.task_state import Exchange, TaskState
from crewlog.agents.tokens import FACTOR_UNKNOWN, FACTORS, estimate_request, estimate_tokens
from crewlog.schemas.blocks import ModelRequest
from crewlog.schemas.payload import Payload
from crewlog.schemas.task_events import Replaced
from crewlog.schemas.values import Failure

REPLACED_MAX: Final = 256
"""Texts one event replaces, so that it stays small; what is left follows in the next one."""
RATIO_MIN: Final = 0.5
RATIO_MAX: Final = 3.0
"""Bounds of counted to estimated tokens: beyond them a count is a mistake rather than a measurement."""

ReadText = Callable[[Payload], str]


class Compact(msgspec.Struct, frozen=True):
    """Leave these texts out. Tokens are estimates of the whole request; `tokens_max` is what it should have stayed below."""

    replaced: tuple[Replaced, ...]
    tokens_before: int
    tokens_after: int
    tokens_max: int


class Target(NamedTuple):
    """The model that is about to be asked. `window`: tokens of input and output together, 0 when nobody knows."""

    provider: str
    model: str
    window: int = 0


def make_room(state: TaskState, setup: Setup, request: ModelRequest, target: Target, read: ReadText, *, refused: bool = False) -> Compact | Failure | None:
    """Decide whether the next request must become shorter before it is sent; None: it may be sent as it is.

    Args:
        request: what would be sent, built from `state`.
        refused: the provider has said that it is too long, whatever the estimate says.

    Returns:
        What to leave out; or the failure when the request cannot fit and nothing more can be left out.
    """
    room = setup.room
    if room is None:
        return None
    needed = tokens_of(state, request, target)
    window = target.window or room.window
    allowed = min(int(window * room.share), max(window - request.max_tokens, window // 2))
    if needed <= allowed and not refused:
        return None
    wanted = min(int(window * room.share_after), needed // 2) if refused else int(window * room.share_after)
    scale = ratio_of(state, target) * FACTORS.get(target.provider, FACTOR_UNKNOWN)
    replaced, freed = _choose(state, setup, read, (needed - wanted) / scale)
    if replaced:
        return Compact(replaced, needed, max(needed - ceil(freed * scale), 0), allowed)
    return _too_long(needed, target, room) if refused or needed > (target.window or needed) else None


def tokens_of(state: TaskState, request: ModelRequest, target: Target) -> int:
    """Estimate the tokens of a request, corrected by what earlier calls of this task to the same model were counted as."""
    return ceil(estimate_request(request, provider=target.provider) * ratio_of(state, target))


def ratio_of(state: TaskState, target: Target) -> float:
    """Return the largest ratio of counted to estimated tokens among the last calls to this model; 1 before the first."""
    ratios = [c.counted / c.estimated for c in state.counts if c.counted and (c.provider, c.model) == (target.provider, target.model)]
    return min(max(RATIO_MIN, *ratios), RATIO_MAX) if ratios else 1.0


def can_shrink(state: TaskState, setup: Setup) -> bool:
    """Say whether anything could be left out, as far as sizes tell."""
    return setup.room is not None and any(c.payload.size > len(c.by) for c in _candidates(state, setup))


class _Candidate(NamedTuple):
    turn: int
    what: Literal["result", "text"]
    payload: Payload
    by: str
    call_id: str = ""


def _candidates(state: TaskState, setup: Setup) -> Iterator[_Candidate]:
    """Yield what may be left out, in the order in which it goes."""
    assert setup.room is not None
    finished = list(enumerate(state.exchanges[: -setup.room.turns_kept], 1))
    can_recall = setup.tool(RECALL) is not None
    for turn, exchange in finished:
        yield from _results(turn, exchange, can_recall=can_recall)
    for turn, exchange in finished:
        if exchange.text.size and not exchange.text_shown:
            yield _Candidate(turn, "text", exchange.text, f"[what was said here was left out to make room: {exchange.text.size} bytes]")


def _results(turn: int, exchange: Exchange, *, can_recall: bool) -> Iterator[_Candidate]:
    for result in exchange.results:
        if not result.shown:
            hint = f'; {RECALL} shows it: {{"call_id": "{result.call_id}"}}' if can_recall else ""
            line = f"[the result of {result.tool} was left out to make room: {result.content.size} bytes{hint}]"
            yield _Candidate(turn, "result", result.content, line, result.call_id)


def _too_long(needed: int, target: Target, room: Room) -> Failure:
    window = f"has a context window of {target.window} tokens" if target.window else "has a smaller context window"
    return Failure(
        "model_context_length",
        f"the conversation needs about {needed} tokens and {target.provider}/{target.model} {window}; everything but the task itself and the last "
        f"{room.turns_kept} turns was left out already. Ask for less in one task, attach large texts as files, or use a model with a larger window",
    )


def _choose(state: TaskState, setup: Setup, read: ReadText, tokens: float) -> tuple[tuple[Replaced, ...], int]:
    """Pick texts until so many estimated tokens are freed; returns them and what they free."""
    chosen: list[Replaced] = []
    total = 0
    for candidate in _candidates(state, setup):
        if total >= tokens or len(chosen) == REPLACED_MAX:
            break
        freed = estimate_tokens(read(candidate.payload)) - estimate_tokens(candidate.by)
        if freed > 0:
            chosen.append(Replaced(candidate.turn, candidate.what, candidate.payload.size, candidate.by, candidate.call_id))
            total += freed
    return tuple(chosen), total
