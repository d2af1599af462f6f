"""Whom a chaos run strikes, when and how: drawn from a seed, so that two runs with one seed make the same choices.

Which process is ready at which moment is up to the machine, so a seed repeats the pressure, not the schedule; schedules that can be
repeated exactly are the business of the simulation.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Final, Literal, NamedTuple

Part = Literal["agents", "orchestrators", "projector", "nats", "postgres"]
Action = Literal["kill", "stop"]

PARTS: Final[tuple[Part, ...]] = ("agents", "orchestrators", "projector", "nats", "postgres")
WEIGHTS: Final[dict[Part, int]] = {"agents": 12, "orchestrators": 7, "projector": 2, "nats": 1, "postgres": 1}
"""How often each is struck: servers are the same for everybody, so each strike at one is felt by all."""
STOP_SHARE: Final = 0.25
STOPPED_S: Final[dict[Part, tuple[float, float]]] = {
    **dict.fromkeys(PARTS, (0.3, 2.0)),
    "agents": (0.5, 6.0),  # longer than a lease, so that some wake up behind the worker that took their tasks over
}
"""Shortest and longest time that a process is stopped, in seconds."""
PATIENCE_S: Final = 2.0
"""How long a strike waits for a sign that work goes on, in seconds: a crew that is only ever starting has nothing that can go wrong."""
STARTING_SHARE: Final = 0.125
"""Part of the strikes that may hit a process which is not up yet."""


class Victim(NamedTuple):
    """A process that may be struck now."""

    part: Part
    name: str
    pid: int
    is_ready: bool = True


class Strike(NamedTuple):
    """What was done to whom."""

    action: Action
    victim: Victim
    stopped_s: float = 0.0


class Striker:
    """Strikes until it is stopped.

    Args:
        victims: returns who may be struck now.
        parts: of which parts.
        work: waits until there is a sign that work goes on.
        on_strike: told of each strike.
        pause_s: shortest and longest pause between two strikes, in seconds.
    """

    def __init__(
        self,
        rng: random.Random,
        victims: Callable[[], Sequence[Victim]],
        parts: Collection[Part],
        *,
        pause_s: tuple[float, float],
        work: Callable[[], Awaitable[object]],
        on_strike: Callable[[Strike], None],
    ) -> None:
        self.strikes: list[Strike] = []
        self._rng, self._victims, self._parts, self._pause_s = rng, victims, [part for part in PARTS if part in parts], pause_s
        self._work, self._on_strike = work, on_strike
        self._stopped: dict[int, asyncio.TimerHandle] = {}
        self._dead: set[int] = set()
        """Who was killed: until that is noticed they are still listed."""

    def count(self, action: Action) -> Counter[Part]:
        """Count the strikes of one kind by part."""
        return Counter(strike.victim.part for strike in self.strikes if strike.action == action)

    async def run(self, kills: int) -> None:
        """Strike until so many processes were killed; stopped ones come on top."""
        while self.count("kill").total() < kills:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE_S):
                    await self._work()
            await asyncio.sleep(self._rng.uniform(*self._pause_s))
            strike = self._draw()
            if strike is not None and self._carry_out(strike):
                self.strikes.append(strike)
                self._on_strike(strike)

    def release(self) -> None:
        """Let every process that is stopped go on."""
        for fd, timer in list(self._stopped.items()):
            timer.cancel()
            self._wake(fd)

    def _draw(self) -> Strike | None:
        rng = self._rng
        part: Part = rng.choices(self._parts, [WEIGHTS[part] for part in self._parts])[0]
        action: Action = "stop" if rng.random() < STOP_SHARE else "kill"
        early, where, stopped_s = rng.random() < STARTING_SHARE, rng.random(), rng.uniform(*STOPPED_S[part])
        found = [victim for victim in self._victims() if victim.part == part and (victim.is_ready or early) and victim.pid not in self._dead]
        if not found:
            return None
        return Strike(action, found[int(where * len(found))], stopped_s if action == "stop" else 0.0)

    def _carry_out(self, strike: Strike) -> bool:
        try:
            fd = os.pidfd_open(strike.victim.pid)
        except ProcessLookupError:
            return False
        try:
            signal.pidfd_send_signal(fd, signal.SIGKILL if strike.action == "kill" else signal.SIGSTOP)
        except ProcessLookupError:
            os.close(fd)
            return False
        if strike.action == "kill":
            os.close(fd)
            self._dead.add(strike.victim.pid)
        else:
            self._stopped[fd] = asyncio.get_running_loop().call_later(strike.stopped_s, self._wake, fd)
        return True

    def _wake(self, fd: int) -> None:
        if self._stopped.pop(fd, None) is not None:
            with contextlib.suppress(ProcessLookupError):  # it was killed while it was stopped
                signal.pidfd_send_signal(fd, signal.SIGCONT)
            os.close(fd)
