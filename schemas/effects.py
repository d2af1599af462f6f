"""Values of the effect ledger: what a tool call does to the world, how it is taken back, and which call is meant.

Two names of an effect. Its *key* (`ids.idempotency_key`) is derived from run, task and call: the same for every try of that one call, and
what receivers get. Its *fingerprint* is derived from tenant, agent kind, tool and arguments without nonces: the same for calls that ask for the
same thing, in whichever run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal
from uuid import UUID

import msgspec

from crewlog.schemas.ids import Hash, Stream
from crewlog.schemas.payload import content_hash

Effect = Literal["read", "idempotent", "compensable", "irreversible"]
"""What happens when a worker died between a call's intent and its outcome:

read, idempotent   it runs again, under the same key
compensable        its probe says whether it happened; without one, or when that does not know, it is taken back; failing that, a person is asked
irreversible       its probe says whether it happened; without one, or when that does not know, a person is asked
"""

ProbeVerdict = Literal["happened", "did_not_happen", "unknown"]

COMPENSATION_BYTES_MAX: Final = 4096
"""The arguments of a compensation as JSON: ids of what was made, not the thing itself."""


class Compensation(msgspec.Struct, frozen=True, omit_defaults=True):
    """How one effect is taken back: call `tool` of the same agent kind with `arguments` (JSON). Recorded with the effect.

    It must do no harm to call it twice, or when there is nothing to take back.
    """

    tool: str
    version: str
    """Of the tool, when the arguments were written."""
    arguments: str
    resource: str = ""
    """What the effect made, for people: the id or address under which it is found."""
    fingerprint: Hash = Hash("")
    """Of the call that takes it back: whoever makes that call has cleaned up."""


@dataclass(frozen=True, slots=True)
class UndoOrder:
    """Take back one effect of a run that has ended: what a task of its rollback is about. Written by the orchestrator alone.

    A plain dataclass, because both pydantic (messages) and msgspec (events) understand it.
    """

    run_id: UUID
    task_id: UUID
    call_id: str
    key: str
    """Of the effect. The key under which it is taken back is derived from it, so that no two rollbacks do it under different ones."""
    effect_tool: str
    tool: str
    version: str
    arguments: str
    resource: str = ""
    worker: str = ""
    """Nobody recorded the outcome, and this worker ran it: should it still be at it, it must come to its end first."""


class LeftEffect(msgspec.Struct, frozen=True, omit_defaults=True):
    """An effect that a rollback cannot take back, and why: it is irreversible, nobody knows whether it happened nor how to take it back, nothing
    was recorded that would, or there are no agents of its kind any more."""

    task_id: UUID
    call_id: str
    key: str
    tool: str
    why: Literal["irreversible", "unknown", "no_compensation", "no_agent"]
    resource: str = ""
    run_id: UUID | None = None
    """The run that had it; None: the one that is rolled back."""


class RollbackPage(msgspec.Struct, frozen=True):
    """Part of what a rollback is to do, as much as one event holds: `orders` in the order in which they are carried out, each by the agent kind at
    the same place of `kinds`; `more` effects are behind it."""

    orders: tuple[UndoOrder, ...]
    kinds: tuple[str, ...]
    left: tuple[LeftEffect, ...]
    more: int


class Rollback(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a rollback is to do: `orders` in the order in which they are carried out, the last effect first."""

    run_id: UUID
    """The run whose effects are taken back."""
    number: int
    orders: tuple[UndoOrder, ...]
    kinds: tuple[str, ...]
    """Agent kind that carries out each order."""
    left: tuple[LeftEffect, ...]
    actor: str
    reason: str
    more: int = 0
    """Effects beyond what one event can hold. They follow page by page; in a rollback that is not `is_paged` they are for the next rollback."""
    is_paged: bool = False


class EffectRef(msgspec.Struct, frozen=True):
    """The call that had an effect."""

    run_id: UUID
    task_id: UUID
    call_id: str
    key: str


def fingerprint(tenant: str, kind: str, tool: str, arguments: Mapping[str, Any]) -> Hash:
    """Name what a call asks for, whoever asks: sha-256 over tenant, kind, tool and arguments with sorted keys.

    Args:
        arguments: as the tool takes them, defaults filled in, without those that it declares as nonces.
    """
    return content_hash(msgspec.json.encode([tenant, kind, tool, arguments], order="sorted"))


def claim_stream(tenant: str, effect: Hash) -> Stream:
    """Name the stream in which calls for the same thing find each other: the one who opens a claim there may run."""
    return Stream(f"claim/{tenant}/{effect}")
