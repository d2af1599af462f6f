"""How many tasks of one kind may be with its agents at once: enough that no agent waits for long, and hardly more. Pure.

What lies in a queue of the bus is in nobody's hand any more: a quiet tenant waits behind all of it, and one that could fill all slots
waits a whole task longer. So the window is what the agents can work on at once, and where their tasks are short a little more: what they
will have finished by the time that news of an end has led to the next task (Little's law: ends per second times that time). Agents that
end a task every millisecond get ten more. Where that would be less than a tenth of the slots nothing waits ahead: an agent whose tasks
take a hundred milliseconds or more is idle for a few of them in between, and that is what it costs to hold the order in hand.
"""

from __future__ import annotations

from collections import deque
from math import exp
from typing import Final

from crewlog.schemas.ids import TaskId

AHEAD_S: Final = 0.01
"""Work that may wait for agents, as time: longer than it takes to hear of an end and to send the next task, in seconds."""
AHEAD_SHARE: Final = 10
"""Nothing waits ahead where it would be less than one for so many slots."""
UNKNOWN: Final = 8
"""Window of a kind nobody is known to work on."""
UNHEARD: Final = 64
"""The same while an orchestrator has not been there long enough to have heard every worker."""
RATE_MEMORY_S: Final = 0.25
LATE_ACK_S: Final = 0.03
"""For so long the bus may still count a task whose end was heard of: its worker says that before it acknowledges the message."""


class Window:
    """One kind's window, as one orchestrator knows it: which of its own messages are out, and how many of others."""

    def __init__(self) -> None:
        self._own: dict[TaskId, None] = {}
        self._others = 0
        self._rate = 0.0
        """Ends per second."""
        self._since_s = 0.0
        self._heard: deque[float] = deque()
        """When ends were heard of, the latest ones."""

    @property
    def in_flight(self) -> int:
        """How many tasks are with agents, or on their queue."""
        return len(self._own) + self._others

    def size(self, capacity: int, *, all_heard: bool = True, most: int | None = None) -> int:
        """Return how many tasks may be out.

        Args:
            capacity: slots of the workers that are there, 0 when none is known.
            all_heard: False while there may be workers that were not heard yet.
            most: the operator's limit for the kind, if there is one.
        """
        if capacity == 0:
            size = UNKNOWN if all_heard else UNHEARD
        else:
            ahead = int(self._rate * AHEAD_S)
            size = capacity + (ahead if ahead * AHEAD_SHARE > capacity else 0)
            size = size if all_heard else max(size, UNHEARD)
        return size if most is None else min(size, most)

    def sent(self, task_id: TaskId) -> None:
        """Take note that a message is out."""
        self._own.pop(task_id, None)  # the last one sent stands last
        self._own[task_id] = None

    def ended(self, task_id: TaskId, now_s: float) -> None:
        """Take note that a task of this orchestrator is with no agent any more. A second time does nothing."""
        if task_id in self._own:
            del self._own[task_id]
            self._heard.append(now_s)
            self._count_ends(1, now_s)

    def own(self) -> int:
        """Return how many of its own this orchestrator takes to be out: what `seen` is compared with."""
        return len(self._own)

    def seen(self, in_flight: int, own: int, now_s: float) -> list[TaskId]:
        """Take over what the bus says is out; returns which tasks have come to an end that others heard of.

        Args:
            own: what `own` returned when the bus was asked; what was sent since is not in `in_flight`.
        """
        gone = list(self._own)[: max(0, own - in_flight)]
        for task_id in gone:
            del self._own[task_id]
        self._count_ends(len(gone), now_s)
        self._others = max(0, in_flight - own - len(self._heard))
        return gone

    def _count_ends(self, count: int, now_s: float) -> None:
        while self._heard and now_s - self._heard[0] > LATE_ACK_S:
            self._heard.popleft()
        elapsed_s, self._since_s = now_s - self._since_s, now_s
        self._rate = self._rate * exp(-elapsed_s / RATE_MEMORY_S) + count / RATE_MEMORY_S
