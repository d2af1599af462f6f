from __future__ import annotations

import asyncio
import errno
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from crewlog.events.clock import SystemClock
from crewlog.orchestrator.home import wait_gone
from crewlog.orchestrator.supervised import Program, Supervised

READY = "import os, signal, sys, time; os.write(int(os.environ['CREWLOG_READY_FD']), b'1')\n"


class Lines:
    """Collects what a child writes and wakes whoever waits for it."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self._changed = asyncio.Condition()

    def __call__(self, name: str, line: str) -> None:
        self.all.append(line)
        self._notifying = asyncio.ensure_future(self._notify())

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def until(self, holds: Callable[[list[str]], bool]) -> None:
        async with asyncio.timeout(60), self._changed:
            await self._changed.wait_for(lambda: holds(self.all))


@asynccontextmanager
async def supervised(script: str, *, may_leave: bool = False) -> AsyncIterator[tuple[Supervised, Lines]]:
    lines = Lines()
    child = Supervised(Program("child", "child", (sys.executable, "-c", script), dict(os.environ), may_leave), lines, clock=SystemClock())
    child.start()
    try:
        yield child, lines
    finally:
        await child.stop(grace_s=0.2)


def ended(child: Supervised) -> tuple[str, int | None, int | None]:
    return child.state, child.pid, child.exit_code


async def test_a_child_says_when_it_is_ready_and_stops_when_asked() -> None:
    async with supervised(READY + "print('hello', flush=True); signal.pause()") as (child, lines):
        assert await child.settled()
        await lines.until(lambda all_: "hello" in all_)
        assert child.pid is not None
        await child.stop(grace_s=30)
        assert ended(child) == ("stopped", None, -15)


async def test_a_child_that_dies_is_started_again() -> None:
    async with supervised(READY + "print('up', os.getpid(), flush=True); signal.pause()") as (child, lines):
        await lines.until(bool)
        first = child.pid
        child._signal(9)
        await lines.until(lambda all_: sum(line.startswith("up") for line in all_) == 2)
        assert child.pid != first
        assert child.restarts == 1
        assert any("signal SIGKILL" in line for line in lines.all)


async def test_a_child_that_leaves_in_good_order_stays_away_if_it_may() -> None:
    for may_leave in (True, False):
        async with supervised(READY + "print('up', flush=True); sys.exit(0)", may_leave=may_leave) as (child, lines):
            if may_leave:
                assert child._keeper is not None
                async with asyncio.timeout(60):
                    await child._keeper
                assert (child.state, child.restarts, child.pid) == ("left", 0, None)
            else:
                await lines.until(lambda all_: all_.count("up") == 2)
                assert child.restarts == 1


async def test_a_misconfigured_child_is_not_started_again() -> None:
    async with supervised("import sys; print('no such setting'); sys.exit(2)") as (child, lines):
        assert not await child.settled()
        assert (child.state, child.restarts, lines.all) == ("failed", 0, ["no such setting"])


async def test_a_program_that_does_not_exist_fails_with_the_reason() -> None:
    lines = Lines()
    child = Supervised(Program("child", "child", ("/nowhere/program",), dict(os.environ)), lines, clock=SystemClock())
    child.start()
    await lines.until(lambda all_: any("/nowhere/program" in line for line in all_))
    await child.stop(grace_s=1)


async def test_what_ignores_the_signal_is_killed_with_its_children() -> None:
    ignoring = "import subprocess\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    async with supervised(READY + ignoring + "print(subprocess.Popen(['sleep', '600']).pid, flush=True)\nsignal.pause()") as (child, lines):
        await lines.until(bool)
        grandchild = int(lines.all[0])
        await child.stop(grace_s=0.1)
        assert any("killed" in line for line in lines.all)
        assert await wait_gone(grandchild, timeout_s=30)


@pytest.mark.parametrize("size", [10, 300_000])
async def test_long_lines_arrive_whole(size: int) -> None:
    async with supervised(READY + f"print('x' * {size}, flush=True); signal.pause()") as (_, lines):
        await lines.until(bool)
        assert lines.all == ["x" * size]


async def test_a_child_that_cannot_be_started_again_at_once_is_started_later(monkeypatch: pytest.MonkeyPatch) -> None:
    started = 0
    spawn = asyncio.create_subprocess_exec

    async def short_of_memory(*argv: str, **options: object) -> asyncio.subprocess.Process:
        nonlocal started
        started += 1
        if started == 2:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        return await spawn(*argv, **options)  # type: ignore[arg-type]  # what the child was to be started with

    monkeypatch.setattr(asyncio, "create_subprocess_exec", short_of_memory)
    async with supervised("print('up', flush=True); raise SystemExit(1)") as (child, lines):
        await lines.until(lambda all_: all_.count("up") == 2)
        assert child.state != "failed"
        assert any("cannot be started: [Errno 12]" in line for line in lines.all)
