"""Who is next: tasks that wait for room with the agents of one kind, in fair order. Pure but for the places it keeps.

Tenants take turns, then the lanes of a tenant (`high`, `normal`, `low` as 8 : 3 : 1), then the runs in a lane; within a run the first
come is the first served. So a priority orders a tenant's own work and buys it nothing from others, and a run of a thousand steps does not
stand before a run of one.

Each level is start-time fair queueing (Goyal, Vin and Chen, 1996): whoever is served moves forward in virtual time by one over its
weight, and the one who is furthest behind is next. A tenant that was away comes back behind the others by at most a burst: as many turns
as there are slots, and `BURST` where that is more. What it left unused a moment ago it may have now; what it left unused an hour ago is
gone. So a run of a quiet tenant that can fill all slots gets every slot that becomes free, and has them all after one task of the others:
with tasks of one length it takes at most twice as long as alone. If it shared each turn it would wait for two.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Container
from math import ceil
from typing import Final, NamedTuple

from crewlog.orchestrator.dispatch import Dispatch
from crewlog.schemas.ids import RunId, TaskId

LANE_WEIGHTS: Final = {"high": 8, "normal": 3, "low": 1}
BURST: Final = 16.0
"""Turns that a tenant may be behind the others when it comes back, at least."""
REMEMBERED_MAX: Final = 1024
"""Former members of a level whose places are kept before those that no longer matter are dropped."""
DROPPED_MAX: Final = 1024
"""Tasks that are no longer wanted and stand in line all the same, at least, before they are taken out of it: nobody's turn may ever come."""


class Waiting(NamedTuple):
    """A task that is dispatched by the log and not yet on its queue."""

    tenant: str
    run_id: RunId
    dispatch: Dispatch
    nonce: str = ""
    """Makes the message another one than those sent for this dispatch before; empty: it is the first, or the same."""


class _Turns:
    """Members that take turns, each in the heap once: by virtual start, then by who came first."""

    def __init__(self, burst: float) -> None:
        self.burst = burst
        self._now = 0.0
        self._heap: list[tuple[float, int, str]] = []
        self._left: dict[str, float] = {}
        """Members that have nothing waiting -> their virtual time."""
        self._counter = itertools.count()

    def join(self, member: str) -> None:
        start = max(self._left.pop(member, -self.burst), self._now - self.burst)
        heapq.heappush(self._heap, (start, next(self._counter), member))

    def first(self) -> str:
        return self._heap[0][2]

    def served(self, cost: float, *, stays: bool) -> None:
        """Move the first member forward; one that does not stay has nothing waiting any more."""
        start, _, member = self._heap[0]
        self._now = max(self._now, start)
        if stays:
            heapq.heapreplace(self._heap, (start + cost, next(self._counter), member))
            return
        heapq.heappop(self._heap)
        self._leaves(member, start + cost)

    def keep(self, members: Container[str]) -> None:
        """Let go of all members but these."""
        for start, _, member in self._heap:
            if member not in members:
                self._leaves(member, start)
        self._heap = [entry for entry in self._heap if entry[2] in members]
        heapq.heapify(self._heap)

    def _leaves(self, member: str, at: float) -> None:
        self._left[member] = at
        if len(self._left) > REMEMBERED_MAX:
            self._left = {name: place for name, place in self._left.items() if place > self._now - self.burst}


class _Level:
    """One level of the tree: its members are levels, or in the last one queues."""

    def __init__(self, burst: float = 0.0) -> None:
        self.turns = _Turns(burst)
        self.members: dict[str, _Level] = {}
        self.items: deque[TaskId] = deque()
        self.waiting = 0
        """Items below it that are still wanted."""

    def put(self, path: tuple[str, ...], task_id: TaskId) -> None:
        self.waiting += 1
        if not path:
            self.items.append(task_id)
            return
        member = self.members.get(path[0])
        if member is None:
            member = self.members[path[0]] = _Level()
            self.turns.join(path[0])
        member.put(path[1:], task_id)

    def take(self, wanted: dict[TaskId, Waiting]) -> tuple[TaskId, bool]:
        """Remove the next item, and say whether it is wanted; one that is not costs nobody its turn."""
        if not self.members:
            task_id = self.items.popleft()
            is_wanted = task_id in wanted
        else:
            name = self.turns.first()
            member = self.members[name]
            task_id, is_wanted = member.take(wanted)
            is_left = not (member.members or member.items)
            self.turns.served(1 / LANE_WEIGHTS.get(name, 1) if is_wanted else 0.0, stays=not is_left)
            if is_left:
                del self.members[name]
        self.waiting -= is_wanted
        return task_id, is_wanted

    def forget(self, path: tuple[str, ...]) -> None:
        """Take note that one of the items under a path is no longer wanted."""
        self.waiting -= 1
        if path:
            self.members[path[0]].forget(path[1:])

    def keep(self, wanted: Container[TaskId]) -> bool:
        """Take out what is not wanted; returns whether anything is left."""
        self.items = deque(task_id for task_id in self.items if task_id in wanted)
        self.members = {name: member for name, member in self.members.items() if member.keep(wanted)}
        self.turns.keep(self.members)
        return bool(self.members or self.items)


class FairQueue:
    """The tasks of one kind that wait for room."""

    def __init__(self) -> None:
        self._root = _Level(BURST)
        self._waiting: dict[TaskId, Waiting] = {}
        self._dropped = 0
        self.bytes = 0
        """Of the messages that are kept with their entries."""

    def fit(self, slots: int) -> None:
        """Let a tenant that comes back be behind by as many turns as there are slots."""
        self._root.turns.burst = max(BURST, float(slots))

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, task_id: TaskId) -> bool:
        return task_id in self._waiting

    def push(self, entry: Waiting) -> None:
        """Let a task wait; one that waits already keeps its place and is sent as it was dispatched last."""
        task_id = entry.dispatch.task_id
        before = self._waiting.get(task_id)
        if before is None:
            self._root.put(_path(entry), task_id)
        self.bytes += _bytes(entry) - (0 if before is None else _bytes(before))
        self._waiting[task_id] = entry

    def pop(self) -> Waiting:
        """Remove the next task.

        Raises:
            IndexError: nothing waits.
        """
        if not self._waiting:
            raise IndexError("pop from an empty queue")
        while True:
            task_id, is_wanted = self._root.take(self._waiting)
            if is_wanted:
                entry = self._waiting.pop(task_id)
                self.bytes -= _bytes(entry)
                return entry

    def drop(self, task_id: TaskId) -> None:
        """Forget a task that need not be published any more."""
        entry = self._waiting.pop(task_id, None)
        if entry is not None:
            self._root.forget(_path(entry))
            self.bytes -= _bytes(entry)
            self._dropped += 1
            if self._dropped > len(self._waiting) + DROPPED_MAX:
                self._root.keep(self._waiting)
                self._dropped = 0

    def tenants(self) -> dict[str, int]:
        """Count the tasks of each tenant that has any."""
        return {name.removeprefix("tenant "): member.waiting for name, member in self._root.members.items() if member.waiting}

    def waiting_of(self, tenant: str) -> int:
        """Count the tasks of a tenant."""
        member = self._root.members.get(f"tenant {tenant}")
        return 0 if member is None else member.waiting

    def ahead_of(self, task_id: TaskId) -> int:
        """Say about how many tasks go before one: those before it in its run, and as many turns of everybody else as fit in between."""
        entry = self._waiting[task_id]
        levels, level = [], self._root
        for name in _path(entry):
            levels.append((level, name))
            level = level.members[name]
        ahead = sum(other in self._waiting for other in itertools.takewhile(lambda other: other != task_id, level.items))
        for level, name in reversed(levels):
            own = LANE_WEIGHTS.get(name, 1)
            turns = ((other.waiting, ceil((ahead + 1) * LANE_WEIGHTS.get(key, 1) / own)) for key, other in level.members.items() if key != name)
            ahead += sum(min(waiting, most) for waiting, most in turns)
        return ahead


def _path(entry: Waiting) -> tuple[str, ...]:
    # marked, because a tenant or a run might be called like a lane
    return f"tenant {entry.tenant}", entry.dispatch.lane, f"run {entry.run_id}"


def _bytes(entry: Waiting) -> int:
    return len(entry.dispatch.message or b"")
