"""Several ways to carry out one tool call: tries with growing waits, then the next implementation, within the tool's time.

An implementation that is unavailable, or fails although it may be repeated, is degraded for a while: it is asked last until then. The
model is told as data who answered and who did not; what a provider calls its limits never reaches it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from crewlog.agents.runaway import Runaways
from crewlog.agents.spec import Implementation, ToolContext, ToolFailed, ToolOutput, ToolSpec, ToolUnavailable
from crewlog.events.clock import Clock
from crewlog.schemas.errors import ConflictError, OrchestrationError, TransientError, Unavailable
from crewlog.schemas.retry import doubled_s
from crewlog.schemas.text import shorten

if TYPE_CHECKING:
    from aiolimiter import AsyncLimiter

REPEATABLE: Final = frozenset({"read", "idempotent"})
"""Effects that may be tried again, and in another way, although the first try may have happened."""
BACKOFF_S: Final = 0.5
BACKOFF_MAX_S: Final = 8.0
DEGRADED_S: Final = 60.0
"""How long an implementation that failed is asked last, in seconds; doubled with each further failure."""
DEGRADED_MAX_S: Final = 600.0
REASON_CHARS_MAX: Final = 300


class Ways(NamedTuple):
    """How a call was carried out in the end."""

    output: ToolOutput
    implementation: str
    tries: int
    """Tries of all implementations together."""
    degraded: tuple[str, ...]
    """`<implementation>: <why>` of those that were asked before and did not do it."""


class _Health(NamedTuple):
    until: float
    failures: int


class ToolHealth:
    """What one worker knows about the implementations of its tools, and how often it calls them.

    Each process learns for itself. `now` is monotonic, in seconds.
    """

    def __init__(self) -> None:
        self._degraded: dict[tuple[str, str], _Health] = {}
        self._limiters: dict[tuple[str, str], AsyncLimiter] = {}
        self.runaways = Runaways()

    def in_order(self, tool: ToolSpec, now: float) -> list[Implementation]:
        """Return the implementations of a tool as they should be asked: those that are degraded last."""
        ways = [Implementation(tool.implementation, tool.run), *tool.fallbacks]
        if len(ways) > 1:
            ways.sort(key=lambda way: self.is_degraded(tool.name, way.name, now))  # a stable sort keeps the order within
        return ways

    def is_degraded(self, tool: str, implementation: str, now: float) -> bool:
        """Say whether an implementation failed lately."""
        found = self._degraded.get((tool, implementation))
        return found is not None and found.until > now

    def failed(self, tool: str, implementation: str, now: float, *, retry_after_s: float | None) -> None:
        """Take note of an implementation that did not do it."""
        failures = self._degraded.get((tool, implementation), _Health(0, 0)).failures + 1
        for_s = min(max(doubled_s(DEGRADED_S, failures - 1, longest_s=DEGRADED_MAX_S), retry_after_s or 0.0), DEGRADED_MAX_S)
        self._degraded[tool, implementation] = _Health(now + for_s, failures)

    def worked(self, tool: str, implementation: str) -> None:
        """Take note of an implementation that did it."""
        self._degraded.pop((tool, implementation), None)

    async def admit(self, tool: ToolSpec) -> None:
        """Wait until the rate of a tool that has one leaves room for one more call."""
        # imported here: most tools have no rate
        from aiolimiter import AsyncLimiter

        assert tool.rate is not None
        limiter = self._limiters.get((tool.name, tool.version))
        if limiter is None:
            limiter = self._limiters[tool.name, tool.version] = AsyncLimiter(tool.rate.calls, tool.rate.per_s)
        await limiter.acquire()


async def carry_out(tool: ToolSpec, context: ToolContext, args: Any, health: ToolHealth, clock: Clock) -> Ways:
    """Carry out one call within `tool.timeout_s`, by the first implementation that can.

    Raises:
        ToolFailed: the tool says what is wrong, or no implementation could do it.
        Unavailable, ConflictError: the log itself failed.
        TimeoutError: the time is over and nothing else is left to try.
        Exception: whatever the last implementation raised.
    """
    ends = clock.monotonic() + tool.timeout_s
    if tool.rate is not None:
        await _admitted(tool, health)
    left = health.in_order(tool, clock.monotonic())
    degraded: list[str] = []
    tries = 0
    while True:
        way = left.pop(0)
        attempt = _Attempt(tool, way, clock, health.runaways, ends=ends, ways_left=len(left))
        try:
            output = await attempt.run(context, args)
        except (ToolFailed, Unavailable, ConflictError):
            raise
        except Exception as error:
            tries += attempt.tries
            if not isinstance(error, ToolUnavailable) and tool.effect not in REPEATABLE:
                raise
            health.failed(tool.name, way.name, clock.monotonic(), retry_after_s=getattr(error, "retry_after_s", None))
            degraded.append(f"{way.name}: {_reason(error)}")
            if left:
                continue
            if tool.fallbacks or isinstance(error, ToolUnavailable):
                raise ToolFailed(_nobody(tool, degraded)) from error
            raise
        health.worked(tool.name, way.name)
        return Ways(_told(output, way.name, degraded), way.name, tries + attempt.tries, tuple(degraded))


async def _admitted(tool: ToolSpec, health: ToolHealth) -> None:
    try:
        async with asyncio.timeout(tool.timeout_s):
            await health.admit(tool)
    except TimeoutError:
        assert tool.rate is not None
        rate = f"{tool.rate.calls} calls in {tool.rate.per_s:g} s"
        raise ToolFailed(f"{tool.name} is used more often than {rate} right now; go on without it, or call it again later") from None


class _Attempt:
    """One implementation and its tries, within its share of the time that is left."""

    def __init__(self, tool: ToolSpec, way: Implementation, clock: Clock, runaways: Runaways, *, ends: float, ways_left: int) -> None:
        self._tool, self._way, self._clock, self._runaways = tool, way, clock, runaways
        self._share_s = max(ends - clock.monotonic(), 0.0) / (ways_left + 1)
        self.tries = 0

    async def run(self, context: ToolContext, args: Any) -> ToolOutput:
        ends = self._clock.monotonic() + self._share_s
        while True:
            self.tries += 1
            may_be_left = self._tool.effect in REPEATABLE
            if not may_be_left:
                await context.check_hold()  # each time: the way here, and the wait between two tries, may have been long
            try:
                what = f"{self._tool.name} of task {context.task.task_id}"
                left_s = ends - self._clock.monotonic()
                output: Any = await self._runaways.within(partial(self._way.run, context, args), left_s, what=what, may_be_left=may_be_left)
            except (ToolUnavailable, TransientError) as error:
                wait_s = self._wait_s(error.retry_after_s)
                if not self._may_try_again(error) or self._clock.monotonic() + wait_s >= ends:
                    raise
                await asyncio.sleep(wait_s)
                continue
            if not isinstance(output, ToolOutput):
                raise TypeError(f"tool {self._tool.name} returned {type(output).__name__}, not ToolOutput")
            return output

    def _may_try_again(self, error: ToolUnavailable | TransientError) -> bool:
        if isinstance(error, Unavailable) or self.tries > self._tool.retries:
            return False
        return isinstance(error, ToolUnavailable) or self._tool.effect in REPEATABLE

    def _wait_s(self, retry_after_s: float | None) -> float:
        return max(self._clock.fraction() * doubled_s(BACKOFF_S, self.tries - 1, longest_s=BACKOFF_MAX_S), retry_after_s or 0.0)


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "did not answer in time"
    return shorten(str(error) if isinstance(error, ToolUnavailable | OrchestrationError) else f"{type(error).__name__}: {error}", REASON_CHARS_MAX)


def _nobody(tool: ToolSpec, degraded: Sequence[str]) -> str:
    data = {"error": f"{tool.name} is not available now; go on without it and say so, or try another tool", "degraded": list(degraded)}
    return json.dumps(data, ensure_ascii=False)


def _told(output: ToolOutput, implementation: str, degraded: Sequence[str]) -> ToolOutput:
    if not degraded:
        return output
    note = json.dumps({"answered_by": implementation, "degraded": list(degraded)}, ensure_ascii=False)
    return replace(output, content=f"{output.content}\n\n{note}")
