"""One crew in one schedule: orchestrators and workers of the product on the memory log and bus, the outside world they act on, a person.

`run(plan)` plays a plan to its end and returns what was found. After the last fault everything that is down or standing still comes
back and the network behaves; then every run must come to its end within a bounded time. Without that second phase a system that has
stopped for ever would pass every check.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import json
import logging
import random
import zlib
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple
from uuid import UUID, uuid5

from pydantic import BaseModel
from sim.invariants import check, control_violations, ledger_violations, rollback_violations
from sim.loop import ACTOR, Deadlock, Killed, SimLoop, StepLimit
from sim.network import CALL_TIMEOUT_S, WAIT_S, Network, SimBus, SimClock, store_of
from sim.plan import FAULTS_UNTIL_S, ORCHESTRATORS, WORKERS, Fault, Mix, Order, OrderVerb, Plan
from sim.sink import Sink
from support.toolbox import MemoryArtifacts

from crewlog.agents.model import ModelError, OnText
from crewlog.agents.spec import AgentSpec, Probed, ToolContext, ToolOutcomeUnknown, ToolOutput, ToolSpec, Undo
from crewlog.agents.work import Workshop
from crewlog.agents.worker import Worker
from crewlog.events import faults
from crewlog.events.grants import ORCHESTRATOR, SPECIALIST
from crewlog.events.memory_bus import MemoryBroker
from crewlog.events.memory_store import MemoryLog, MemoryStore
from crewlog.orchestrator import rollback
from crewlog.orchestrator.planning import Offer
from crewlog.orchestrator.service import OrchestratorService, Settings
from crewlog.schemas.blocks import ModelReply, ModelRequest, ToolUse
from crewlog.schemas.budget import run_scope
from crewlog.schemas.effects import Effect
from crewlog.schemas.errors import OrchestrationError, Unavailable
from crewlog.schemas.ids import RunId, TaskId, idempotency_key, rollback_run_id, run_stream
from crewlog.schemas.price_table import TokenPrices
from crewlog.schemas.run_events import RunHeld
from crewlog.schemas.task_events import ApprovalDecided, ApprovalRequested
from crewlog.schemas.usage import Usage
from crewlog.schemas.values import Outcome

KIND: Final = "crafts"
SETTINGS: Final = Settings(sweep_interval_s=5.0, dispatch_lease_s=20.0, shutdown_grace_s=1.0, settle_grace_s=20.0, worker_grace_s=10.0)
IN_FLIGHT: Final = 4
"""So many tasks may be with the workers at most, and in most schedules fewer."""
PRICES: Final = {"puppets:*": TokenPrices(input=Decimal(1), output=Decimal(2))}
CALL_USAGE: Final = Usage(10, 5)
CALL_MICRO_USD: Final = 20
"""What the provider bills for every answer, also for one that reaches nobody."""
RUN_MICRO_USD: Final = 5_000_000
LIVENESS_S: Final = 900.0
"""Virtual time in which everything must end once the faults are over."""
ROLLED_BACK_EVERY: Final = 4
"""So many runs: one of them is taken back when it has ended."""
ROLLBACK_PAGE_BYTES: Final = 700
"""Of a rollback: one effect or two, so that it has pages, and dies between them too."""
CALM: Final = Mix(0.01, 0.0, 0.0, 0.0)
_NAMES: Final = UUID("7a1d4c52-9f0e-4b53-8e0a-0d6a5f6c1b77")


class Report(NamedTuple):
    """What one schedule showed."""

    violations: Sequence[str]
    digest: int
    history: int
    """Hash of the order of event types: how different two schedules were."""
    steps: int
    happened: Counter[str]
    """How often what happened: events recorded, calls of ports, processes that crashed, froze or were cut off, messages lost and repeated, …"""


class Words(BaseModel):
    """Arguments of every tool."""

    text: str


class Puppet:
    """A model whose next words follow from the conversation alone: look, put and book, then send, pay and rent, then submit."""

    wire, provider, name = "puppet.wire", "puppets", "puppet-1"

    def __init__(self, world: World, *, simulated: bool) -> None:
        self.simulated = simulated
        self._world = world

    async def complete(self, request: ModelRequest, *, timeout_s: float, on_text: OnText | None = None) -> ModelReply:
        await asyncio.sleep(self._world.effects.random() * 2)
        if self._world.effects.random() < self._world.network.mix.model_failures:
            self._world.happened["model failures"] += 1
            raise ModelError("overloaded", "try again")
        self._world.billed_micro_usd += CALL_MICRO_USD
        turn = sum(message.role == "assistant" for message in request.messages)
        asked = [("look", "put", "book"), ("send", "pay", "rent"), ("submit",)][min(turn, 2)]
        uses = tuple(ToolUse(f"c{turn}-{n}", tool, json.dumps({"text": f"{tool}-{turn}"})) for n, tool in enumerate(asked))
        return ModelReply(uses, "tool_use", CALL_USAGE, self.name)


_WORLD: Final[contextvars.ContextVar[World]] = contextvars.ContextVar("world")
"""Where the tools find what they act on: the agent is one value for all schedules, so that its prompt is made once."""


def _tool(name: str, effect: Effect, *, ends: bool = False, probes: bool = False, undo: Literal["", "intent", "outcome"] = "") -> ToolSpec:
    async def run(context: ToolContext, args: Words) -> ToolOutput:
        world = _WORLD.get()
        await asyncio.sleep(world.effects.random())
        if effect != "read":
            what = f"{context.task.task_id}/{name}/{args.text}"
            try:
                await world.network.call(lambda: world.sink.take(context.idempotency_key, what))
            except TimeoutError:
                raise ToolOutcomeUnknown("no answer") from None
        back = _undo(args, context.idempotency_key) if undo == "outcome" else None
        return ToolOutput(f"{name} done", outcome=Outcome(args.text) if ends else None, undo=back)

    async def probe(context: ToolContext, args: Words) -> Probed:
        world, key = _WORLD.get(), context.idempotency_key
        happened = await world.network.call(lambda: world.sink.holds(key))
        return Probed("happened", f"{name} was found", _undo(args, key) if undo == "outcome" else None) if happened else Probed("did_not_happen")

    spec = ToolSpec(name, name, Words, run, effect=effect, trust="trusted", ends_task=ends, timeout_s=30)
    return replace(spec, probe=probe if probes else None, undo=_undo if undo == "intent" else None)


def _undo(_: Words, key: str) -> Undo:
    return Undo("unmake", {"text": key}, resource=key)


async def _unmake(context: ToolContext, args: Words) -> ToolOutput:
    world = _WORLD.get()
    while True:
        try:
            await world.network.call(lambda: world.sink.undo(args.text, context.idempotency_key))
        except TimeoutError:
            continue
        return ToolOutput(f"{args.text} is gone")


AGENT: Final = AgentSpec(
    KIND,
    "makes things",
    "Do what you are told.",
    (
        _tool("look", "read"),
        _tool("put", "idempotent"),
        _tool("send", "irreversible"),
        _tool("pay", "irreversible", probes=True),
        _tool("book", "compensable", probes=True, undo="outcome"),
        _tool("rent", "compensable", undo="intent"),
        ToolSpec("unmake", "unmake", Words, _unmake, effect="idempotent", trust="trusted", timeout_s=30, undoes=True),
        _tool("submit", "read", ends=True),
    ),
)


class World:
    """Everything of one schedule."""

    def __init__(self, plan: Plan) -> None:
        _WORLD.set(self)  # before anything copies the context
        self.plan = plan
        self.loop = SimLoop(random.Random(f"{plan.seed}/schedule"))
        self.network = Network(self.loop, random.Random(f"{plan.seed}/net"), plan.mix)
        self.effects = random.Random(f"{plan.seed}/effects")
        self.clock = SimClock(self.loop, random.Random(f"{plan.seed}/ids"))
        self.log, self.broker, self.sink = MemoryLog(), MemoryBroker(), Sink()
        self.happened = self.network.happened
        self.accepted: set[RunId] = set()
        self.rollbacks: dict[RunId, RunId] = {}
        """A run that is taken back once it has ended -> its rollback, which is known beforehand."""
        self.billed_micro_usd = 0
        """The provider's own book."""
        self.committed_us: dict[int, int] = {}
        """Last position of an append -> when it was in the log."""
        self._workers: dict[int, Worker] = {}
        self._ordered = 0
        """Orders that were carried out and taken back."""
        self._actors = 0
        self._places: dict[tuple[str, int], int] = {}
        """(role, index) -> the actor that fills it now."""
        self._buses: dict[int, SimBus] = {}
        self._doomed_calls: dict[int, int] = {}
        self._doomed_points: dict[int, tuple[str, int]] = {}
        self.network.on_call = self._dies_at_call

    def spawn(self, role: str, index: int) -> int:
        """Start a process: a new actor in a place."""
        self._actors += 1
        actor = self._actors
        context = contextvars.copy_context()
        context.run(ACTOR.set, actor)
        self._places[role, index] = actor
        context.run(self._start, role, index, actor)
        return actor

    def agent(self, _: int) -> AgentSpec:
        """Return what the worker in a place is."""
        return AGENT

    def _start(self, role: str, index: int, actor: int) -> None:
        bus = self._buses[actor] = SimBus(self.network, self.broker)
        login = ORCHESTRATOR if role == "orchestrator" else SPECIALIST
        store = store_of(self.network, MemoryStore(self.log, role=login, actor=f"{role}@{actor}", on_commit=self._committed))
        if role == "orchestrator":
            settings = SETTINGS._replace(in_flight_max={KIND: 1 + self.plan.seed % IN_FLIGHT})  # so that messages wait for their turn
            service = OrchestratorService(store, bus, self.clock, settings, kinds={KIND: Offer("makes things")})
            self.loop.create_task(_start_in_the_end(service.start))
        else:
            models = (Puppet(self, simulated=False),)
            shop = Workshop(f"worker-{actor}", self.agent(index), models, MemoryArtifacts(), self.clock, Path("/nonexistent"), prices=PRICES)
            self.loop.create_task(self._work(actor, Worker(shop, store, bus, slots=2)))

    async def _work(self, actor: int, worker: Worker) -> None:
        """Be a worker until it is drained; then another one takes its place."""
        self._workers[actor] = worker
        await _start_in_the_end(worker.start)
        await worker.drained.wait()
        await worker.stop(grace_s=SETTINGS.shutdown_grace_s)
        self._in_the_world(0.0, lambda: self.kill(actor))

    def _committed(self, position: int) -> None:
        self.committed_us[position] = self.clock.now_us()

    async def play(self) -> None:
        """Play the plan, then wait for every run to come to its end."""
        for role, count in (("orchestrator", ORCHESTRATORS), ("worker", WORKERS)):
            for index in range(count):
                self.spawn(role, index)
        for fault in self.plan.faults:
            self._arm(fault)
        me = SimBus(self.network, self.broker)
        person = self.loop.create_task(self._person(me))
        for number in range(self.plan.runs):
            self.loop.create_task(self._submit(me, number))
        for order in self.plan.orders:
            self.loop.create_task(self._operate(me, order))
        self.loop.call_later(FAULTS_UNTIL_S, self._calm_down)
        try:
            async with asyncio.timeout(FAULTS_UNTIL_S + LIVENESS_S):
                while not self._is_over():  # noqa: ASYNC110  (a moment of virtual time costs nothing)
                    await asyncio.sleep(1.0)
                # whoever woke up late comes to its end, too
                await asyncio.sleep(max(CALL_TIMEOUT_S, self.network.disturbed_s + WAIT_S + CALL_TIMEOUT_S - self.loop.time()))
        except TimeoutError:
            return  # the checks say what is missing
        finally:
            person.cancel()

    def point(self, name: str) -> None:
        """A fault point was passed: the hook of `events.faults`."""
        actor = self.network.alive()
        armed = self._doomed_points.get(actor)
        if armed is not None and armed[0] == name:
            self._doomed_points[actor] = (name, armed[1] - 1)
            if armed[1] <= 1:
                self.kill(actor)
                raise Killed

    def kill(self, actor: int) -> None:
        """Let a process die, and another one take its place a little later."""
        if actor in self.loop.dead:
            return
        self.happened["crashes"] += 1
        self.network.disturbed()
        self.loop.kill(actor)
        self._buses[actor].vanish()
        place = next(place for place, holder in self._places.items() if holder == actor)
        self._in_the_world(self.effects.random() * 5, lambda: self.spawn(*place))

    def _is_over(self) -> bool:
        are_all_there = self._ordered == len(self.plan.orders) and len(self.accepted) == self.plan.runs
        if not are_all_there or not all(map(self._ended, (*self.accepted, *self.rollbacks.values()))):
            return False
        return not (self.broker.messages("WORK") or self.log.ledger.held or self.loop.frozen or self.network.cut)

    def _ended(self, run_id: RunId) -> bool:
        stream = self.log.streams.get(run_stream(run_id))
        return stream is not None and stream.closed

    def _in_the_world(self, delay_s: float, what: Callable[[], object]) -> None:
        context = contextvars.copy_context()
        context.run(ACTOR.set, 0)
        self.loop.call_later(delay_s, what, context=context)

    def _arm(self, fault: Fault) -> None:
        place = (fault.role, fault.index)
        match fault.kind:
            case "kill_at_call":
                self._doomed_calls[self._places[place]] = int(fault.at)
            case "kill_at_point":
                self._doomed_points[self._places[place]] = (fault.point, int(fault.at))
            case _:
                self._in_the_world(fault.at, lambda: self._strike(fault, self._places[place]))

    def _strike(self, fault: Fault, actor: int) -> None:
        self.happened[fault.kind] += 1
        match fault.kind:
            case "kill":
                self.kill(actor)
            case "freeze":
                self.loop.freeze(actor)
                self._over_after(fault, lambda: self.loop.thaw(actor))
            case "cut":
                self.network.cut.add(actor)
                self._over_after(fault, lambda: self.network.cut.discard(actor))
            case "wipe_queues":
                for message in list(self.broker._streams["WORK"].messages.values()):
                    if not message.in_flight:
                        self.broker._streams["WORK"].messages.pop(message.sequence)
            case "log_away":
                self.network.log_is_away = True
                self._over_after(fault, lambda: setattr(self.network, "log_is_away", False))
            case _:
                raise AssertionError(fault)

    def _over_after(self, fault: Fault, end: Callable[[], object]) -> None:
        def ended() -> None:
            end()
            self.network.disturbed()

        self._in_the_world(fault.lasts_s, ended)

    def _dies_at_call(self, actor: int, number: int) -> bool:
        if self._doomed_calls.get(actor) != number:
            return False
        self.kill(actor)
        return True

    def _calm_down(self) -> None:
        self._doomed_calls.clear()
        self._doomed_points.clear()
        self.network.mix = CALM
        self.network.log_is_away = False

    async def _submit(self, bus: SimBus, number: int) -> None:
        """Submit a run until the verdict arrives: the same task id every time."""
        task_id = str(uuid5(_NAMES, f"{self.plan.seed}/{number}"))
        body: dict[str, Any] = {"task_id": task_id, "type": KIND, "objective": "make it", "timeout_seconds": 3600}
        body |= {"limits": {"attempts_max": 20}, "budget": {"hard_micro_usd": 0 if self._has_nothing_yet(number) else RUN_MICRO_USD}}
        if number % 2:
            steps = [{"key": key, "type": KIND, "objective": key, "depends_on": list(after)} for key, after in (("a", ""), ("b", ""), ("c", "ab"))]
            body |= {"type": "run", "plan": {"steps": steps}}
        if number and (self.plan.seed + number - 1) % ROLLED_BACK_EVERY == 0:  # what is rolled back has a run that came from it
            body["parent_task_id"] = str(uuid5(_NAMES, f"{self.plan.seed}/{number - 1}"))
        await asyncio.sleep(self.effects.random() * 3)
        while True:
            try:
                answer = json.loads((await bus.request("api.default.tasks.submit", json.dumps(body).encode(), timeout_s=5.0)).data)
            except Unavailable:
                continue
            if answer["ok"]:
                run_id = RunId(UUID(answer["run_id"]))
                if (self.plan.seed + number) % ROLLED_BACK_EVERY == 0:
                    self.rollbacks[run_id] = rollback_run_id(run_id, number=1)
                    self.loop.create_task(self._roll_back(bus, run_id))
                self.accepted.add(run_id)
                return
            await asyncio.sleep(1.0)

    async def _operate(self, bus: SimBus, order: Order) -> None:
        """Do what an operator does, and take it back: each until the verdict arrives."""
        await asyncio.sleep(order.at)
        run_id = str(uuid5(_NAMES, f"{self.plan.seed}/{order.number}"))
        for verb in _both_ways(order.verb):
            await self._ask_until_answered(bus, *self._request(verb, run_id, order), run_id)
            await asyncio.sleep(order.lasts_s)
        self._ordered += 1
        self.happened["orders"] += 1

    def _request(self, verb: str, run_id: str, order: Order) -> tuple[str, dict[str, Any]]:
        who = {"actor": "operator", "reason": "a test", "command_id": str(uuid5(_NAMES, f"{self.plan.seed}/{order}/{verb}"))}
        what, _, scope = verb.partition("_")
        match scope:
            case "budget":
                hard = {"scope": run_scope(UUID(run_id)), "hard_micro_usd": RUN_MICRO_USD}
                return f"default.budgets.{what}", {"actor": "operator", **hard}
            case "tenant":
                return f"default.tenants.{what}", who
            case "kind":
                return f"system.kinds.{what}", {**who, "kind": KIND}
            case "worker":
                worker = self._places["worker", order.number % WORKERS]
                return "system.workers.drain", {"actor": "operator", "worker": f"worker-{worker}"}
            case _:
                return f"default.runs.{what}", {**who, "run_ids": [run_id]}

    def _has_nothing_yet(self, number: int) -> bool:
        return any(order.verb == "set_budget" and order.number == number for order in self.plan.orders)

    async def _ask_until_answered(self, bus: SimBus, what: str, body: dict[str, Any], run_id: str) -> None:
        while True:
            try:
                answer = json.loads((await bus.request(f"api.{what}", json.dumps(body).encode(), timeout_s=5.0)).data)
            except Unavailable:
                continue
            verdicts = answer.get("runs", [])
            is_over = all(v["status"] in ("completed", "failed", "cancelled") for v in verdicts)
            if answer["ok"] and (is_over or not any(v["error"] for v in verdicts)):
                return
            if answer.get("error", {}).get("code") == "not_found" and "worker" in body:
                return  # it died, or left
            if self._ended(RunId(UUID(run_id))):
                return  # it was terminated before it could have spent anything
            await asyncio.sleep(1.0)  # the run was not submitted yet, or its tenant is paused

    async def _roll_back(self, bus: SimBus, run_id: RunId) -> None:
        """Have a run taken back as soon as it has ended, asking until there is an answer."""
        while not self._ended(run_id):  # noqa: ASYNC110  (a moment of virtual time costs nothing)
            await asyncio.sleep(1.0)
        body = json.dumps({"run_id": str(run_id), "reason": "all of it was wrong", "actor": "person"}).encode()
        while not self._ended(self.rollbacks[run_id]):
            with contextlib.suppress(Unavailable):
                if json.loads((await bus.request("api.default.runs.rollback", body, timeout_s=5.0)).data)["ok"]:
                    return
            await asyncio.sleep(1.0)

    async def _person(self, bus: SimBus) -> None:
        """Answer every question a little later, after having looked; what was taken back cannot be done under its key again."""
        read = 0
        while True:
            await asyncio.sleep(5.0 + self.effects.random() * 20)
            fresh, read = self.log.events[read:], len(self.log.events)
            for recorded in fresh:
                if recorded.type == "ApprovalRequested":
                    event = recorded.event()
                    assert isinstance(event, ApprovalRequested)
                    self.loop.create_task(self._decide(bus, RunId(UUID(str(recorded.run_id))), str(recorded.task_id), event))

    async def _decide(self, bus: SimBus, run_id: RunId, task_id: str, asked: ApprovalRequested) -> None:
        key = idempotency_key(run_id, TaskId(UUID(task_id)), asked.call_id)
        decision = "happened" if self.sink.holds(key) else "give_up" if key in self.sink.undone else "did_not_happen"
        body = {"run_id": str(run_id), "approval_id": str(asked.approval_id), "decision": decision, "actor": "person"}
        while not self._is_decided(asked):
            try:
                answer = json.loads((await bus.request("api.default.approvals.decide", json.dumps(body).encode(), timeout_s=5.0)).data)
            except Unavailable:
                continue
            if answer["ok"] or self._ended(run_id):
                return
            await asyncio.sleep(2.0)  # the orchestrator may not have heard of the question yet

    def _is_decided(self, asked: ApprovalRequested) -> bool:
        decided = (recorded.event() for recorded in self.log.events if recorded.type == "ApprovalDecided")
        return any(isinstance(event, ApprovalDecided) and event.approval_id == asked.approval_id for event in decided)


def _both_ways(verb: OrderVerb) -> tuple[str, ...]:
    """Return what is asked, and what takes it back."""
    what, _, scope = verb.partition("_")
    back = {"pause": "resume", "quarantine": "release"}.get(what)
    return (verb if scope else f"{what}_{'worker' if what == 'drain' else 'run'}", *([f"{back}_{scope}"] if back else []))


async def _start_in_the_end(start: Callable[[], Coroutine[Any, Any, Any]]) -> None:
    """Start a service as its supervisor does: again, while the servers are away."""
    while True:
        try:
            await start()
        except OrchestrationError:
            await asyncio.sleep(1.0)
        else:
            return


def run(plan: Plan, *, world: Callable[[Plan], World] = World) -> Report:
    """Play one plan and check everything that must hold."""
    made = world(plan)
    loop, before, page_bytes = made.loop, logging.root.manager.disable, rollback.PAGE_BYTES_MAX
    logging.disable(logging.CRITICAL)
    faults.hook, rollback.PAGE_BYTES_MAX = made.point, ROLLBACK_PAGE_BYTES
    stopped: list[str] = []
    try:
        try:
            loop.run_until_complete(made.play())
        except (Deadlock, StepLimit) as error:
            stopped.append(f"{type(error).__name__}: {error}")
        violations = [*stopped, *(f"unhandled: {error!r}" for error in loop.unnoticed())]
        violations += [f"{context.get('message')}: {context.get('exception')!r}" for context in loop.failures]
        violations += check(made.log, made.accepted, made.sink, expected=plan.runs)
        violations += rollback_violations(made.log, made.rollbacks, made.sink)
        violations += control_violations(made.log, made.committed_us)
        violations += ledger_violations(made.log, made.accepted, made.billed_micro_usd)
        if not stopped and made.broker.messages("WORK"):
            violations.append(f"{len(made.broker.messages('WORK'))} messages are left in the work queue")
        for recorded in made.log.events:
            loop.note(f"{recorded.stream}/{recorded.version}/{recorded.type}")
        history = zlib.crc32(" ".join(recorded.type for recorded in made.log.events).encode())
        held = sum(recorded.type == RunHeld.__name__ for recorded in made.log.events)
        made.happened.update({"steps": loop.steps, "events": len(made.log.events), "calls": sum(made.network.calls.values()), "held": held})
        return Report(violations, loop.digest, history, loop.steps, made.happened)
    finally:
        loop.forget()
        faults.hook, rollback.PAGE_BYTES_MAX = None, page_bytes
        logging.disable(before)
