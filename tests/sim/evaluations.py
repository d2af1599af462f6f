"""Crews whose finished runs are evaluated while processes die, messages are lost and operators step in; some evaluations are given up half-way."""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack, aclosing
from typing import Final

from sim.network import SimBus, at_once, store_of
from sim.plan import ORCHESTRATORS, WORKERS, Order, Plan
from sim.stage import played
from sim.world import CALM, LIVENESS_S, World
from support.evaluated import view

from crewlog.events.config import Config
from crewlog.events.grants import OPERATOR
from crewlog.events.memory_store import MemoryStore
from crewlog.events.store import BudgetState
from crewlog.orchestrator.client import Client
from crewlog.orchestrator.client_evaluation import Evaluation, Pace
from crewlog.orchestrator.client_trials import Tried
from crewlog.schemas.ids import RunId
from crewlog.schemas.trial import Trial

NAME: Final = "eval-1"
LIMITS: Final = (None, 10**6, 50_000, 20_000, 0)
"""Of an evaluation, in micro-USD: the worst price of one call is some 16,000, what it costs is 20."""
PATIENCE_S: Final = 120.0
EVALUATED_WITHIN_S: Final = 4_000.0


class EvaluationWorld(World):
    """A crew whose runs are tried again once they are over."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self._choices = random.Random(f"{plan.seed}/evaluation")
        self.hard_micro_usd = self._choices.choice(LIMITS)
        self.is_calm = plan.seed % 3 == 0
        """Nothing is in the way of the evaluation."""
        self.gives_up = not self.is_calm and self._choices.random() < 0.4
        self.tried: list[Tried] = []
        self.expected = 0
        """Runs to be tried."""
        self.evaluation: Evaluation | None = None
        self.how = "it never ended"
        self.took_s = 0.0

    async def play(self) -> None:
        """Play the plan, then evaluate."""
        await super().play()
        bus = SimBus(self.network, self.broker)
        store = store_of(self.network, MemoryStore(self.log, role=OPERATOR, actor="client"))
        person = self.loop.create_task(self._person(bus))
        if not self.is_calm:
            self.network.mix = self.plan.mix
            self._strike(self._choices.randrange(4))
            if self._choices.random() < 0.3:
                verb, lasts_s = self._choices.choice(("pause_tenant", "pause_kind", "quarantine_tenant")), self._choices.choice((5.0, 60.0, 600.0))
                self.loop.create_task(self._operate(bus, Order(verb, 0, self._choices.random() * 10, lasts_s)))
        began_s = self.loop.time()
        async with AsyncExitStack() as exits:
            client = Client(Config(), bus, clock=self.clock, exits=exits, store=store)
            evaluating = self.loop.create_task(self._evaluate(client))
            if self.gives_up:
                self.loop.call_later(self._choices.random() * 10, evaluating.cancel)
            async with asyncio.timeout(EVALUATED_WITHIN_S):
                await asyncio.wait({evaluating})
            error = None if evaluating.cancelled() else evaluating.exception()
            self.how = "given up" if evaluating.cancelled() else "done" if error is None else repr(error)
        self.took_s = self.loop.time() - began_s
        self.network.mix = CALM
        async with asyncio.timeout(LIVENESS_S):
            while (self.open_trials() or self.log.ledger.held) and not self.is_left:  # noqa: ASYNC110  (a moment of virtual time costs nothing)
                await asyncio.sleep(1.0)
        person.cancel()

    @property
    def is_left(self) -> bool:
        """Say whether a trial is known, and told, to go on."""
        return bool(self.evaluation and self.evaluation.left) or any("does not stop" in one.why for one in self.tried)

    def open_trials(self) -> set[RunId]:
        """Return the trials that are not over."""
        return {recorded.run_id for recorded in self.log.events if recorded.type == "RunSubmitted" and recorded.run_id and not self._ended(recorded.run_id)}

    def budget(self, scope: str) -> BudgetState | None:
        """Return a budget as it is in the end."""
        return at_once(MemoryStore(self.log).budgets([scope])).get(scope)

    async def _evaluate(self, client: Client) -> None:
        trial = Trial(name=NAME, hard_micro_usd=self.hard_micro_usd)
        pace = Pace(at_once=self._choices.randint(1, 3), patience_s=PATIENCE_S)
        self.evaluation = Evaluation(client, self.clock, trial, tenant="default", tell=self.loop.note, pace=pace)
        runs = [view(run_id) for run_id in sorted(self.accepted)] * self._choices.randint(1, 2)
        self.expected = len(runs)
        async with aclosing(self.evaluation.run(runs)) as trying:
            async for one in trying:
                self.tried.append(one)

    def _strike(self, count: int) -> None:
        """Let processes die while trials are under way."""
        for _ in range(count):
            role = self._choices.choice(("orchestrator", "worker", "worker"))
            place = role, self._choices.randrange(ORCHESTRATORS if role == "orchestrator" else WORKERS)
            self._in_the_world(self._choices.random() * 20, lambda place=place: self.kill(self._places[place]))


def play(plan: Plan) -> EvaluationWorld:
    """Play a plan and evaluate its runs; returns the world as it was in the end."""
    return played(EvaluationWorld(plan))
