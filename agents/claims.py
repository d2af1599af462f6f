"""Calls that ask for the same thing within a tool's window: one of them runs, the others get its outcome. For tools that ask for it.

What a call asks for has a stream of its own in the log, named by its fingerprint. A claim is appended there at the version that was read, in
the same append as the intent of the call, and the outcome in the same append as the outcome: so of two runs that ask at the same time one
conflicts, reads again, and finds the other's claim. No table, lock or clock beside the log takes part.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from crewlog.events.clock import Clock
from crewlog.events.store import ANY, NO_STREAM, AppendRequest, EventStore, Recorded, Write
from crewlog.schemas.effects import EffectRef, UndoOrder, claim_stream
from crewlog.schemas.errors import ConflictError
from crewlog.schemas.ids import Hash, Stream, TaskId, task_stream
from crewlog.schemas.payload import EMPTY
from crewlog.schemas.system_events import ClaimsOpened, EffectClaimed, EffectSettled
from crewlog.schemas.task_events import ToolStarted

LOOK_AGAIN_FIRST_S: Final = 0.05
LOOK_AGAIN_MAX_S: Final = 2.0


class Claim(msgspec.Struct, frozen=True):
    """What the log says about a fingerprint: who claimed it last, and how that ended. `version` is that of the stream."""

    version: int = 0
    claimed: EffectClaimed | None = None
    settled: EffectSettled | None = None
    """None while the call that claimed it has no outcome."""

    def holder(self, key: str, now_us: int) -> EffectRef | None:
        """Return the call that keeps the one with `key` from running at a time, None when it may run.

        A call that certainly had no effect, or whose effect was taken back, keeps nobody from it.
        """
        if self.claimed is None or self.claimed.call.key == key or self.claimed.until_us <= now_us:
            return None
        return None if self.settled is not None and self.settled.status in ("error", "undone") else self.claimed.call


def fold_claims(events: Iterable[Recorded]) -> Claim:
    """Read the state of a fingerprint off its stream."""
    claim = Claim()
    for recorded in events:
        match recorded.event():
            case EffectClaimed() as claimed:
                claim = Claim(recorded.version, claimed)
            case EffectSettled() as settled if claim.claimed is not None and settled.key == claim.claimed.call.key:
                claim = msgspec.structs.replace(claim, version=recorded.version, settled=settled)
            case _:
                claim = msgspec.structs.replace(claim, version=recorded.version)
    return claim


async def read_claim(store: EventStore, clock: Clock, opened: ClaimsOpened) -> tuple[Stream, Claim]:
    """Read what the log says about a fingerprint; its stream is opened if this is the first time anybody asks.

    It is opened by an append of its own, because a stream that is opened together with a run's events is one of that run's.
    """
    stream = claim_stream(opened.tenant, opened.fingerprint)
    claim = fold_claims(await store.read_streams({stream: 0}))
    if claim.version:
        return stream, claim
    try:
        await store.append(AppendRequest((Write(stream, (opened,), NO_STREAM),), (clock.new_id(),), clock.now_us()))
    except ConflictError:
        return stream, fold_claims(await store.read_streams({stream: 0}))
    return stream, Claim(1)


def settlement(tenant: str, fingerprint: Hash, settled: EffectSettled) -> Write:
    """Return what is appended to a fingerprint's stream together with the outcome of the call that claimed it."""
    return Write(claim_stream(tenant, fingerprint), (settled,), ANY)


async def undone_claim(store: EventStore, tenant: str, order: UndoOrder) -> Write | None:
    """Return what tells those that ask for the same as an effect that was taken back; None when that effect keeps nobody from it."""
    events = await store.read_streams({task_stream(TaskId(order.task_id)): 0}, types=frozenset({ToolStarted.__name__}))
    begun = [event for recorded in events if isinstance(event := recorded.event(), ToolStarted) and event.call_id == order.call_id]
    if not begun or not begun[-1].fingerprint:
        return None
    stream = claim_stream(tenant, begun[-1].fingerprint)
    claimed = fold_claims(await store.read_streams({stream: 0})).claimed
    if claimed is None or claimed.call.key != order.key:
        return None
    return Write(stream, (EffectSettled(order.key, "undone", EMPTY, "trusted"),), ANY)
