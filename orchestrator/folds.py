"""Cached folds of runs: read what is new in many runs at once, never fold an event twice; and with it what operators have in force.

The cache is only ever behind the log, never wrong: every append carries the version of the fold it was decided on.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, TypeVar

from crewlog.events import controls
from crewlog.events.controls import CONTROL_TYPES, Controls
from crewlog.events.prefix import FORKS, origin_of, read_prefix
from crewlog.events.store import EventStore, Recorded
from crewlog.orchestrator.run import RunState, active_tasks, evolve, initial_state
from crewlog.schemas.errors import ContractError
from crewlog.schemas.ids import CONTROL_STREAM, RunId, Stream, TaskId, run_stream, task_stream
from crewlog.schemas.run_events import RUN_EVENTS, RunEvent
from crewlog.schemas.task_events import NOTICED_TYPES

RUN_TYPES: Final = frozenset(cls.__name__ for cls in RUN_EVENTS)
WATCHED_TYPES: Final = RUN_TYPES | NOTICED_TYPES | CONTROL_TYPES
"""One filter for all categories of streams: none holds types of another."""

log = logging.getLogger(__name__)

_T = TypeVar("_T")


class Fold:
    """One run as this process knows it: its state, and how far it has read."""

    __slots__ = ("cursors", "run_id", "state", "stream", "version")

    def __init__(self, run_id: RunId) -> None:
        self.run_id = run_id
        self.stream = run_stream(run_id)
        self.state = initial_state()
        self.version = 0
        self.cursors: dict[TaskId, int] = {}
        """Task -> version of its stream up to which all noticed events were dealt with."""

    def apply(self, recorded: Recorded) -> None:
        """Fold one event of the run stream.

        Raises:
            ContractError: this program does not know the event; a newer one must decide about the run.
        """
        if recorded.version <= self.version:
            return
        event = recorded.event()
        if not isinstance(event, RunEvent):
            raise ContractError(f"{recorded.stream} version {recorded.version} is a {recorded.type} v{recorded.schema_version}, unknown to this program")
        self.state = evolve(self.state, event)
        self.version = recorded.version

    def advance_to(self, state: RunState, version: int) -> None:
        """Take over the state behind this process's own append."""
        self.state, self.version = state, version

    def watched(self) -> dict[Stream, TaskId]:
        """Return the task streams that may hold news."""
        return {task_stream(task.task_id): task.task_id for task in active_tasks(self.state)}


class Folds:
    """The folds of open runs, least recently used ones dropped; and which runs are known to be over."""

    def __init__(self, store: EventStore, *, open_max: int = 12_288, ended_max: int = 65_536) -> None:
        self._store = store
        self.controls = Controls()
        """What operators have in force, as of the last read of anything."""
        self.on_controls: Callable[[], None] = lambda: None
        """Called behind each read that brought a command; set by whoever follows them."""
        self._open: OrderedDict[RunId, Fold] = OrderedDict()
        self._ended: OrderedDict[RunId, None] = OrderedDict()
        self._open_max, self._ended_max = open_max, ended_max

    def get(self, run_id: RunId) -> Fold:
        """Return the fold of a run, an empty one when it is not cached."""
        return self._open.get(run_id) or Fold(run_id)

    def has_ended(self, run_id: RunId) -> bool:
        """Say whether the run is known to be over: wakes for it may be ignored."""
        return run_id in self._ended

    def keep(self, fold: Fold) -> None:
        """Cache a fold, or only remember that its run is over."""
        if fold.state.status == "open":
            _put(self._open, fold.run_id, fold, self._open_max)
        else:
            self._open.pop(fold.run_id, None)
            if fold.state.status != "new":
                _put(self._ended, fold.run_id, None, self._ended_max)

    def forget(self, run_id: RunId) -> None:
        """Drop a fold that may be wrong; it is read from the log again."""
        self._open.pop(run_id, None)

    async def read(self, folds: Sequence[Fold]) -> dict[RunId, list[Recorded]]:
        """Bring folds, and what operators have in force, up to date with one query for all; returns the noticed task events of each run in the
        order of the log.

        A second query follows only for tasks that another orchestrator opened meanwhile, or that an empty fold learned of.
        A run that cannot be folded is logged and missing from the answer.
        """
        news: dict[RunId, list[Recorded]] = {fold.run_id: [] for fold in folds}
        seen: set[Stream] = set()
        left: Iterable[Fold] = folds
        while left:
            after: dict[Stream, int] = {CONTROL_STREAM: self.controls.version}
            owners: dict[Stream, Fold] = {}
            for fold in left:
                unread = {stream: fold.cursors.get(task_id, 1) for stream, task_id in fold.watched().items() if stream not in seen}
                after |= {fold.stream: fold.version} | unread
                owners |= dict.fromkeys((fold.stream, *unread), fold)
            seen |= after.keys()
            for recorded in await self._store.read_streams(after, types=WATCHED_TYPES):
                if recorded.stream == CONTROL_STREAM:
                    self._take_command(recorded)
                    continue
                if recorded.type in FORKS and not (fold := owners[recorded.stream]).version:
                    fold.state = await base_state(self._store, recorded)
                _take(recorded, owners[recorded.stream], news)
            left = [fold for fold in left if fold.run_id in news and not seen.issuperset(fold.watched())]
        return news

    async def read_controls(self) -> Controls:
        """Return what operators have in force now.

        Raises:
            Unavailable: the log cannot be reached.
        """
        for recorded in await self._store.read_streams({CONTROL_STREAM: self.controls.version}):
            self._take_command(recorded)
        return self.controls

    def _take_command(self, recorded: Recorded) -> None:
        before, self.controls = self.controls, controls.evolve(self.controls, recorded)
        if self.controls is not before:
            self.on_controls()

    async def states(self, run_ids: Iterable[RunId]) -> Mapping[RunId, RunState]:
        """Return what the log says about runs now, without caching it; unknown runs are missing."""
        states: dict[RunId, RunState] = {}
        versions: dict[Stream, int] = {}
        for run_id in run_ids:
            fold = self.get(run_id)
            states[run_id], versions[fold.stream] = fold.state, fold.version
        streams = {run_stream(run_id): run_id for run_id in states}
        for recorded in await self._store.read_streams(versions, types=RUN_TYPES):
            event = recorded.event()
            if isinstance(event, RunEvent):
                run_id = streams[recorded.stream]
                if recorded.type in FORKS:
                    states[run_id] = await base_state(self._store, recorded)
                states[run_id] = evolve(states[run_id], event)
        return {run_id: state for run_id, state in states.items() if state.status != "new"}


async def base_state(store: EventStore, forked: Recorded) -> RunState:
    """Return the state that a forked run goes on from: that of its parent behind the last event that both share."""
    origin = origin_of(forked)
    return folded(() if origin is None else await read_prefix(store, origin, types=RUN_TYPES))


def folded(events: Iterable[Recorded]) -> RunState:
    """Fold what events of run streams say, a fork's behind those that it shares; all others are passed over."""
    state = initial_state()
    for recorded in events:
        if recorded.type in RUN_TYPES and isinstance(event := recorded.event(), RunEvent):
            state = evolve(state, event)
    return state


def _take(recorded: Recorded, fold: Fold, news: dict[RunId, list[Recorded]]) -> None:
    if fold.run_id not in news:
        return
    try:
        if recorded.stream == fold.stream:
            fold.apply(recorded)
        else:
            news[fold.run_id].append(recorded)
    except ContractError as error:
        log.warning("run %s is left alone: %s", fold.run_id, error)
        del news[fold.run_id]


def _put(cache: OrderedDict[RunId, _T], key: RunId, value: _T, size_max: int) -> None:
    cache[key] = value
    cache.move_to_end(key)
    if len(cache) > size_max:
        cache.popitem(last=False)
