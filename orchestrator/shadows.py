"""Shadows: a share of the live runs is run once more on other models, behind its end, by workers of their own, with effects stubbed and a budget of
their own. What comes of a shadow is compared (`crewlog shadow`), never used.

    CREWLOG_SHADOW = rule, rule, …       rule = TYPE=SHARE:MODELS       such as research=0.1:anthropic:<model>

A shadow begins when its run has ended, so that its reading tools are answered from the record: both see the same world. Which runs have one
follows from their ids, and so does the shadow's, so that several orchestrators make one. A shadow that is lost with its orchestrator is not made up
for: it is a sample.

Live work never waits for shadows: their tasks lie in queues that only workers fetch from which were started for it (`crewlog scale research.shadow=1`),
and no more than `OPEN_MAX` are open; while they are, runs get none.
"""

from __future__ import annotations

import asyncio
import logging
import re
import zlib
from collections.abc import Coroutine, Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import msgspec

from crewlog.agents.models import named_models
from crewlog.events.clock import Clock
from crewlog.events.store import EventStore
from crewlog.orchestrator.commands import CancelRun
from crewlog.orchestrator.driver import Driver
from crewlog.orchestrator.raised_budget import raised_budget
from crewlog.orchestrator.run import RunState
from crewlog.schemas.budget import utc_day
from crewlog.schemas.errors import ConfigError, OrchestrationError
from crewlog.schemas.ids import RunId, run_stream, shadow_run_id
from crewlog.schemas.run_events import RunSubmitted
from crewlog.schemas.subjects import SHADOW_LANE
from crewlog.schemas.task import AgentTask, parse_task
from crewlog.schemas.trial import Trial

SHADOW: Final = "shadow"
"""Surface of shadows, and who stops one."""
OPEN_MAX: Final = 1_000
"""Shadows that are open at the same time, as far as one orchestrator knows; more are left out."""
UNDER_WAY_MAX: Final = 64
"""Shadows that are being handed in at the same time; more are left out."""

_RULE: Final = re.compile(r"\s*(?P<type>[A-Za-z0-9_-]{1,64})\s*=\s*(?P<share>[0-9.]+)\s*:\s*(?P<models>\S.*?)\s*")

log = logging.getLogger(__name__)


class ShadowRule(NamedTuple):
    """Which share of the runs of a type has a shadow, from 0 to 1, and on which models."""

    share: float
    models: str


Rules = Mapping[str, ShadowRule]
NO_SHADOWS: Final[Rules] = MappingProxyType({})


def parse_shadow(text: str) -> Rules:
    """Read CREWLOG_SHADOW: type of run -> rule.

    Raises:
        ConfigError: naming the rule that cannot be understood.
    """
    rules: dict[str, ShadowRule] = {}
    for entry in filter(str.strip, text.split(",")):
        found = _RULE.fullmatch(entry)
        share = float(found["share"]) if found is not None and found["share"].count(".") < 2 and found["share"] != "." else -1.0
        if found is None or not 0 <= share <= 1:
            raise ConfigError(f"CREWLOG_SHADOW: {entry.strip()!r} is no rule", hint="write TYPE=SHARE:MODELS with a share from 0 to 1: research=0.1:offline")
        if found["type"] in rules:
            raise ConfigError(f"CREWLOG_SHADOW: there are two rules for {found['type']}")
        named_models(found["models"])
        rules[found["type"]] = ShadowRule(share, found["models"])
    return rules


def is_chosen(run_id: RunId, share: float) -> bool:
    """Say whether a run has a shadow: the same answer whenever and by whomever it is asked."""
    return zlib.crc32(run_id.bytes + SHADOW.encode()) / 2**32 < share


class Shadows:
    """Starts the shadows of one orchestrator's runs."""

    def __init__(self, store: EventStore, clock: Clock, driver: Driver, rules: Rules, *, hard_micro_usd: int | None) -> None:
        """Prepare.

        Args:
            hard_micro_usd: the most that the shadows of one tenant and type may spend on one day; None: no limit of their own.
        """
        self._store, self._clock, self._driver, self._rules, self._hard_micro_usd = store, clock, driver, rules, hard_micro_usd
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: set[RunId] = set()

    def note(self, state: RunState) -> None:
        """Take note of a run behind each of its steps: one that has ended may get a shadow, a shadow without money left is stopped."""
        trial = state.brief.trial
        if trial is not None:
            if state.brief.priority == SHADOW_LANE:
                (self._open.add if state.status == "open" else self._open.discard)(state.run_id)
            if state.hold is not None and state.status == "open" and trial.name.startswith(f"{SHADOW}-"):
                self._spawn(self._stop(state.run_id))
            return
        rule = self._rules.get(state.brief.type)
        if rule is not None and state.status in ("completed", "failed") and len(self._open) < OPEN_MAX and is_chosen(state.run_id, rule.share):
            self._spawn(self._start(state, rule))

    async def stop(self) -> None:
        """Let go of what is being handed in. Safe to call twice."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        if len(self._tasks) >= UNDER_WAY_MAX:
            work.close()
            return
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _start(self, state: RunState, rule: ShadowRule) -> None:
        try:
            task = await self._shadow_of(state, rule)
            if task is not None:
                await self._driver.submit(task, "api", is_shadow=True)
        except OrchestrationError as error:
            log.warning("run %s gets no shadow: %s", state.run_id, error)

    async def _shadow_of(self, state: RunState, rule: ShadowRule) -> AgentTask | None:
        run_id, shadow = state.run_id, shadow_run_id(state.run_id)
        name = f"{SHADOW}-{state.brief.type}-{utc_day(self._clock.now_us())}"
        trial = Trial(source=run_id, models=rule.models, name=name, hard_micro_usd=self._hard_micro_usd)
        own = {"task_id": str(shadow), "run_id": str(shadow), "parent_task_id": None, "surface": SHADOW, "priority": SHADOW_LANE, "auto_approve": True}
        for recorded in await self._store.read_streams({run_stream(run_id): 0}, types=frozenset({RunSubmitted.__name__})):
            event = recorded.event()
            if isinstance(event, RunSubmitted):
                raised = await raised_budget(self._store, run_id)
                money = {} if raised is None else {"budget": msgspec.to_builtins(raised)}
                return parse_task({**msgspec.json.decode(event.task), **money, **own, "trial": msgspec.to_builtins(trial)})
        return None

    async def _stop(self, run_id: RunId) -> None:
        try:
            await self._driver.execute(run_id, CancelRun("the shadows of today have spent what they may", SHADOW))
        except OrchestrationError as error:
            log.info("shadow %s is not stopped: %s", run_id, error)
