"""Followers that share pages see the whole log in order, whatever their paces, and do not ask for the same events twice."""

from __future__ import annotations

import asyncio
import random
from uuid import UUID

import pytest

from crewlog.events.shared_pages import SharedPages
from crewlog.events.store import Page, Recorded
from crewlog.schemas.ids import Stream


class Log:
    """A log whose positions have gaps, and which counts the events it hands out."""

    def __init__(self) -> None:
        self.events: list[Recorded] = []
        self.handed_out = 0

    def grow(self, count: int) -> None:
        for _ in range(count):
            position = (self.events[-1].position if self.events else 0) + 1 + len(self.events) % 3
            self.events.append(Recorded(position, Stream("run/r"), len(self.events) + 1, UUID(int=position), "X", 1, b"{}", 0))

    async def read_all(self, after: int, limit: int) -> Page:
        found = [event for event in self.events if event.position > after][:limit]
        await asyncio.sleep(0)
        self.handed_out += len(found)
        return Page(found, self.events[-1].position if self.events else 0)


async def test_two_followers_at_one_pace_cost_one_read() -> None:
    log = Log()
    pages = SharedPages(log)
    for _ in range(5):
        log.grow(10)
        at = log.events[-11].position if len(log.events) > 10 else 0
        first, second = await asyncio.gather(pages.read_all(at, 100), pages.read_all(at, 100))
        assert first.events == second.events == log.events[-10:]
        assert first.high_water == log.events[-1].position
    assert log.handed_out == 50


async def test_what_was_appended_since_is_read_at_once() -> None:
    log = Log()
    pages = SharedPages(log)
    log.grow(3)
    await pages.read_all(0, 10)
    log.grow(2)
    assert (await pages.read_all(0, 10)).events == log.events
    assert log.handed_out == 5
    assert (await pages.read_all(0, 4)).events == log.events[:4]


async def test_small_pages_are_cut_from_one_that_was_read_at_once() -> None:
    log = Log()
    pages = SharedPages(log, read_max=8)
    log.grow(10)
    cut: list[Recorded] = []
    while page := (await pages.read_all(cut[-1].position if cut else 0, 3)).events:
        cut += page
        assert log.handed_out == (8 if len(cut) <= 6 else 10)
    assert cut == log.events


@pytest.mark.parametrize("seed", range(20))
async def test_every_follower_gets_every_event_once_and_in_order(seed: int) -> None:
    rng = random.Random(seed)
    log = Log()
    log.grow(rng.randint(0, 40))
    pages = SharedPages(log, kept_max=rng.choice([1, 7, 50]), read_max=rng.choice([1, 5, 20]))

    async def follow(start: int, wanted: int) -> list[Recorded]:
        got: list[Recorded] = []
        while len(got) < wanted:
            page = await pages.read_all(got[-1].position if got else start, rng.randint(1, 12))
            got += page.events
            assert not page.events or page.high_water >= page.events[-1].position
            for _ in range(rng.randint(0, 5)):
                await asyncio.sleep(0)
        return got

    async def append() -> None:
        for _ in range(30):
            log.grow(rng.randint(1, 5))
            for _ in range(rng.randint(0, 3)):
                await asyncio.sleep(0)

    known = len(log.events)
    behind = log.events[known // 2].position if log.events else 0
    followers = [asyncio.create_task(follow(start, 30)) for start in (0, behind, log.events[-1].position if log.events else 0)]
    await append()
    for start, follower in zip((0, behind, log.events[known - 1].position if known else 0), followers, strict=True):
        got = await follower
        expected = [event for event in log.events if event.position > start]
        assert got == expected[: len(got)]
