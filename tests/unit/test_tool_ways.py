"""One call, several ways: tries, implementations in turn, what is told and what is never told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from support.scripted import Say
from support.toolbox import bench

from crewlog.agents.spec import Implementation, Rate, ToolContext, ToolFailed, ToolOutput, ToolSpec, ToolUnavailable
from crewlog.agents.tool_ways import DEGRADED_S, ToolHealth, Ways, carry_out
from crewlog.events.clock import SystemClock
from crewlog.schemas.effects import Effect
from crewlog.schemas.errors import ConflictError, TransientError, Unavailable

Act = Callable[[], Exception | str]
Run = Callable[[ToolContext, Any], Awaitable[ToolOutput]]


class Stand(SystemClock):
    """The real clock without jitter, so that no wait is long."""

    def fraction(self) -> float:
        return 0.0


def doing(said: list[str], name: str, *acts: Exception | str) -> Run:
    """An implementation that does one act after the other, the last one for ever."""
    left = list(acts)

    async def run(_: ToolContext, __: Any) -> ToolOutput:
        said.append(name)
        act = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(act, Exception):
            raise act
        return ToolOutput(act)

    return run


def tool(run: Run, *fallbacks: Implementation, effect: Effect = "read", retries: int = 0, timeout_s: float = 5.0, rate: Rate | None = None) -> ToolSpec:
    return ToolSpec("find", "find", Say, run, effect=effect, implementation="first", fallbacks=fallbacks, retries=retries, timeout_s=timeout_s, rate=rate)


async def carried(spec: ToolSpec, health: ToolHealth | None = None) -> Ways:
    context = (await bench()).context()
    return await carry_out(spec, context, Say(text="x"), health or ToolHealth(), Stand())


async def test_one_way_that_works_is_not_spoken_of() -> None:
    ways = await carried(tool(doing([], "first", "found")))
    assert ways == Ways(ToolOutput("found"), "first", 1, ())


@pytest.mark.parametrize("raised", [asyncio.CancelledError, SystemExit])
async def test_a_tool_that_stops_by_itself_has_failed(raised: type[BaseException]) -> None:
    """Without an outcome its call would be begun again and again, and a parser of arguments would end worker after worker."""

    async def run(_: ToolContext, __: Any) -> ToolOutput:
        raise raised

    with pytest.raises(RuntimeError):
        await carried(tool(run))

    def begin(_: ToolContext, __: Any) -> Awaitable[ToolOutput]:
        raise raised

    with pytest.raises(RuntimeError):
        await carried(tool(begin))


async def test_a_tool_that_is_told_to_stop_stops() -> None:
    async def run(_: ToolContext, __: Any) -> ToolOutput:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    begun = asyncio.Event()
    carrying = asyncio.create_task(carried(tool(run)))
    await begun.wait()
    carrying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await carrying


async def test_what_is_unavailable_is_tried_again_whatever_its_effect() -> None:
    said: list[str] = []
    ways = await carried(tool(doing(said, "first", ToolUnavailable("busy"), "sent"), effect="irreversible", retries=1))
    assert (ways.output.content, ways.tries, said) == ("sent", 2, ["first", "first"])


@pytest.mark.parametrize(("effect", "checks"), [("irreversible", [1, 2, 3]), ("compensable", [1, 2, 3]), ("idempotent", [0, 0, 0]), ("read", [0, 0, 0])])
async def test_before_each_try_of_what_must_not_happen_twice_the_task_is_made_sure_of(effect: Effect, checks: list[int]) -> None:
    checked: list[int] = []
    seen: list[int] = []

    async def check() -> None:
        checked.append(1)

    async def run(_: ToolContext, __: Any) -> ToolOutput:
        seen.append(len(checked))
        raise ToolUnavailable("busy")

    context = replace((await bench()).context(), check_hold=check)
    with pytest.raises(ToolFailed):
        await carry_out(tool(run, Implementation("second", run), effect=effect, retries=1), context, Say(text="x"), ToolHealth(), Stand())
    assert seen[:3] == checks


async def test_a_task_that_another_worker_took_while_this_one_waited_is_not_tried_again() -> None:
    said: list[str] = []

    async def check() -> None:
        if said:
            raise ConflictError("task/1", expected=3, actual=4)

    context = replace((await bench()).context(), check_hold=check)
    spec = tool(doing(said, "first", ToolUnavailable("busy"), "sent"), effect="irreversible", retries=1)
    with pytest.raises(ConflictError):
        await carry_out(spec, context, Say(text="x"), ToolHealth(), Stand())
    assert said == ["first"]


@pytest.mark.parametrize("effect", ["compensable", "irreversible"])
async def test_what_may_have_happened_is_neither_repeated_nor_done_in_another_way(effect: Effect) -> None:
    said: list[str] = []
    spec = tool(doing(said, "first", TransientError("cut off")), Implementation("second", doing(said, "second", "sent")), effect=effect, retries=3)
    with pytest.raises(TransientError, match="cut off"):
        await carried(spec)
    assert said == ["first"]


@pytest.mark.parametrize("error", [ToolUnavailable("HTTP 429"), TransientError("cut off"), ZeroDivisionError("a bug"), TimeoutError()])
async def test_the_next_implementation_answers_and_the_model_is_told_as_data(error: Exception) -> None:
    spec = tool(doing([], "first", error), Implementation("second", doing([], "second", "found")), effect="idempotent")
    ways = await carried(spec)
    text, _, note = ways.output.content.partition("\n\n")
    assert text == "found"
    assert json.loads(note)["answered_by"] == "second"
    assert ways.implementation == "second"
    assert [entry.split(":")[0] for entry in ways.degraded] == ["first"]


async def test_what_the_tool_itself_says_is_final() -> None:
    said: list[str] = []
    with pytest.raises(ToolFailed, match="no such page"):
        await carried(tool(doing(said, "first", ToolFailed("no such page")), Implementation("second", doing(said, "second", "found")), retries=2))
    assert said == ["first"]


async def test_a_log_that_is_away_is_not_the_tools_business() -> None:
    with pytest.raises(Unavailable):
        await carried(tool(doing([], "first", Unavailable("Postgres")), Implementation("second", doing([], "second", "found")), retries=2))


async def test_a_degraded_implementation_is_asked_last_until_its_time_is_over() -> None:
    said: list[str] = []
    health = ToolHealth()
    spec = tool(doing(said, "first", ToolUnavailable("down")), Implementation("second", doing(said, "second", "found")))
    await carried(spec, health)
    await carried(spec, health)
    assert said == ["first", "second", "second"]
    later = SystemClock().monotonic() + DEGRADED_S + 1
    assert [way.name for way in health.in_order(spec, later)] == ["first", "second"]


async def test_when_nobody_can_the_model_hears_of_each_and_what_to_do() -> None:
    spec = tool(doing([], "first", ToolUnavailable("HTTP 429", retry_after_s=900)), Implementation("second", doing([], "second", ToolUnavailable("down"))))
    with pytest.raises(ToolFailed) as failed:
        await carried(spec)
    said = json.loads(str(failed.value))
    assert said["degraded"] == ["first: HTTP 429", "second: down"]
    assert "go on without it" in said["error"]


async def test_a_wait_that_does_not_fit_is_not_waited() -> None:
    async with asyncio.timeout(20):
        ways = await carried(
            tool(doing([], "first", ToolUnavailable("later", retry_after_s=60)), Implementation("second", doing([], "second", "found")), retries=5)
        )
    assert (ways.implementation, ways.tries) == ("second", 2)


async def test_a_way_that_hangs_leaves_time_for_the_next() -> None:
    async def hang(_: ToolContext, __: Any) -> ToolOutput:
        await asyncio.Event().wait()
        raise AssertionError

    ways = await carried(tool(hang, Implementation("second", doing([], "second", "found")), timeout_s=1.0))
    assert ways.degraded == ("first: did not answer in time",)


async def test_a_rate_that_is_used_up_is_said_in_words() -> None:
    health, spec = ToolHealth(), tool(doing([], "first", "found"), rate=Rate(2, 3600), timeout_s=0.05)
    for _ in range(2):
        await carried(spec, health)
    with pytest.raises(ToolFailed, match="more often than 2 calls in 3600 s"):
        await carried(spec, health)


def order(health: ToolHealth, spec: ToolSpec, now: float) -> Sequence[str]:
    return [way.name for way in health.in_order(spec, now)]


def test_who_fails_again_is_avoided_longer_and_who_works_is_trusted_again() -> None:
    health, spec = ToolHealth(), tool(doing([], "first", ""), Implementation("second", doing([], "second", "")))
    health.failed("find", "first", 0.0, retry_after_s=None)
    health.failed("find", "first", 0.0, retry_after_s=None)
    assert order(health, spec, DEGRADED_S + 1) == ["second", "first"]
    assert order(health, spec, 2 * DEGRADED_S + 1) == ["first", "second"]
    health.worked("find", "first")
    assert order(health, spec, 0.0) == ["first", "second"]
