"""Keep a conversation within the model's context window: what is left out, oldest first, and what stands in its place. Pure.

Only finished turns are touched, the last ones never, and neither is the opening message. Results of tools go first, then what the model
said; what a provider wrote for itself (reasoning, signatures) goes with the first text of its turn. The arguments of a call always stay,
and every call keeps its result, if only as one line, so that no provider finds a call without one. No model is asked for any of it. The
full texts stay in the log, and `recall_result` reads them back.

    make_room(…) -> Compact, recorded as `ContextCompacted`, folded into the state, rendered by `build_request`
"""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil
from typing import Final, Literal, NamedTuple

import msgspec

from crewlog.agents.conversation import ReadText, build_request, payloads_of
from crewlog.agents.setup import Room, Setup
from crewlog.agents.task_state import Exchange, TaskState
from crewlog.agents.tokens import FACTOR_UNKNOWN, FACTORS, estimate_request, estimate_tokens
from crewlog.schemas.payload import Payload
from crewlog.schemas.task_events import CallPurpose, Link, Replaced
from crewlog.schemas.usage import OFFLINE
from crewlog.schemas.values import Failure

RECALL: Final = "recall_result"
"""The tool that shows a result that was left out."""
REPLACED_MAX: Final = 256
"""Texts one event replaces, so that it stays small; what is left follows in the next one."""
RATIO_MIN: Final = 0.5
RATIO_MAX: Final = 3.0
"""Bounds of counted to estimated tokens: beyond them a count is a mistake rather than a measurement."""
TOKENS_PER_BYTE_MAX: Final = 1.25
"""What a byte of text is estimated at, at most: 0.87 for punctuation and digits, times the largest factor of a provider."""
TOKENS_AROUND_MAX: Final = 50
"""What stands around one text, at most: its message, block, ids and names."""
TOKENS_FIRST_MAX: Final = 1_000
"""What a provider puts before everything, at most."""
TOKENS_SMALL: Final = 20_000
"""A request that cannot exceed this is sent without an estimate, unless the window is smaller still."""


class Compact(msgspec.Struct, frozen=True):
    """Leave these texts out. Tokens are estimates of the whole request; `tokens_max` is what it should have stayed below."""

    reason: Literal["room", "refused"]
    replaced: tuple[Replaced, ...]
    tokens_before: int
    tokens_after: int
    tokens_max: int


def make_room(
    state: TaskState, setup: Setup, read: ReadText, *, link: int = 0, purpose: CallPurpose = "turn", is_too_long: bool = False
) -> Compact | Failure | int:
    """Decide whether the conversation must become shorter before the next request is sent.

    Args:
        read: returns the text of a payload.
        link: place in the chain of the model that is about to be asked.
        purpose: as in `build_request`.
        is_too_long: the provider has said so, whatever the estimate says.

    Returns:
        What to leave out; or the failure when the request cannot fit and nothing more can be left out; or, when it may be sent as it is,
        its estimated tokens, uncorrected, and 0 for one that is too short to need an estimate.
    """
    room, target = setup.room, state.chain[link]
    if room is None or target.provider == OFFLINE:
        return 0  # the offline rules have no window, and infer their progress from all of it
    window = target.window or room.window
    allowed = min(int(window * room.share), max(window - setup.max_tokens, window // 2))
    ratio = ratio_of(state, target)
    if not is_too_long and _tokens_max(state) * max(ratio, 1.0) < min(allowed, TOKENS_SMALL):
        return 0
    estimate = estimate_request(build_request(state, setup, read, link=link, purpose=purpose), provider=target.provider)
    needed = ceil(estimate * ratio)
    if needed <= allowed and not is_too_long:
        return estimate
    wanted = int(allowed * room.share_after / room.share)
    if is_too_long:
        wanted = min(wanted, needed // 2)
    scale = ratio * FACTORS.get(target.provider, FACTOR_UNKNOWN)
    replaced, freed = _choose(state, setup, read, (needed - wanted) / scale)
    if replaced:
        return Compact("refused" if is_too_long else "room", replaced, needed, max(needed - ceil(freed * scale), 0), allowed)
    return _too_long(needed, target, room) if is_too_long or needed > (target.window or needed) else estimate


def can_shrink(state: TaskState, setup: Setup) -> bool:
    """Say whether anything could be left out, as far as sizes tell."""
    return setup.room is not None and any(c.payload.size > len(c.by) for c in _candidates(state, setup))


def ratio_of(state: TaskState, link: Link) -> float:
    """Return the largest ratio of counted to estimated tokens among the last calls to this model; 1 before the first."""
    ratios = [c.counted / c.estimated for c in state.counts if c.counted and (c.provider, c.model) == (link.provider, link.model)]
    return min(max(RATIO_MIN, *ratios), RATIO_MAX) if ratios else 1.0


def _tokens_max(state: TaskState) -> float:
    """Bound a request's estimate from above without looking at any text."""
    sizes = [payload.size for payload in payloads_of(state)]
    given = state.setup.size if state.setup is not None else 0
    return TOKENS_FIRST_MAX + TOKENS_AROUND_MAX * len(sizes) + TOKENS_PER_BYTE_MAX * (given + sum(sizes))


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


def _too_long(needed: int, link: Link, room: Room) -> Failure:
    window = f"has a context window of {link.window} tokens" if link.window else "has a smaller context window"
    return Failure(
        "model_context_length",
        f"the conversation needs about {needed} tokens and {link} {window}; everything but the task itself and the last "
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
