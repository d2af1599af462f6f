"""Tools that do not stop when they are cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from crewlog.agents import runaway
from crewlog.agents.runaway import Runaways

PATIENCE_S = 30.0


class Stubborn:
    """Work that goes on until `over` is set, however often it is cancelled."""

    def __init__(self) -> None:
        self.over, self.cancelled = asyncio.Event(), 0

    async def run(self) -> str:
        while not self.over.is_set():
            try:
                await self.over.wait()
            except asyncio.CancelledError:
                self.cancelled += 1
        return "late"


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runaway, "OBEYS_S", 0.05)


async def until(holds: Callable[[], Any]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            if holds():
                return
            await asyncio.sleep(0.01)


async def test_what_may_run_again_is_left_to_itself_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    runaways, work, told = Runaways(), Stubborn(), list[str]()
    runaways.watch(2, lambda: told.append("leave"))
    with pytest.raises(TimeoutError):
        await runaways.within(work.run, 0.05, what="look of task 1", may_be_left=True)
    assert (work.cancelled, len(runaways.left), told) == (1, 1, [])
    assert "look of task 1 goes on although it was cancelled" in caplog.text
    with pytest.raises(TimeoutError):
        await runaways.within(work.run, 0.05, what="look of task 2", may_be_left=True)
    assert (told, runaways.gave_up) == (["leave"], True)
    work.over.set()
    await until(lambda: not runaways.left)


async def test_what_must_not_happen_twice_keeps_its_call_until_the_process_ends() -> None:
    runaways, work, told = Runaways(), Stubborn(), list[str]()
    runaways.watch(4, lambda: told.append("leave"))
    runaways.end_process = lambda: told.append("end")
    call = asyncio.create_task(runaways.within(work.run, 0.05, what="pay of task 1", may_be_left=False))
    await until(lambda: told)
    assert not (await asyncio.wait({call}, timeout=0.3))[0], "nobody may hear that it has ended"
    assert told == ["leave"]
    call.cancel()
    await asyncio.wait({call})
    assert call.cancelled()
    assert told == ["leave", "end"]
    work.over.set()
    await until(lambda: not runaways.left)


async def test_what_must_not_happen_twice_and_ends_after_all_has_its_outcome() -> None:
    runaways, work = Runaways(), Stubborn()
    runaways.watch(4, work.over.set)
    assert await runaways.within(work.run, 0.05, what="pay of task 1", may_be_left=False) == "late"
    assert not runaways.left


async def test_who_is_told_to_stop_stops_although_the_tool_does_not() -> None:
    runaways, work = Runaways(), Stubborn()
    call = asyncio.create_task(runaways.within(work.run, 60, what="look of task 1", may_be_left=True))
    await asyncio.sleep(0)
    call.cancel()
    async with asyncio.timeout(PATIENCE_S):
        await asyncio.wait({call})
    assert call.cancelled()
    assert len(runaways.left) == 1
    work.over.set()
    await until(lambda: not runaways.left)
