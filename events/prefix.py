"""Streams and runs that go on from the beginning of others: a fork refers to what it shares, and whoever reads it follows the reference.

The first event of a forked stream names the stream it goes on from and how many of its events it shares; these may be references in turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from crewlog.events.store import EventStore, Recorded
from crewlog.schemas.ids import RunId, Stream, run_stream, task_stream
from crewlog.schemas.run_events import RunForked, RunSubmitted
from crewlog.schemas.task_events import TaskForked

FORKS = frozenset({RunForked.__name__, TaskForked.__name__})
"""Types of the events that refer to another stream."""


class Origin(NamedTuple):
    """The events of another stream that a fork shares: the first `version` ones."""

    stream: Stream
    version: int


def origin_of(recorded: Recorded) -> Origin | None:
    """Return what an event refers to, None when it is not the beginning of a fork."""
    if recorded.type not in FORKS:
        return None
    event = recorded.event()
    if isinstance(event, RunForked):
        return Origin(run_stream(event.parent), event.parent_version)
    return Origin(task_stream(event.parent), event.version) if isinstance(event, TaskForked) else None


async def read_prefix(store: EventStore, origin: Origin, *, types: frozenset[str] | None = None) -> list[Recorded]:
    """Read what a fork shares, in the order in which it happened.

    Args:
        types: only events of these types, those of forks among them; None for all.
    """
    parts: list[list[Recorded]] = []
    wanted: Origin | None = origin
    while wanted is not None:
        stream, version = wanted
        own = [r for r in await store.read_streams({stream: 0}, types=types) if r.version <= version]
        parts.append(own)
        wanted = origin_of(own[0]) if own else None
    return [recorded for own in reversed(parts) for recorded in own]


async def read_whole(store: EventStore, stream: Stream, *, types: frozenset[str] | None = None) -> list[Recorded]:
    """Read a stream and, in front of its own events, those that it shares."""
    own = list(await store.read_streams({stream: 0}, types=types))
    origin = origin_of(own[0]) if own else None
    return own if origin is None else [*await read_prefix(store, origin, types=types), *own]


async def read_history(store: EventStore, run_id: RunId) -> list[Recorded]:
    """Read all streams of a run in the order of the log; for a fork, behind the events that it shares."""
    own = list(await store.read_run(run_id))
    forked = fork_of(own)
    return own if forked is None else [*shared(await read_history(store, forked.parent), forked), *own]


def fork_of(own: Sequence[Recorded]) -> RunForked | None:
    """Return how a run began that is a fork, from its own events."""
    event = own[0].event() if own and own[0].type in FORKS else None
    return event if isinstance(event, RunForked) else None


def tenant_of(events: Sequence[Recorded]) -> str | None:
    """Return whose run a history is, None when it is empty."""
    first = events[0].event() if events else None
    return first.tenant if isinstance(first, RunSubmitted | RunForked) else None


def shared(parent: Iterable[Recorded], forked: RunForked) -> list[Recorded]:
    """Return the events of a parent that a fork shares. Counted, not told by positions: in a log that it was imported to, those are others."""
    until: dict[Stream, int] = {task_stream(task.parent): task.version for task in forked.tasks}
    return [r for r in islice(parent, forked.at) if r.version <= until.get(r.stream, r.version)]


async def read_family(store: EventStore, run_id: RunId) -> list[Recorded]:
    """Read the events of a run and, of each run that it goes on from, in front of them, all up to the place of the fork: what a log must have so
    that it can be read there."""
    own = list(await store.read_run(run_id))
    forked = fork_of(own)
    return own if forked is None else [*await _beginning(store, forked), *own]


async def _beginning(store: EventStore, forked: RunForked) -> list[Recorded]:
    own = list(await store.read_run(forked.parent))
    before = fork_of(own)
    if before is None:
        return own[: forked.at]
    inherited = shared(await read_history(store, before.parent), before)
    return [*await _beginning(store, before), *own[: forked.at - len(inherited)]]


def successors(events: Iterable[Recorded]) -> Mapping[Stream, Stream]:
    """Map each stream that events of a history refer to onto the one that goes on from it in the end."""
    follows = {origin.stream: recorded.stream for recorded in events if (origin := origin_of(recorded)) is not None}
    return {stream: _last(stream, follows) for stream in follows}


def _last(stream: Stream, follows: Mapping[Stream, Stream]) -> Stream:
    while stream in follows:
        stream = follows[stream]
    return stream
