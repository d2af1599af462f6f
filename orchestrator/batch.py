"""Several decisions about one run, merged into one append. Pure: the driver performs what a batch says."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, NamedTuple
from uuid import UUID

from crewlog.events.clock import Clock
from crewlog.events.controls import NO_CONTROLS, Controls
from crewlog.events.store import AppendRequest, Recorded, Write
from crewlog.orchestrator.commands import ApprovalAsked, AttemptEnded, Command, HandedBack, TaskEnded, Tick
from crewlog.orchestrator.decide import decide
from crewlog.orchestrator.dispatch import Dispatch
from crewlog.orchestrator.draft import Decision
from crewlog.orchestrator.interventions import due_interventions
from crewlog.orchestrator.planning import Kinds
from crewlog.orchestrator.run import RunState
from crewlog.schemas.errors import ContractError
from crewlog.schemas.ids import RunId, Stream, TaskId, category, read_id, run_stream
from crewlog.schemas.run_events import RunEvent
from crewlog.schemas.task_events import ApprovalRequested, AttemptFailed, TaskCompleted, TaskHandedBack

STREAMS_PER_BATCH_MAX: Final = 16
"""A batch takes no further command once it writes to this many task streams; what is left follows in the next append."""


class Asked(NamedTuple):
    """A command from outside, and who waits for the state behind it."""

    command: Command
    answer: asyncio.Future[RunState]


class Batch:
    """What one append will hold."""

    def __init__(self, state: RunState) -> None:
        self.state = state
        self.events: list[RunEvent] = []
        self.writes: dict[Stream, Write] = {}
        self.dispatches: list[Dispatch] = []
        self.blobs: list[bytes] = []
        self.handled: list[Recorded] = []
        """Task events it deals with, whether they led to anything or not."""
        self.verdicts: list[tuple[Asked, ContractError | None]] = []
        self._cause: UUID | None = None

    @property
    def is_empty(self) -> bool:
        """True when nothing was decided."""
        return not self.events

    @property
    def is_full(self) -> bool:
        """True when further commands must wait for the next append."""
        return len(self.writes) >= STREAMS_PER_BATCH_MAX

    def add(self, decision: Decision, cause: UUID | None = None) -> None:
        """Put a decision behind those that are there. `cause` is the task event that led to it; the last one names the append's cause."""
        self.state = decision.state
        self.events += decision.events
        for write in decision.writes:
            before = self.writes.get(write.stream)
            self.writes[write.stream] = write if before is None else before._replace(events=(*before.events, *write.events))
        self.dispatches += decision.dispatches
        self.blobs += decision.blobs
        if decision.events and cause is not None:
            self._cause = cause

    def request(self, run_id: RunId, version: int, now_us: int, clock: Clock) -> AppendRequest:
        """Make the append: the run stream at its expected version first, then the task streams."""
        writes = (Write(run_stream(run_id), self.events, version), *self.writes.values())
        return AppendRequest(
            writes=writes,
            event_ids=[clock.new_id() for write in writes for _ in write.events],
            occurred_us=now_us,
            run_id=run_id,
            task_id=task_of(next(iter(self.writes))) if len(self.writes) == 1 else None,
            causation_id=self._cause,
        )


def decide_batch(state: RunState, news: Sequence[Recorded], asked: Sequence[Asked], now_us: int, kinds: Kinds, controls: Controls = NO_CONTROLS) -> Batch:
    """Decide about what is paused and in quarantine, then about task events in the order of the log, then about what is due, then about
    commands from outside.

    Commands from outside see everything that came before them; while a batch is full they wait for the next one.
    """
    batch = Batch(state)
    for intervention in due_interventions(state, controls):
        batch.add(decide(intervention, batch.state, now_us, kinds))
    for recorded in news:
        if batch.is_full:
            return batch
        batch.add(decide(command_of(recorded), batch.state, now_us, kinds), recorded.event_id)
        batch.handled.append(recorded)
    batch.add(decide(Tick(), batch.state, now_us, kinds))
    for ask in asked:
        if batch.is_full:
            return batch
        try:
            if batch.state.status != "new":
                batch.add(decide(ask.command, batch.state, now_us, kinds))
            batch.verdicts.append((ask, None))
        except ContractError as error:
            batch.verdicts.append((ask, error))
    return batch


def command_of(recorded: Recorded) -> Command:
    """Turn a noticed event of a task stream into the command it stands for.

    Raises:
        ContractError: it is none, or written by a newer program.
    """
    task_id = task_of(recorded.stream)
    event = recorded.event()
    match event:
        case TaskCompleted():
            return TaskEnded(task_id, event)
        case AttemptFailed():
            return AttemptEnded(task_id, event)
        case ApprovalRequested():
            return ApprovalAsked(task_id, event)
        case TaskHandedBack():
            return HandedBack(task_id, event)
        case _:
            raise ContractError(f"{recorded.stream} version {recorded.version}: {recorded.type} v{recorded.schema_version} is nothing a run reacts to")


def task_of(stream: Stream) -> TaskId:
    """Return the task whose stream this is."""
    assert category(stream) == "task", stream
    return TaskId(read_id(stream.removeprefix("task/")))
