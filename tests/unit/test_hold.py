"""A worker begins nothing that must not happen twice on the strength of what it knew too long ago."""

from __future__ import annotations

import pytest

from crewlog.agents.hold import LOOKS_MAX, Hold
from crewlog.agents.spec import ToolFailed
from crewlog.events.clock import SystemClock
from crewlog.schemas.errors import ConflictError, Unavailable


class Passing(SystemClock):
    """A clock that a test moves; `monotonic` may stand still, as it does while a machine is suspended."""

    wall_s = 0.0
    running_s = 0.0

    def now_us(self) -> int:
        return round(self.wall_s * 1e6)

    def monotonic(self) -> float:
        return self.running_s

    def passes(self, seconds: float, *, suspended: bool = False) -> None:
        self.wall_s += seconds
        self.running_s += 0 if suspended else seconds


class Log:
    """Answers after a while, or says that somebody else has written."""

    def __init__(self, clock: Passing, takes_s: float = 0.0, *, is_lost: bool = False) -> None:
        self.looks = 0
        self._clock, self._takes_s, self._is_lost = clock, takes_s, is_lost

    async def look(self) -> None:
        self.looks += 1
        self._clock.passes(self._takes_s)
        if self._is_lost:
            raise ConflictError("task/1", expected=3, actual=4)


async def test_what_is_fresh_is_not_looked_at() -> None:
    clock = Passing()
    log = Log(clock)
    hold = Hold(clock, log.look, fresh_s=15)
    clock.passes(14)
    await hold.check()
    hold.note()
    clock.passes(14)
    await hold.check()
    assert log.looks == 0


@pytest.mark.parametrize("suspended", [False, True])
async def test_whoever_stood_still_looks_first_and_stops_when_another_has_the_task(suspended: bool) -> None:
    clock = Passing()
    log = Log(clock)
    hold = Hold(clock, log.look, fresh_s=15)
    clock.passes(60, suspended=suspended)
    await hold.check()
    await hold.check()
    assert log.looks == 1, "now it is fresh again"
    lost = Hold(clock, Log(clock, is_lost=True).look, fresh_s=15)
    clock.passes(60, suspended=suspended)
    with pytest.raises(ConflictError):
        await lost.check()


async def test_a_log_that_answers_too_slowly_allows_nothing() -> None:
    clock = Passing()
    log = Log(clock, takes_s=16)
    hold = Hold(clock, log.look, fresh_s=15)
    clock.passes(16)
    with pytest.raises(ToolFailed, match="nothing was done"):
        await hold.check()
    assert log.looks == LOOKS_MAX


async def test_a_log_that_is_away_allows_nothing() -> None:
    async def look() -> None:
        raise Unavailable("the log is away")

    clock = Passing()
    hold = Hold(clock, look, fresh_s=15)
    clock.passes(16)
    with pytest.raises(ToolFailed, match=r"nothing was done.*the log is away"):
        await hold.check()
