"""Crews that fork runs: a played schedule goes on with forks at random places, which the same processes carry out, and some die meanwhile.

Each worker has another version of the agent, and many forks are only for one of them.
"""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import replace
from typing import Any, Final, NamedTuple
from uuid import UUID

from sim.network import SimBus
from sim.plan import ORCHESTRATORS, WORKERS, Plan
from sim.stage import played
from sim.world import AGENT, KIND, World

from crewlog.agents.spec import AgentSpec
from crewlog.events.memory_store import MemoryStore
from crewlog.events.prefix import read_history
from crewlog.schemas.errors import Unavailable
from crewlog.schemas.ids import RunId

VERSIONS: Final = ("1", "2", "3")


class Fork(NamedTuple):
    """One fork: what was asked for, and what the orchestrator said."""

    parent: RunId
    asked: dict[str, Any]
    answer: dict[str, Any]

    @property
    def run_id(self) -> RunId:
        """The fork's own run, if there is one."""
        return RunId(UUID(self.answer["run_id"]))


class ForkWorld(World):
    """A crew whose runs are forked once they are over; forks may be forked in turn."""

    def __init__(self, plan: Plan, *, forks: int, effects: str = "stub") -> None:
        super().__init__(plan)
        self.forks: list[Fork] = []
        self.versions: dict[str, str] = {}
        """Worker -> its version."""
        self.arrived_before = 0
        """What had reached the outside world when the first fork was made."""
        self._wanted, self._effects = forks, effects
        self._choices = random.Random(f"{plan.seed}/forks")

    def spawn(self, role: str, index: int) -> int:
        """Start a process, and keep in mind of which version a worker is."""
        actor = super().spawn(role, index)
        if role == "worker":
            self.versions[f"worker-{actor}"] = VERSIONS[index]
        return actor

    def agent(self, index: int) -> AgentSpec:
        """Give each worker a version of its own."""
        return replace(AGENT, version=VERSIONS[index])

    async def play(self) -> None:
        """Play the plan, then fork and wait for each fork to end."""
        await super().play()
        self.arrived_before = sum(self.sink.arrivals.values())
        bus = SimBus(self.network, self.broker)
        person = self.loop.create_task(self._person(bus))
        for _ in range(self._wanted):
            parent = self._choices.choice(sorted(self.accepted) + [fork.run_id for fork in self.forks if fork.answer["ok"]])
            if self._choices.random() < 0.5:
                self._strike_soon()
            fork = await self._fork(bus, parent)
            self.forks.append(fork)
            while fork.answer["ok"] and not self._ended(fork.run_id):  # noqa: ASYNC110  (a moment of virtual time costs nothing)
                await asyncio.sleep(1.0)
        person.cancel()

    def _strike_soon(self) -> None:
        """Let a process die while the next fork is made or worked on."""
        role = self._choices.choice(("orchestrator", "worker", "worker"))
        index = self._choices.randrange(ORCHESTRATORS if role == "orchestrator" else WORKERS)
        self._in_the_world(self._choices.random() * 3, lambda: self.kill(self._places[role, index]))

    async def _fork(self, bus: SimBus, parent: RunId) -> Fork:
        """Ask until there is an answer: the same id every time."""
        events = await read_history(MemoryStore(self.log), parent)
        at = len(events) if self._choices.random() < 0.15 else self._choices.randint(1, len(events))
        asked = {"run_id": str(parent), "at": at, "actor": "somebody", "effects": self._effects}
        if self._choices.random() < 0.6:
            asked |= {"agent_version": f"{KIND}={self._choices.choice(VERSIONS)}"}
        asked |= {"fork_id": str(UUID(int=self._choices.getrandbits(128), version=4))}
        while True:
            try:
                answer = json.loads((await bus.request("api.default.runs.fork", json.dumps(asked).encode(), timeout_s=5.0)).data)
            except Unavailable:
                continue
            return Fork(parent, asked, answer)


def play(plan: Plan, *, forks: int, effects: str = "stub") -> ForkWorld:
    """Play a plan and fork its runs; returns the world as it was in the end."""
    return played(ForkWorld(plan, forks=forks, effects=effects))
