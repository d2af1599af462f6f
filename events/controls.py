"""What operators have paused, quarantined and drained: a pure fold of one short stream, and the names of the scopes it is about.

Every process that starts work keeps such a fold and reads what is new of the stream before it starts more. A message on the bus only
makes it look sooner: whoever starts late, or was cut off when it was sent, reads the same stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

import msgspec
from msgspec.structs import replace

from crewlog.events.store import Recorded
from crewlog.schemas.ids import RunId, id_text
from crewlog.schemas.system_events import ScopePaused, ScopeQuarantined, ScopeReleased, ScopeResumed, WorkerDrained

CONTROL_TYPES: Final = frozenset(cls.__name__ for cls in (ScopePaused, ScopeResumed, ScopeQuarantined, ScopeReleased, WorkerDrained))

FRESH_S: Final = 1.0
"""Nothing is started by what was read longer ago than this, in seconds: a command takes effect within twice that."""
ENDED_MAX: Final = 10_000
"""Commands that took something back and whose author is remembered."""

Measure = Literal["pause", "quarantine"]


class Control(msgspec.Struct, frozen=True):
    """One command. `number` is the version of the stream of controls that it made."""

    scope: str
    number: int
    actor: str
    reason: str
    since_us: int


class Controls(msgspec.Struct, frozen=True):
    """Everything in force behind `version` of the stream of controls."""

    version: int = 0
    pauses: Mapping[str, Control] = {}
    quarantines: Mapping[str, Control] = {}
    drained: frozenset[str] = frozenset()
    ended: Mapping[tuple[Measure, str], Control] = {}
    """Measure and scope -> the last command that took it back, for those that have to say who did."""


NO_CONTROLS: Final = Controls()


def evolve(controls: Controls, recorded: Recorded) -> Controls:
    """Apply one event of the stream of controls; one that was applied before, or that this program does not know, changes nothing."""
    if recorded.version <= controls.version:
        return controls
    event, controls = recorded.event(), replace(controls, version=recorded.version)
    match event:
        case ScopePaused():
            return replace(controls, pauses={**controls.pauses, event.scope: _control(recorded, event)})
        case ScopeQuarantined():
            return replace(controls, quarantines={**controls.quarantines, event.scope: _control(recorded, event)})
        case ScopeResumed():
            return replace(controls, pauses=_without(controls.pauses, event.scope), ended=_ended(controls, "pause", _control(recorded, event)))
        case ScopeReleased():
            return replace(controls, quarantines=_without(controls.quarantines, event.scope), ended=_ended(controls, "quarantine", _control(recorded, event)))
        case WorkerDrained():
            return replace(controls, drained=controls.drained | {event.worker})
        case _:
            return controls


def run_scope(run_id: RunId) -> str:
    """Name one run as what a command is about."""
    return "run/" + id_text(run_id)


def tenant_scope(tenant: str) -> str:
    """Name all runs of a tenant."""
    return f"tenant/{tenant}"


def kind_scope(kind: str) -> str:
    """Name all tasks of an agent kind."""
    return f"kind/{kind}"


def worker_scope(worker: str) -> str:
    """Name one worker."""
    return f"worker/{worker}"


def is_kind(scope: str) -> bool:
    """Say whether a scope is an agent kind: its pause leaves a run's other tasks alone."""
    return scope.startswith("kind/")


def _control(recorded: Recorded, event: ScopePaused | ScopeResumed | ScopeQuarantined | ScopeReleased) -> Control:
    return Control(event.scope, recorded.version, event.actor, event.reason, recorded.occurred_us)


def _without(controls: Mapping[str, Control], scope: str) -> Mapping[str, Control]:
    return {name: control for name, control in controls.items() if name != scope}


def _ended(controls: Controls, measure: Measure, control: Control) -> Mapping[tuple[Measure, str], Control]:
    ended = {key: value for key, value in controls.ended.items() if key != (measure, control.scope)} | {(measure, control.scope): control}
    return dict(list(ended.items())[-ENDED_MAX:]) if len(ended) > ENDED_MAX else ended
