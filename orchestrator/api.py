"""Request-reply endpoints `api.<tenant>.<noun>.<verb>`. All orchestrators share one queue group; each request is answered by one.

tasks.submit       body: AgentTask                                        -> run_id, task_id, status
runs.get           {"run_id"}                                             -> run
runs.rollback      {"run_id", "reason", "actor"}                          -> run_id (of the rollback), status, orders, left, more
runs.queue         {"run_id"}                                             -> held: task -> where it stands; out: kind -> tasks with agents;
                                                                               needs: task -> version its agent must have
runs.fork          {"run_id", "at", "actor", …}, see `forks.ForkRequest`  -> run_id, parent_run_id, at, tasks, status
approvals.decide   {"run_id", "approval_id", "decision", "actor", "note"} -> approval_id, decision
budgets.raise      {"scope", "hard_micro_usd", "soft_micro_usd", "actor", "reason"} -> scope and its state; runs that it held go on
budgets.set        the same; the hard limit may be lower, or null for none
letters.redrive    {"sequence"}                                           -> status: published, ended, waits or unknown; detail
schedules.add      {"name", "cron", "zone", "catch_up", "task", "actor"}  -> schedule
schedules.list     {}                                                     -> schedules
schedules.change   {"name", "verb": pause|resume|remove, "actor", "reason"} -> schedule
schedules.run      {"name", "actor"}                                      -> run_id, error
agents.register.<kind>  AgentRegistered as JSON (tenant `system`)         -> kind, lane: where it finds work that needs its version
agents.hand_on.<kind>   {"run_id", "task_id", "version"} (tenant `system`) -> handed_on: whether a worker of that version gets the task
agents.stop.<kind>      {"kind", "worker"} (tenant `system`)              -> kind; once the worker answers no more

What operators do to runs, tenants, kinds and workers stands in `api_control`.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Annotated, Final, Literal
from uuid import UUID

import msgspec

from crewlog.events.bus import Bus, Message, Subscription
from crewlog.events.clock import Clock
from crewlog.events.store import BudgetState, EventStore
from crewlog.orchestrator.api_control import ControlApi, Endpoint
from crewlog.orchestrator.budgets import Budgets
from crewlog.orchestrator.commands import Answer, DecideApproval, SubmitRun
from crewlog.orchestrator.dead_letters import DeadLetters
from crewlog.orchestrator.decide import decide
from crewlog.orchestrator.dispatcher import Dispatcher
from crewlog.orchestrator.driver import Driver
from crewlog.orchestrator.forks import ForkRequest, Forks
from crewlog.orchestrator.handing_on import HandOnRequest, hand_on
from crewlog.orchestrator.kinds import KindDirectory, lane_beside
from crewlog.orchestrator.replies import accepted, bounded, decoded, person, refused, somebody
from crewlog.orchestrator.report import run_report, schedule_report, text_of
from crewlog.orchestrator.rollbacks import Rollbacks
from crewlog.orchestrator.run import RunState, active_tasks, initial_state
from crewlog.orchestrator.schedule import AddSchedule, ChangeSchedule
from crewlog.orchestrator.schedules import Schedules
from crewlog.orchestrator.silent_workers import SilentWorkers, Worker
from crewlog.orchestrator.submission import read_submission
from crewlog.schemas.budget import MICRO_USD_MAX
from crewlog.schemas.errors import ContractError, LimitExceeded, NotFound, OrchestrationError
from crewlog.schemas.ids import TOKEN, WORKER, ApprovalId, RunId
from crewlog.schemas.system_events import AgentRegistered, AgentStopped, CatchUp
from crewlog.schemas.task import RUN
from crewlog.schemas.text import shorten
from crewlog.schemas.trace_context import TRACEPARENT

QUEUE: Final = "orchestrator"
SYSTEM: Final = "system"
TEXT_CHARS_MAX: Final = 100_000
"""Of a run's text in an answer, which has to fit into one message; `text_bytes` says how long all of it is."""

log = logging.getLogger(__name__)


class RunRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Names a run."""

    run_id: UUID


class RedriveRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Publish the task of a dead letter again."""

    sequence: Annotated[int, msgspec.Meta(ge=1)]


class AddScheduleRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Let a task recur. `zone`: an IANA time zone."""

    name: str
    cron: str
    task: msgspec.Raw
    zone: str = "UTC"
    catch_up: CatchUp = "one"
    actor: str = "anonymous"


class ChangeScheduleRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Pause, resume or remove a schedule."""

    name: str
    verb: Literal["pause", "resume", "remove"]
    actor: str = "anonymous"
    reason: str = ""


class RunScheduleRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Submit a run of a schedule now."""

    name: str
    actor: str = "anonymous"


class RollbackRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Take back what a run did that has ended."""

    run_id: UUID
    reason: str
    actor: str


class DecideRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Approve or deny one tool call, or say what became of one."""

    run_id: UUID
    approval_id: UUID
    decision: Answer
    actor: str
    note: str = ""


MicroUsd = Annotated[int, msgspec.Meta(ge=0, le=MICRO_USD_MAX)]


class RaiseRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Raise the limit of a budget scope. Without a soft limit it becomes 70 % of the hard one."""

    scope: str
    hard_micro_usd: MicroUsd
    actor: str
    soft_micro_usd: MicroUsd | None = None
    reason: str = ""


class SetRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Set the limits of a budget scope, upwards or downwards."""

    scope: str
    hard_micro_usd: MicroUsd | None
    actor: str
    soft_micro_usd: MicroUsd | None = None
    reason: str = ""


class Api:
    """Answers requests."""

    def __init__(
        self,
        store: EventStore,
        bus: Bus,
        clock: Clock,
        driver: Driver,
        kinds: KindDirectory,
        *,
        budgets: Budgets,
        letters: DeadLetters,
        schedules: Schedules,
        forks: Forks,
        control: ControlApi,
        rollbacks: Rollbacks,
        dispatcher: Dispatcher,
        silent: SilentWorkers,
    ) -> None:
        self._forks, self._control, self._rollbacks, self._dispatcher, self._silent = forks, control, rollbacks, dispatcher, silent
        self._budgets, self._letters, self._schedules = budgets, letters, schedules
        self._store, self._bus, self._clock, self._driver, self._kinds = store, bus, clock, driver, kinds
        self._subscriptions: list[Subscription] = []

    async def start(self) -> None:
        """Begin to answer."""
        endpoints: dict[str, Endpoint] = {
            "*.tasks.submit": self._submit,
            "*.runs.get": self._get_run,
            "*.runs.queue": self._look_at_queue,
            "*.runs.fork": self._fork_run,
            "*.runs.rollback": self._roll_back,
            "*.approvals.decide": self._decide_approval,
            "*.budgets.raise": self._raise_budget,
            "*.budgets.set": self._set_budget,
            "*.letters.redrive": self._redrive,
            "*.schedules.add": self._add_schedule,
            "*.schedules.list": self._list_schedules,
            "*.schedules.change": self._change_schedule,
            "*.schedules.run": self._run_schedule,
            f"{SYSTEM}.agents.register.*": self._register,
            f"{SYSTEM}.agents.hand_on.*": self._hand_on,
            f"{SYSTEM}.agents.stop.*": self._stop_agent,
        }
        for name, endpoint in {**endpoints, **self._control.endpoints()}.items():
            self._subscriptions.append(await self._bus.subscribe(f"api.{name}", self._served_by(endpoint), queue=QUEUE))
        # without the queue group: every orchestrator hears of every worker, whichever of them answers it
        self._subscriptions.append(await self._bus.subscribe(f"api.{SYSTEM}.agents.register.*", self._overhear))

    async def stop(self) -> None:
        """Stop answering; requests under way are finished. Safe to call twice."""
        subscriptions, self._subscriptions = self._subscriptions, []
        for subscription in subscriptions:
            await subscription.stop()

    def _served_by(self, endpoint: Endpoint) -> Callable[[Message], Awaitable[None]]:
        async def serve(message: Message) -> None:
            try:
                answer = await endpoint(message.subject.split(".")[1], message)
            except OrchestrationError as error:
                answer = refused(error)
            except Exception as error:  # whoever asked gets an answer in any case; the details stay here
                log.exception("request on %s failed", message.subject)
                answer = refused(error)
            if message.reply:
                try:
                    await self._bus.publish(message.reply, answer)
                except LimitExceeded as error:
                    await self._bus.publish(message.reply, refused(error))

        return serve

    async def _submit(self, tenant: str, message: Message) -> bytes:
        task = read_submission(message.data, tenant=tenant, type_=None, task_id=self._clock.random_id())
        submitted = await self._driver.submit(task, "api", caller=message.headers.get(TRACEPARENT, ""))
        return accepted(run_id=submitted.run_id, task_id=submitted.task_id, status=submitted.status)

    async def _get_run(self, tenant: str, message: Message) -> bytes:
        state = await self._run_of(tenant, decoded(message.data, RunRequest).run_id)
        payload = text_of(state)
        text = None if payload is None else payload.inline
        if payload is not None and payload.ref is not None:
            text = (await self._store.get_blobs([payload.ref]))[payload.ref].decode()
        size = 0 if payload is None else payload.size
        return accepted(run={**run_report(state), "text": None if text is None else shorten(text, TEXT_CHARS_MAX), "text_bytes": size})

    async def _roll_back(self, tenant: str, message: Message) -> bytes:
        request = decoded(message.data, RollbackRequest)
        if missing := [(f"/{name}", "must not be empty") for name in ("reason", "actor") if not getattr(request, name).strip()]:
            raise ContractError("a rollback needs to know who wants it and why", problems=tuple(missing))
        begun = await self._rollbacks.begin(tenant, RunId(request.run_id), actor=bounded(request.actor), reason=bounded(request.reason))
        return accepted(run_id=begun.run_id, status="accepted" if begun.is_new else "duplicate", orders=begun.orders, left=begun.left, more=begun.more)

    async def _look_at_queue(self, tenant: str, message: Message) -> bytes:
        state = await self._run_of(tenant, decoded(message.data, RunRequest).run_id)
        waiting = [task.task_id for task in active_tasks(state) if task.phase == "dispatched"]
        held, out = await self._dispatcher.held(waiting), await self._dispatcher.out()
        trial = state.brief.trial
        needs = {} if trial is None else {task.task_id: version for task in active_tasks(state) if (version := trial.version_of(task.kind))}
        return accepted(held=held, out=out, needs=needs)

    async def _fork_run(self, tenant: str, message: Message) -> bytes:
        asked = decoded(message.data, ForkRequest)
        request = msgspec.structs.replace(asked, actor=somebody(asked.actor), reason=bounded(asked.reason))
        forked = await self._forks.fork(tenant, request)
        status = "accepted" if forked.is_new else "duplicate"
        return accepted(run_id=forked.run_id, parent_run_id=forked.parent_run_id, at=forked.at, tasks=forked.tasks, status=status)

    async def _decide_approval(self, tenant: str, message: Message) -> bytes:
        request = decoded(message.data, DecideRequest)
        if not request.actor.strip():
            raise ContractError("an approval needs to know who decides", problems=(("/actor", "must not be empty"),))
        state = await self._run_of(tenant, request.run_id)
        command = DecideApproval(ApprovalId(request.approval_id), request.decision, bounded(request.actor), bounded(request.note))
        await self._driver.execute(state.run_id, command)
        return accepted(approval_id=request.approval_id, decision=request.decision)

    async def _raise_budget(self, tenant: str, message: Message) -> bytes:
        asked = decoded(message.data, RaiseRequest)
        actor, reason = person(asked.actor), bounded(asked.reason)
        state = await self._budgets.raise_limit(tenant, asked.scope, hard=asked.hard_micro_usd, soft=asked.soft_micro_usd, actor=actor, reason=reason)
        return _budget(asked.scope, state)

    async def _set_budget(self, tenant: str, message: Message) -> bytes:
        asked = decoded(message.data, SetRequest)
        actor, reason = person(asked.actor), bounded(asked.reason)
        state = await self._budgets.set_limit(tenant, asked.scope, hard=asked.hard_micro_usd, soft=asked.soft_micro_usd, actor=actor, reason=reason)
        return _budget(asked.scope, state)

    async def _redrive(self, tenant: str, message: Message) -> bytes:
        asked = decoded(message.data, RedriveRequest)
        redriven = await self._letters.redrive(tenant, asked.sequence)
        return accepted(sequence=asked.sequence, status=redriven.status, detail=redriven.detail)

    async def _add_schedule(self, tenant: str, message: Message) -> bytes:
        asked = decoded(message.data, AddScheduleRequest)
        task = read_submission(bytes(asked.task), tenant=tenant, type_=None, task_id=self._clock.random_id())
        await self._kinds.refresh()
        # refused now rather than each time it is due
        decide(SubmitRun(task, "api"), initial_state(), self._clock.now_us(), self._kinds.offers)
        command = AddSchedule(tenant, asked.name, asked.cron, asked.zone, asked.catch_up, task, somebody(asked.actor))
        return accepted(schedule=schedule_report(await self._schedules.add(command), self._clock.now_us()))

    async def _list_schedules(self, tenant: str, _: Message) -> bytes:
        now_us = self._clock.now_us()
        return accepted(schedules=[schedule_report(state, now_us) for state in await self._schedules.of(tenant)])

    async def _change_schedule(self, tenant: str, message: Message) -> bytes:
        asked = decoded(message.data, ChangeScheduleRequest)
        command = ChangeSchedule(asked.verb, somebody(asked.actor), bounded(asked.reason))
        state = await self._schedules.change(tenant, _token(asked.name), command)
        return accepted(schedule=schedule_report(state, self._clock.now_us()))

    async def _run_schedule(self, tenant: str, message: Message) -> bytes:
        asked = decoded(message.data, RunScheduleRequest)
        fired = await self._schedules.run_now(tenant, _token(asked.name), actor=somebody(asked.actor))
        return accepted(run_id=fired.run_id, error=fired.error)

    async def _register(self, _: str, message: Message) -> bytes:
        event = _registration(message)
        await self._kinds.register(event)
        return accepted(kind=event.kind, lane=lane_beside(event))

    async def _hand_on(self, _: str, message: Message) -> bytes:
        asked = decoded(message.data, HandOnRequest)
        return accepted(handed_on=await hand_on(_asking_kind(message), asked, self._bus, self._clock, self._driver, self._dispatcher))

    async def _stop_agent(self, _: str, message: Message) -> bytes:
        event = decoded(message.data, AgentStopped)
        _check_worker(message, event)
        if event.kind not in self._kinds.offers:
            raise NotFound("agent kind", event.kind)
        await self._silent.sign_off(Worker(event.kind, event.worker))  # that it died is not for others to say
        return accepted(kind=event.kind)

    async def _overhear(self, message: Message) -> None:
        try:
            self._kinds.learn(_registration(message))
        except ContractError as error:
            log.debug("a registration that will be refused: %s", error)

    async def _run_of(self, tenant: str, run_id: UUID) -> RunState:
        """Return a run of this tenant; another tenant's run is as good as none."""
        state = (await self._driver.folds.states([RunId(run_id)])).get(RunId(run_id))
        if state is None or state.brief.tenant != tenant:
            raise NotFound("run", str(run_id))
        return state


def _budget(scope: str, state: BudgetState) -> bytes:
    amounts = {"spent_micro_usd": state.spent, "reserved_micro_usd": state.reserved}
    return accepted(scope=scope, soft_micro_usd=state.soft, hard_micro_usd=state.hard, **amounts)


def _token(name: str) -> str:
    if not TOKEN.fullmatch(name):
        raise NotFound("schedule", name)
    return name


def _registration(message: Message) -> AgentRegistered:
    event = decoded(message.data, AgentRegistered)
    _check_worker(message, event)
    return event


def _asking_kind(message: Message) -> str:
    """Return which kind's worker asks: the bus lets those of no other kind ask there."""
    return message.subject.rpartition(".")[2]


def _check_worker(message: Message, event: AgentRegistered | AgentStopped) -> None:
    kind = event.kind
    if not TOKEN.fullmatch(kind) or kind == RUN:
        raise ContractError(f"kind {kind!r} cannot be registered", problems=(("/kind", f"must match [A-Za-z0-9_-]{{1,64}} and not be {RUN!r}"),))
    if kind != (asking := _asking_kind(message)):
        raise ContractError(f"a worker of kind {asking!r} cannot speak for one of kind {kind!r}", problems=(("/kind", f"must be {asking!r}"),))
    if not WORKER.fullmatch(event.worker):
        raise ContractError("the worker has no name that it could be asked by", problems=(("/worker", "must match [A-Za-z0-9_-]{1,128}"),))
