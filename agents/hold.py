"""Whether a worker still has its task, asked right before an effect that must not happen twice.

The version of the task's stream keeps what is written apart, not what happens outside: a worker that was stopped between intent and effect, and
wakes up when another one has long taken over, would have its effect all the same. But nobody takes a task over whose worker gives signs of life:
not before the ack wait, or the time after which orchestrators publish a silent task again, is over. So what this worker knew half of that
time ago still holds. When more has passed, by a clock that goes on while a process stands still, it looks at the log again, and loses the task
if somebody else has written to it.

What is left is the moment between this look and the system call that has the effect.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from crewlog.agents.spec import ToolFailed
from crewlog.events.clock import Clock
from crewlog.schemas.errors import Unavailable

LOOKS_MAX: Final = 5
"""Looks at the log before an effect is left alone, because each took longer than what it says is worth."""


_NOTHING_DONE: Final = "nothing was done: this worker could not make sure in time that the task is still its own"


class Hold:
    """How fresh it is that one worker has one task."""

    def __init__(self, clock: Clock, look: Callable[[], Awaitable[None]], *, fresh_s: float) -> None:
        """Prepare; the task counts as held from now.

        Args:
            look: reads the task's stream; raises `ConflictError` when somebody else has written to it.
            fresh_s: how long it is certain that nobody has taken the task over, in seconds.
        """
        self._clock, self._look, self._fresh_s = clock, look, fresh_s
        self._since = self._now()

    def _now(self) -> tuple[float, float]:
        return self._clock.monotonic(), self._clock.now_us() / 1e6  # a machine that was suspended shows in the second alone

    def note(self) -> None:
        """The task is held now: what is about to be appended will be refused otherwise."""
        self._since = self._now()

    async def check(self) -> None:
        """Return when the effect may begin at once.

        Raises:
            ConflictError: another worker has the task.
            ToolFailed: nobody knows, as the log does not answer, or takes too long. The effect must not begin, and that is its outcome.
        """
        for _ in range(LOOKS_MAX):
            now = self._now()
            if max(at - since for at, since in zip(now, self._since, strict=True)) <= self._fresh_s:
                return
            try:
                await self._look()
            except Unavailable as error:
                raise ToolFailed(f"{_NOTHING_DONE}: {error}") from error
            self._since = now
        raise ToolFailed(f"{_NOTHING_DONE}; call it again")
