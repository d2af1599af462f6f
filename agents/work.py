"""One task from where it is to where it can go: ask `next_step`, perform it, record what happened. The shell of the turn machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, assert_never

import msgspec

from crewlog.agents.breaker import Breakers
from crewlog.agents.compaction import Compact, make_room
from crewlog.agents.conversation import payloads_of
from crewlog.agents.fresh_setup import make_setup
from crewlog.agents.journal import Journal
from crewlog.agents.live_text import LiveText
from crewlog.agents.model import Model
from crewlog.agents.model_call import ModelCalls, given_up
from crewlog.agents.models import PLANNERS_TASKS
from crewlog.agents.orders import Orders
from crewlog.agents.patience import Patience
from crewlog.agents.setup import WINDOW, ContextMode, Setup, instructed, opening_message
from crewlog.agents.spec import AgentSpec, ToolSpec
from crewlog.agents.task_state import open_model_calls
from crewlog.agents.tool_calls import ToolCalls
from crewlog.agents.tool_ways import ToolHealth
from crewlog.agents.toolbox import toolbox
from crewlog.agents.turn import OPEN, AskModel, Done, Fail, Finish, GiveUpCall, Nudge, RunCalls, Start, Step, Wait, limit_failure, next_step
from crewlog.agents.versions import tools_of
from crewlog.events.artifacts import ArtifactStore
from crewlog.events.clock import Clock
from crewlog.schemas.errors import ConfigError
from crewlog.schemas.ids import Hash
from crewlog.schemas.payload import Payload
from crewlog.schemas.price_table import TokenPrices
from crewlog.schemas.task import AgentTask
from crewlog.schemas.task_events import (
    AttemptFailed,
    ContextCompacted,
    Link,
    Nudged,
    TaskCompleted,
    TaskHandedBack,
    TaskMoved,
    TaskStarted,
)
from crewlog.schemas.usage import OFFLINE
from crewlog.schemas.values import Failure, Outcome, Shortfall

Ended = Literal["completed", "failed", "suspended", "handed_back", "cut", "nothing"]


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
    moves_tasks: bool = False
    """Tasks that began under another version of the agent go on under this one, as soon as nothing of them is under way."""
    saves_money: bool = False
    """Past the soft limit of a budget, a task goes on from the cheapest model of the chain."""
    breakers: Breakers = field(default_factory=Breakers)
    roles: Mapping[str, tuple[Model, ...]] = field(default_factory=dict)
    """Chains of their own for some tasks, by the task's key without its `@`: `synthesis`, `critic`, `router`."""
    live: LiveText | None = None
    """Where answers are told while they are written."""
    approval_ttl_s: float = 86_400.0
    hold_fresh_s: float = 15.0
    """How long after its last word nobody can have taken a task over, in seconds: half of the ack wait, of which a third may pass between two signs
    of life, or of the time after which orchestrators publish a silent task again, if that is less."""
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


async def work(shop: Workshop, journal: Journal, *, attempt: int, orders: Orders | None = None) -> Ended:
    """Carry one task as far as it goes without anybody else, and return how this stretch ended.

    Args:
        orders: what may keep a step from beginning, or cut the task off; nothing does by default.

    Raises:
        ConflictError: the task belongs to somebody else now; whatever was not durable never happened.
        Unavailable: the log cannot be reached.
    """
    return await _Stretch(shop, journal, attempt, orders).run()


class _Stretch:
    """One worker's hold on one task."""

    def __init__(self, shop: Workshop, journal: Journal, attempt: int, orders: Orders | None) -> None:
        assert journal.state.task is not None
        self._shop, self._journal, self._attempt, self._orders = shop, journal, attempt, orders
        self._task = journal.state.task
        now_us = shop.clock.now_us()
        self._deadline_us = journal.state.deadline_us or now_us + self._task.timeout_seconds * 1_000_000
        self._patience = Patience(left_s=(self._deadline_us - now_us) / 1e6, idle_s=self._task.limits.idle_seconds)
        self._own_tools = toolbox(shop.spec.tools_for(self._task))
        self._tool_calls = ToolCalls(shop, journal, self._task, tools_of(shop.spec, self._task), self._patience.moved)
        self._setup: Setup | None = None
        self._calls = shop.model_calls(self._task)
        self._holds_task = False
        self._is_current = False
        """Whether it was looked at, in this stretch, which version of the agent the task goes on under."""

    async def run(self) -> Ended:
        journal, task, patience = self._journal, self._task, self._patience
        try:
            async with patience:
                if self._orders is not None:
                    self._orders.hold(journal, patience.cut)
                try:
                    return await self._run()
                finally:
                    if self._orders is not None:
                        self._orders.drop(journal)
        except TimeoutError:
            if patience.why == "cut":
                await journal.abandon()
                return "cut"
            if not patience.why:
                raise
            self._give_up_calls()
            if patience.why == "over":
                seconds = task.timeout_seconds
                return await self._fail(Failure("timeout", f"limit timeout_seconds reached: {seconds} of max {seconds}, raise timeout_seconds to go on"))
            # whatever hangs may answer the next time, and nothing that was done is lost
            return await self._fail(limit_failure("idle_seconds", task.limits.idle_seconds, task.limits.idle_seconds, retryable=True))

    def _give_up_calls(self) -> None:
        """Close what was under way: it may have been billed. What came before, and is not durable yet, is written with it."""
        for asking in open_model_calls(self._journal.state):
            if asking.wire or asking.provider == OFFLINE:
                late = given_up(asking, message="the time of the task was over before an answer came")
                self._journal.close_call(late, reserved_micro_usd=asking.reserved_micro_usd)

    async def _run(self) -> Ended:
        journal = self._journal
        while True:
            self._patience.moved()
            step = self._next()
            if isinstance(step, Start | AskModel | RunCalls) and self._orders is not None and (scope := await self._orders.against(self._task)):
                return await self._hand_back(scope)
            if isinstance(step, AskModel) and self._shop.moves_tasks and self._move_on():
                continue
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
                    assert self._setup is not None
                    await self._tool_calls.run(step.calls, self._setup)
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
            if any(c.status == "asked" for c in state.calls) and not any(c.status in {"running", *OPEN} for c in state.calls):
                return Done()  # delivered again while a person still decides
            return Start()
        return next_step(state, self._setup)

    async def _start(self) -> None:
        journal, state, shop = self._journal, self._journal.state, self._shop
        if state.setup is None or state.opening is None:
            context = shop.spec.context or shop.context
            self._setup, setup_json = await self._new_setup(context)
            setup = journal.pack_setup(setup_json)
            opening = journal.pack(opening_message(self._task, context, shop.spec.lacking() if shop.spec.lacking else ()))
        else:
            setup, opening = state.setup, state.opening
            await journal.load([setup, *payloads_of(state)])
            self._setup = msgspec.json.decode(journal.read(setup), type=Setup)
        # no model is asked to take an effect back
        chain = self._calls.links() if self._task.undo is None else (Link("", "", ""),)
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
                chain=() if len(chain) == 1 and (chain[0].simulated or not chain[0].wire) else chain,
                deadline_us=self._deadline_us,
                refusals_fall_through=shop.refusals_fall_through,
                hedge_after_s=shop.hedge_after_s,
            )
        )
        self._holds_task = True

    def _move_on(self) -> bool:
        """Let a task that began under another version of its agent go on under this one; False when it is this one's already.

        Between two turns, when nothing of it is under way. A trial is about the version it names, and an effect is taken back as it was done.
        """
        journal, state, setup, task, shop = self._journal, self._journal.state, self._setup, self._task, self._shop
        if self._is_current or setup is None or state.tried or task.trial is not None or task.undo is not None or state.is_forked:
            return False
        self._is_current = True
        made, setup_json = make_setup(shop.spec, self._offered(), setup.context, shop.context_window, has_schema=task.output_schema is not None)
        if made == setup:
            return False
        self._setup = made
        journal.record(TaskMoved(shop.worker, setup.version, made.version, journal.pack_setup(setup_json)))
        return True

    async def _new_setup(self, context: ContextMode) -> tuple[Setup, str]:
        """Fix prompt and tool rules of a task that begins here.

        Raises:
            ContractError: it is a trial whose prompt is not in the log.
        """
        shop, task = self._shop, self._task
        made = make_setup(shop.spec, self._offered(), context, shop.context_window, has_schema=task.output_schema is not None)
        if task.trial is None:
            return made
        prompt = task.trial.prompt_of(shop.spec.kind)
        if prompt is None:
            return made
        payload = Payload(0, ref=Hash(prompt))
        await self._journal.load([payload])
        changed = instructed(made[0], self._journal.read(payload))
        return changed, msgspec.json.encode(changed).decode()

    async def _may_begin(self) -> bool:
        return self._orders is None or not await self._orders.against(self._task)

    async def _hand_back(self, scope: str) -> Ended:
        state = self._journal.state
        self._journal.record(TaskHandedBack(max(state.attempt, self._attempt), scope, state.handed_back + 1))
        await self._journal.commit()
        return "handed_back"

    def _offered(self) -> tuple[ToolSpec, ...]:
        """Return the tools of a task that begins here: those a model is offered, or the one that takes an effect back."""
        if (order := self._task.undo) is None:
            return self._own_tools.offered
        spec = self._own_tools.find(order.tool, order.version)
        return () if spec is None else (spec,)

    async def _ask(self, step: AskModel) -> Failure | None:
        """Make the call, or note what must be left out of the conversation first; returns why neither is possible."""
        journal, setup = self._journal, self._setup
        assert setup is not None
        if step.wait_s > 0 and self._orders is not None:
            await journal.commit()
            if await self._orders.wait(self._task, step.wait_s) or await self._orders.against(self._task):
                return None  # the same step comes again, and does not begin
            step = msgspec.structs.replace(step, wait_s=0.0)
        room = make_room(journal.state, setup, journal.read, link=step.link, purpose=step.purpose, is_too_long=step.is_too_long)
        match room:
            case Compact():
                link = journal.state.chain[step.link]
                tokens = (room.tokens_before, room.tokens_after, room.tokens_max)
                journal.record(ContextCompacted(step.turn, room.reason, link.provider, link.model, *tokens, room.replaced))
            case Failure():
                return room
            case _:
                await self._calls.make(journal, setup, msgspec.structs.replace(step, estimated_tokens=room), self._patience.moved, self._may_begin)
        return None

    def _completed(self, outcome: Outcome) -> TaskCompleted:
        state = self._journal.state
        return TaskCompleted(outcome, state.usage, state.cost_micro_usd, state.turn, state.tool_calls, state.unpriced_calls)

    async def _fail(self, failure: Failure, shortfall: Shortfall | None = None) -> Ended:
        state = self._journal.state
        self._journal.record(AttemptFailed(max(state.attempt, self._attempt), failure, state.usage, state.cost_micro_usd, shortfall or msgspec.UNSET))
        await self._journal.commit()
        return "failed"
