"""One task from where it is to where it can go: ask `next_step`, perform it, record what happened. The shell of the turn machine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, assert_never

import msgspec

from crewlog.agents.breaker import Breakers
from crewlog.agents.compaction import Compact, make_room
from crewlog.agents.conversation import payloads_of
from crewlog.agents.escalation import ESCALATE_TOOL
from crewlog.agents.journal import Journal
from crewlog.agents.live_text import LiveText
from crewlog.agents.model import Model
from crewlog.agents.model_call import ModelCalls, given_up
from crewlog.agents.models import PLANNERS_TASKS
from crewlog.agents.recall import READ_CONTEXT_TOOL, RECALL_TOOL
from crewlog.agents.setup import WINDOW, ContextMode, Setup, SetupTool, instructed, make_setup, opening_message
from crewlog.agents.spec import AgentSpec, ToolContext, ToolOutput, ToolSpec
from crewlog.agents.stand_in import StandIns
from crewlog.agents.task_state import Call, open_model_calls
from crewlog.agents.tool_runner import Answer, Ask, Ran, Refuse, Run, judge, run_tool
from crewlog.agents.tool_ways import ToolHealth
from crewlog.agents.toolbox import Toolbox
from crewlog.agents.turn import AskModel, Done, Fail, Finish, GiveUpCall, Nudge, RunCalls, Start, Step, Wait, limit_failure, next_step
from crewlog.events.artifacts import ArtifactStore
from crewlog.events.clock import Clock
from crewlog.schemas.errors import ConfigError, ContractError
from crewlog.schemas.ids import ApprovalId, Hash, RunId, TaskId, idempotency_key
from crewlog.schemas.payload import Payload
from crewlog.schemas.price_table import TokenPrices
from crewlog.schemas.task import AgentTask
from crewlog.schemas.task_events import (
    ApprovalRequested,
    AttemptFailed,
    ContextCompacted,
    Nudged,
    TaskCompleted,
    TaskStarted,
    ToolFinished,
    ToolStarted,
    ToolWays,
)
from crewlog.schemas.values import Failure, Outcome, Shortfall

Ended = Literal["completed", "failed", "suspended", "nothing"]


@dataclass(frozen=True, slots=True)
class Workshop:
    """What a worker has for all its tasks."""

    worker: str
    spec: AgentSpec
    chain: tuple[Model, ...]
    """Its models, in order of preference."""
    artifacts: ArtifactStore
    clock: Clock
    workspaces: Path
    prices: Mapping[str, TokenPrices] = field(default_factory=dict)
    """The operator's own prices of models."""
    model_timeout_s: float = 300.0
    """Longest time one model call may take, in seconds."""
    refusals_fall_through: bool = False
    """A model that refuses is followed by the next one of the chain."""
    hedge_after_s: float | None = None
    """A model that has not begun a structured answer after so many seconds gets another one beside it; None: never."""
    allow_unpriced: bool = False
    """A task with a spending limit may ask a model nobody knows the price of."""
    saves_money: bool = False
    """Past the soft limit of a budget, a task goes on from the cheapest model of the chain."""
    breakers: Breakers = field(default_factory=Breakers)
    roles: Mapping[str, tuple[Model, ...]] = field(default_factory=dict)
    """Chains of their own for some tasks, by the task's key without its `@`: `synthesis`, `critic`, `router`."""
    live: LiveText | None = None
    """Where answers are told while they are written."""
    approval_ttl_s: float = 86_400.0
    context: ContextMode = "inject"
    """For agents that do not say themselves how they want the outcomes of earlier tasks."""
    context_window: int = WINDOW
    """Tokens of the window of a model of which nobody knows it."""
    health: ToolHealth = field(default_factory=ToolHealth)
    trial_chain: Callable[[str, str], tuple[Model, ...] | None] | None = None
    """Given the models of a trial and a role, returns the chain to use, None for the usual one; without it a trial may name no models."""

    def model_calls(self, task: AgentTask) -> ModelCalls:
        """Return what the model calls of one task go through.

        Raises:
            ConfigError: it is a trial with models that this worker cannot ask.
        """
        role = (task.key or "").removeprefix("@").partition("-")[0]
        return ModelCalls(
            self._tried(task, role) or self.roles.get(role, self.chain),
            self.clock,
            self.breakers,
            self.prices,
            allow_unpriced=self.allow_unpriced,
            saves_money=self.saves_money,
            live=self.live,
            timeout_s=self.model_timeout_s,
        )

    def _tried(self, task: AgentTask, role: str) -> tuple[Model, ...] | None:
        if task.trial is None or not task.trial.models:
            return None
        if self.trial_chain is None:
            raise ConfigError(f"{self.worker} cannot ask other models than its own, but the trial names {task.trial.models}")
        return self.trial_chain(task.trial.models, role if role in self.roles or role in PLANNERS_TASKS else self.spec.kind)


async def work(shop: Workshop, journal: Journal, *, attempt: int) -> Ended:
    """Carry one task as far as it goes without anybody else, and return how this stretch ended.

    Raises:
        ConflictError: the task belongs to somebody else now; whatever was not durable never happened.
        Unavailable: the log cannot be reached.
    """
    return await _Stretch(shop, journal, attempt).run()


class _Stretch:
    """One worker's hold on one task."""

    def __init__(self, shop: Workshop, journal: Journal, attempt: int) -> None:
        assert journal.state.task is not None
        self._shop, self._journal, self._attempt = shop, journal, attempt
        self._task = journal.state.task
        own = shop.spec.tools_for(self._task)
        self._own_tools = Toolbox(own)
        self._tools = Toolbox((ESCALATE_TOOL, READ_CONTEXT_TOOL, RECALL_TOOL, *own))
        self._setup: Setup | None = None
        self._calls = shop.model_calls(self._task)
        self._stand_ins = None if self._task.trial is None else StandIns(self._task, journal)
        self._deadline_us = journal.state.deadline_us or shop.clock.now_us() + self._task.timeout_seconds * 1_000_000
        self._holds_task = False
        self._limit = asyncio.timeout(None)
        self._ends_at = self._moved_at = 0.0
        """When the task's time is over, and when something moved last, by the event loop's clock."""
        self._watch: asyncio.TimerHandle | None = None

    async def run(self) -> Ended:
        task, loop = self._task, asyncio.get_running_loop()
        self._ends_at = loop.time() + (self._deadline_us - self._shop.clock.now_us()) / 1e6
        try:
            async with self._limit:
                try:
                    return await self._run()
                finally:
                    if self._watch is not None:
                        self._watch.cancel()
        except TimeoutError:
            is_over = loop.time() >= self._ends_at
            await self._journal.abandon()
            self._give_up_calls()
            if not self._limit.expired():
                raise
            if is_over:
                seconds = task.timeout_seconds
                return await self._fail(Failure("timeout", f"limit timeout_seconds reached: {seconds} of max {seconds}, raise timeout_seconds to go on"))
            # whatever hangs may answer the next time, and nothing that was done is lost
            return await self._fail(limit_failure("idle_seconds", task.limits.idle_seconds, task.limits.idle_seconds, retryable=True))

    def _give_up_calls(self) -> None:
        """Close what was under way: it may have been billed. A simulated call never reached the log."""
        for asking in open_model_calls(self._journal.state):
            if asking.wire and not self._journal.state.chain[asking.link].simulated:
                late = given_up(asking, message="the time of the task was over before an answer came")
                self._journal.close_call(late, reserved_micro_usd=asking.reserved_micro_usd)

    def _moved(self, _: str = "") -> None:
        """Note a sign of progress: an event, a piece of an answer. They come by the thousand, so the timer is not moved for each."""
        self._moved_at = asyncio.get_running_loop().time()
        if self._watch is None:
            self._look()

    def _look(self) -> None:
        """End the stretch if its time is over or it stands still; otherwise look again when that may be."""
        loop = asyncio.get_running_loop()
        due = min(self._ends_at, self._moved_at + self._task.limits.idle_seconds)
        if due > loop.time():
            self._watch = loop.call_at(due, self._look)
        elif not self._limit.expired():
            self._limit.reschedule(loop.time())

    async def _run(self) -> Ended:
        journal = self._journal
        while True:
            self._moved()
            step = self._next()
            match step:
                case Start():
                    await self._start()
                case AskModel():
                    if failure := await self._ask(step):
                        return await self._fail(failure)
                case GiveUpCall():
                    journal.close_call(given_up(step.asking), reserved_micro_usd=step.asking.reserved_micro_usd)
                case Nudge():
                    journal.record(Nudged("loop", step.text))
                case RunCalls():
                    await self._run_calls(step.calls)
                case Wait():
                    await journal.commit()
                    return "suspended"
                case Finish():
                    journal.record(self._completed(step.outcome))
                    await journal.commit()
                    return "completed"
                case Fail():
                    return await self._fail(step.failure, step.shortfall)
                case Done():
                    await journal.commit()
                    return "nothing"
                case _:
                    assert_never(step)

    def _next(self) -> Step:
        state = self._journal.state
        begins = state.phase == "between_attempts" and state.attempt < self._attempt
        if not self._holds_task and (begins or state.phase == "working"):
            if any(c.status == "asked" for c in state.calls) and not any(c.status in ("new", "running", "approved", "denied") for c in state.calls):
                return Done()  # delivered again while a person still decides
            return Start()
        return next_step(state, self._setup)

    async def _start(self) -> None:
        journal, state, shop = self._journal, self._journal.state, self._shop
        if state.setup is None or state.opening is None:
            context = shop.spec.context or shop.context
            self._setup, setup_json = await self._new_setup(context)
            setup = journal.pack(setup_json, inline_max=0)  # most tasks of a kind share one: stored once, not with each
            opening = journal.pack(opening_message(self._task, context))
        else:
            setup, opening = state.setup, state.opening
            await journal.load([setup, *payloads_of(state)])
            self._setup = msgspec.json.decode(journal.read(setup), type=Setup)
        chain = self._calls.links()
        journal.record(
            TaskStarted(
                worker=shop.worker,
                attempt=max(self._attempt, 1),
                agent_version=self._setup.version,
                model=chain[0].model,
                provider=chain[0].provider,
                simulated=chain[0].simulated,
                setup=setup,
                opening=opening,
                taken_over_from=state.worker,
                chain=() if len(chain) == 1 and chain[0].simulated else chain,
                deadline_us=self._deadline_us,
                refusals_fall_through=shop.refusals_fall_through,
                hedge_after_s=shop.hedge_after_s,
            )
        )
        self._holds_task = True

    async def _new_setup(self, context: ContextMode) -> tuple[Setup, str]:
        """Fix prompt and tool rules of a task that begins here.

        Raises:
            ContractError: it is a trial of another version of this agent, or its prompt is not in the log.
        """
        shop, task = self._shop, self._task
        made = make_setup(shop.spec, self._own_tools.offered(), context, shop.context_window, has_schema=task.output_schema is not None)
        if task.trial is None:
            return made
        if task.trial.agent_version not in ("", made[0].version):
            raise ContractError(f"task {task.task_id} is a trial of {task.type} agent {task.trial.agent_version!r}; {shop.worker} has {made[0].version!r}")
        prompt = task.trial.prompt_of(shop.spec.kind)
        if prompt is None:
            return made
        payload = Payload(0, ref=Hash(prompt))
        await self._journal.load([payload])
        changed = instructed(made[0], self._journal.read(payload))
        return changed, msgspec.json.encode(changed).decode()

    async def _ask(self, step: AskModel) -> Failure | None:
        """Make the call, or note what must be left out of the conversation first; returns why neither is possible."""
        journal, setup = self._journal, self._setup
        assert setup is not None
        room = make_room(journal.state, setup, journal.read, link=step.link, purpose=step.purpose, is_too_long=step.is_too_long)
        match room:
            case Compact():
                link = journal.state.chain[step.link]
                tokens = (room.tokens_before, room.tokens_after, room.tokens_max)
                journal.record(ContextCompacted(step.turn, room.reason, link.provider, link.model, *tokens, room.replaced))
            case Failure():
                return room
            case _:
                await self._calls.make(journal, setup, msgspec.structs.replace(step, estimated_tokens=room), self._moved)
        return None

    async def _run_calls(self, calls: tuple[Call, ...]) -> None:
        journal, setup = self._journal, self._setup
        assert setup is not None
        running: list[tuple[Call, str, int]] = []
        for call in calls:
            arguments = journal.read(call.call.arguments)
            verdict = judge(call, journal.state, setup, self._tool(call), arguments)
            match verdict:
                case Refuse():
                    status: Literal["unknown", "refused"] = "unknown" if verdict.unknown else "refused"
                    journal.record(ToolFinished(call.call.call_id, call.call.tool, status, journal.pack(verdict.message), 0))
                case Ask():
                    expires_us = self._shop.clock.now_us() + round(self._shop.approval_ttl_s * 1e6)
                    journal.record(
                        ApprovalRequested(
                            verdict.approval_id, call.call.call_id, call.call.tool, call.call.arguments, Hash(verdict.digest), verdict.reason, expires_us
                        )
                    )
                case Answer():
                    journal.record(ToolFinished(call.call.call_id, call.call.tool, "ok", journal.pack(verdict.message), 0))
                case Run():
                    tool = setup.tool(call.call.tool)
                    assert tool is not None
                    if (begun := await self._begin(call, tool, verdict.approval_id)) is not None:
                        running.append(begun)
        if running:
            await self._perform(running)

    async def _begin(self, call: Call, tool: SetupTool, approval_id: ApprovalId | None) -> tuple[Call, str, int] | None:
        """Record the intent of a call; in a trial also its outcome, when it is not to be carried out: then nothing is left to perform."""
        journal = self._journal
        key = idempotency_key(RunId(self._task.run_id), TaskId(self._task.task_id), call.call.call_id)
        stand_in = None if self._stand_ins is None else await self._stand_ins.for_call(call, tool)
        started = ToolStarted(call.call.call_id, call.call.tool, tool.version, tool.effect, key, approval_id)
        if stand_in is None:
            journal.record(started)
            return call, key, journal.state.version
        journal.record(msgspec.structs.replace(started, stub=stand_in.stub))
        journal.record(stand_in.finished)
        return None

    async def _perform(self, running: list[tuple[Call, str, int]]) -> None:
        """Run calls side by side, and record each outcome as soon as no other one is about to come with it.

        Args:
            running: each with its idempotency key and the version of its `ToolStarted`.
        """
        journal = self._journal
        if all((tool := self._tool(call)) is not None and tool.effect == "read" for call, *_ in running):
            journal.send()
        else:
            await journal.commit()
        if len(running) == 1:
            finished = await self._perform_one(*running[0])
            self._moved()
            journal.record(finished)
            return
        left = {asyncio.create_task(self._perform_one(*one)) for one in running}
        try:
            while left:
                done, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
                self._moved()
                for event in sorted((task.result() for task in done), key=lambda e: e.call_id):
                    journal.record(event)
                if left:
                    journal.send()
        finally:
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    async def _perform_one(self, call: Call, key: str, version: int) -> ToolFinished:
        tool = self._tool(call)
        assert tool is not None  # `judge` lets nothing else run
        context = ToolContext(
            task=self._task,
            call_id=call.call.call_id,
            idempotency_key=key,
            artifacts=self._shop.artifacts,
            workspace=self._shop.workspaces / str(self._task.task_id),
            earlier_artifacts=self._journal.state.artifacts,
            recall=self._recall,
            trust=self._journal.state.trust,
            version=version,
        )
        ran = await run_tool(tool, context, self._journal.read(call.call.arguments), self._shop.clock, self._shop.health)
        return self._finished(call, tool, ran)

    def _tool(self, call: Call) -> ToolSpec | None:
        """Return what carries out a call, in the version that the task began with."""
        known = self._setup.tool(call.call.tool) if self._setup else None
        return None if known is None else self._tools.find(call.call.tool, known.version)

    async def _recall(self, call_id: str) -> ToolOutput | None:
        journal = self._journal
        found = next((r for e in journal.state.exchanges for r in e.results if r.call_id == call_id), None)
        if found is None:
            return None
        await journal.load([found.content])
        return ToolOutput(journal.read(found.content), trust=found.trust)

    def _finished(self, call: Call, tool: ToolSpec, ran: Ran) -> ToolFinished:
        output, ways = ran.output, ran.ways
        is_plain = ways is None or (ways.tries == 1 and not tool.fallbacks)
        return ToolFinished(
            call_id=call.call.call_id,
            tool=call.call.tool,
            status="ok" if ran.is_ok else "error",
            result=self._journal.pack(output.content),
            latency_ms=ran.latency_ms,
            trust=output.trust or tool.trust,
            artifacts=output.artifacts,
            outcome=output.outcome if tool.ends_task else None,
            ways=msgspec.UNSET if ways is None or is_plain else ToolWays(ways.implementation, ways.tries, ways.degraded),
        )

    def _completed(self, outcome: Outcome) -> TaskCompleted:
        state = self._journal.state
        return TaskCompleted(outcome, state.usage, state.cost_micro_usd, state.turn, state.tool_calls, state.unpriced_calls)

    async def _fail(self, failure: Failure, shortfall: Shortfall | None = None) -> Ended:
        state = self._journal.state
        self._journal.record(AttemptFailed(state.attempt or self._attempt, failure, state.usage, state.cost_micro_usd, shortfall or msgspec.UNSET))
        await self._journal.commit()
        return "failed"

    def _since(self, began: float) -> int:
        return round((self._shop.clock.monotonic() - began) * 1000)
