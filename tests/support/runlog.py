"""A run with its log in memory: agents say something, the orchestrator decides, and both stand in the streams as the log would hold them."""

from __future__ import annotations

from collections import defaultdict
from uuid import UUID

from support.decider import Spec

from crewlog.events.store import Recorded
from crewlog.orchestrator.batch import command_of
from crewlog.orchestrator.commands import Command
from crewlog.orchestrator.draft import Decision
from crewlog.orchestrator.run import RunState, evolve, initial_state
from crewlog.schemas.codec import Event, encode, type_name
from crewlog.schemas.ids import Stream, TaskId, run_stream, task_stream
from crewlog.schemas.run_events import RUN_EVENTS
from crewlog.schemas.task_events import TERMINAL_TYPES, TaskEvent


class RunLog:
    """Streams of one run."""

    def __init__(self) -> None:
        self.spec = Spec()
        self.streams: dict[Stream, list[Recorded]] = defaultdict(list)
        self._position = 0

    @property
    def state(self) -> RunState:
        """The run as decided so far."""
        return self.spec.state

    def says(self, task_id: TaskId, event: TaskEvent, *, after_s: float = 1.0) -> Decision:
        """An agent appends an event that the orchestrator reacts to."""
        recorded = self._append(task_stream(task_id), event)
        return self.decides(command_of(recorded), after_s=after_s)

    def decides(self, command: Command, *, after_s: float = 1.0) -> Decision:
        """Decide a command and append what follows."""
        decision = self.spec.when(command, after_s=after_s).last
        for event in decision.events:
            self._append(run_stream(self.state.run_id), event)
        for write in decision.writes:
            assert write.expected in (-1, len(self.streams[write.stream])), f"{write.stream} is not at {write.expected}"
            for task_event in write.events:
                self._append(write.stream, task_event)
        return decision

    def is_closed(self, task_id: TaskId) -> bool:
        """Say whether the task has its end."""
        events = self.streams[task_stream(task_id)]
        return bool(events) and events[-1].type in TERMINAL_TYPES

    @property
    def run_events(self) -> list[Recorded]:
        """The run stream."""
        return self.streams[run_stream(self.state.run_id)]

    @property
    def task_events(self) -> list[Recorded]:
        """All task streams."""
        return [r for stream, events in self.streams.items() if stream.startswith("task/") for r in events]

    def folded(self) -> RunState:
        """Fold the run stream from its stored bytes."""
        state = initial_state()
        for recorded in self.run_events:
            event = recorded.event()
            assert isinstance(event, RUN_EVENTS)
            state = evolve(state, event)
        return state

    def _append(self, stream: Stream, event: Event) -> Recorded:
        events = self.streams[stream]
        assert not events or events[-1].type not in TERMINAL_TYPES, f"append behind the end of {stream}"
        self._position += 1
        recorded = Recorded(
            self._position, stream, len(events) + 1, UUID(int=self._position), type_name(event), event.schema_version, encode(event), self.spec.now_us
        )
        events.append(recorded)
        return recorded
