"""Endpoints by which operators steer. Everything about runs is done to up to 128 of them at once, each with a verdict of its own.

runs.find        {"kind", "status", "older_than_s", "after", "limit"}         -> runs: open ones that match, in the order of their ids; next
runs.pause       {"run_ids", "actor", "reason"}                               -> runs: run_id, status, changed, error
runs.resume, runs.quarantine, runs.release, runs.terminate                       the same
runs.cancel      {"run_id", "actor", "reason"}    runs.terminate for one run   -> run_id, status
tenants.pause    {"actor", "reason"}              all runs of the tenant       -> scope, changed
tenants.resume, tenants.quarantine, tenants.release                              the same
kinds.pause      {"kind", "actor", "reason"}      (tenant `system`)            -> scope, changed
kinds.resume, kinds.quarantine, kinds.release                                    the same
workers.drain    {"worker", "actor", "reason"}    (tenant `system`)            -> worker, changed, answers
controls.list    {}                               the tenant's and all kinds'  -> pauses, quarantines

A `command_id` (UUID) makes it safe to ask again: the same command, arriving late, does not undo what was said since.
Agents cannot ask for any of it: their logins on the bus may not publish there, and their logins on the log may not write the stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Final
from uuid import UUID

import msgspec

from crewlog.events.bus import Bus, Message
from crewlog.events.clock import Clock
from crewlog.events.controls import Control, kind_scope, run_scope, tenant_scope
from crewlog.events.store import EventStore
from crewlog.orchestrator.brief import GOAL_CHARS_MAX
from crewlog.orchestrator.commands import CancelRun, Command, LiftQuarantine, Tick, TooLate
from crewlog.orchestrator.driver import Driver
from crewlog.orchestrator.interventions import needed_kinds
from crewlog.orchestrator.looks import Looks
from crewlog.orchestrator.replies import accepted, bounded, decoded, person, somebody
from crewlog.orchestrator.report import OpenStatus, status_of
from crewlog.orchestrator.run import RunState
from crewlog.orchestrator.steering import Steering, Verb
from crewlog.schemas.errors import ContractError, NotFound, OrchestrationError, Unavailable
from crewlog.schemas.ids import TOKEN, WORKER, RunId
from crewlog.schemas.subjects import control_worker
from crewlog.schemas.text import shorten

RUNS_MAX: Final = 128
"""Runs of one request."""
PAGE: Final = 500
"""Open runs that are looked at for one page of those that match."""
AGE_S_MAX: Final = 1e10
"""Three hundred years: no run is older, and the number is still a time."""
WORKER_ANSWERS_WITHIN_S: Final = 2.0
SYSTEM: Final = "system"

Endpoint = Callable[[str, Message], Awaitable[bytes]]


class FindRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which open runs are meant: all that fulfil every condition that is given."""

    kind: str | None = None
    """Such as have something to do for this agent kind."""
    status: tuple[OpenStatus, ...] = ()
    older_than_s: Annotated[float, msgspec.Meta(ge=0, le=AGE_S_MAX)] | None = None
    after: UUID | None = None
    limit: Annotated[int, msgspec.Meta(ge=1, le=RUNS_MAX)] = RUNS_MAX


class RunsRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Do something to runs."""

    run_ids: Annotated[tuple[UUID, ...], msgspec.Meta(min_length=1, max_length=RUNS_MAX)]
    actor: str
    reason: str = ""
    command_id: UUID | None = None


class CancelRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Terminate one run."""

    run_id: UUID
    reason: str = ""
    actor: str = "anonymous"


class TenantRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Do something to all runs of the tenant, also to those that come later."""

    actor: str
    reason: str = ""
    command_id: UUID | None = None


class KindRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Do something to all tasks of a kind."""

    kind: str
    actor: str
    reason: str = ""
    command_id: UUID | None = None


class DrainRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Let a worker leave."""

    worker: str
    actor: str
    reason: str = ""


class Verdict(msgspec.Struct, frozen=True):
    """What became of one run. `changed`: False when it was so already. `error`: why nothing was done."""

    run_id: UUID
    status: str
    changed: bool
    error: str = ""


class ControlApi:
    """Answers operators."""

    def __init__(self, store: EventStore, bus: Bus, clock: Clock, driver: Driver, steering: Steering, looks: Looks) -> None:
        self._store, self._bus, self._clock, self._driver, self._steering, self._looks = store, bus, clock, driver, steering, looks

    def endpoints(self) -> Mapping[str, Endpoint]:
        """Return what is answered, by subject behind `api.`."""
        verbs: tuple[Verb, ...] = ("pause", "resume", "quarantine", "release")
        return {
            "*.runs.find": self._find,
            "*.runs.terminate": self._terminate,
            "*.runs.cancel": self._cancel,
            "*.controls.list": self._list,
            f"{SYSTEM}.workers.drain": self._drain,
            **{f"*.runs.{verb}": partial(self._runs, verb) for verb in verbs},
            **{f"*.tenants.{verb}": partial(self._tenant, verb) for verb in verbs},
            **{f"{SYSTEM}.kinds.{verb}": partial(self._kind, verb) for verb in verbs},
        }

    async def _find(self, tenant: str, message: Message) -> bytes:
        asked = decoded(message.data, FindRequest)
        before_us = None if asked.older_than_s is None else self._clock.now_us() - round(asked.older_than_s * 1e6)
        found: list[dict[str, Any]] = []
        after, more = None if asked.after is None else RunId(asked.after), True
        while more and len(found) < asked.limit:
            page = await self._store.open_runs(after=after, limit=PAGE)
            # what is known to be another's is not read: one tenant's few runs may lie among thousands
            states = await self._driver.folds.states([run_id for run_id in page if self._looks.tenant_of(run_id) in (None, tenant)])
            more = len(page) == PAGE
            for run_id in page:
                after = run_id
                state = states.get(run_id)
                if state is not None and state.brief.tenant == tenant and _matches(state, asked, before_us):
                    found.append(
                        {
                            "run_id": run_id,
                            "status": status_of(state),
                            "objective": shorten(state.brief.objective, GOAL_CHARS_MAX),
                            "submitted_us": state.submitted_us,
                        }
                    )
                if len(found) == asked.limit:
                    more = True
                    break
        return accepted(runs=found, next=after if more else None)

    async def _runs(self, verb: Verb, tenant: str, message: Message) -> bytes:
        asked = decoded(message.data, RunsRequest)
        actor, reason = person(asked.actor), bounded(asked.reason)
        open_runs, verdicts = await self._open(tenant, asked.run_ids)
        blocked = {run_id: text for run_id, state in open_runs.items() if (text := _blocked(verb, state))}
        verdicts |= {run_id: Verdict(run_id, status_of(open_runs[run_id]), changed=False, error=text) for run_id, text in blocked.items()}
        chosen = [run_id for run_id in open_runs if run_id not in blocked]
        news = (
            await self._steering.say(verb, [run_scope(run_id) for run_id in chosen], actor=actor, reason=reason, command_id=asked.command_id) if chosen else {}
        )
        verdicts |= await self._each(verb, {run_id: _commands(verb, open_runs[run_id], actor, reason) for run_id in chosen}, news)
        return accepted(runs=[verdicts[run_id] for run_id in map(RunId, dict.fromkeys(asked.run_ids))])

    async def _terminate(self, tenant: str, message: Message) -> bytes:
        asked = decoded(message.data, RunsRequest)
        command = CancelRun(bounded(asked.reason) or "terminated", person(asked.actor))
        open_runs, verdicts = await self._open(tenant, asked.run_ids)
        verdicts |= await self._each("terminate", {run_id: [command] for run_id in open_runs}, {run_scope(run_id): True for run_id in open_runs})
        return accepted(runs=[verdicts[run_id] for run_id in map(RunId, dict.fromkeys(asked.run_ids))])

    async def _cancel(self, tenant: str, message: Message) -> bytes:
        asked = decoded(message.data, CancelRequest)
        states = await self._driver.folds.states([RunId(asked.run_id)])
        state = states.get(RunId(asked.run_id))
        if state is None or state.brief.tenant != tenant:
            raise NotFound("run", str(asked.run_id))
        state = await self._driver.execute(state.run_id, CancelRun(bounded(asked.reason) or "cancelled", somebody(asked.actor)))
        if state.status != "cancelled":
            raise TooLate(f"run {state.run_id} cannot be cancelled: it is {state.status}")
        return accepted(run_id=state.run_id, status=state.status)

    async def _tenant(self, verb: Verb, tenant: str, message: Message) -> bytes:
        asked = decoded(message.data, TenantRequest)
        return await self._scope(verb, tenant_scope(tenant), asked)

    async def _kind(self, verb: Verb, _: str, message: Message) -> bytes:
        asked = decoded(message.data, KindRequest)
        if not TOKEN.fullmatch(asked.kind):
            raise ContractError(f"there is no kind {asked.kind!r}", problems=(("/kind", "must match [A-Za-z0-9_-]{1,64}"),))
        return await self._scope(verb, kind_scope(asked.kind), asked)

    async def _scope(self, verb: Verb, scope: str, asked: TenantRequest | KindRequest) -> bytes:
        actor, reason = person(asked.actor), bounded(asked.reason)
        news = await self._steering.say(verb, [scope], actor=actor, reason=reason, command_id=asked.command_id)
        return accepted(scope=scope, changed=news[scope])

    async def _drain(self, _: str, message: Message) -> bytes:
        asked = decoded(message.data, DrainRequest)
        if not WORKER.fullmatch(asked.worker):
            raise NotFound("worker", asked.worker)
        try:
            await self._bus.request(control_worker(asked.worker), b"{}", timeout_s=WORKER_ANSWERS_WITHIN_S)
        except Unavailable:
            raise NotFound("worker", asked.worker) from None
        return accepted(worker=asked.worker, changed=await self._steering.drain(asked.worker, actor=person(asked.actor), reason=bounded(asked.reason)))

    async def _list(self, tenant: str, _: Message) -> bytes:
        controls = await self._driver.folds.read_controls()
        runs = [RunId(UUID(scope.removeprefix("run/"))) for scope in (*controls.pauses, *controls.quarantines) if scope.startswith("run/")]
        own = {run_scope(run_id) for run_id, state in (await self._driver.folds.states(set(runs))).items() if state.brief.tenant == tenant}
        own.add(tenant_scope(tenant))

        def listed(found: Mapping[str, Control]) -> Sequence[Control]:
            return [control for scope, control in found.items() if scope in own or scope.startswith("kind/")]

        return accepted(pauses=listed(controls.pauses), quarantines=listed(controls.quarantines))

    async def _open(self, tenant: str, run_ids: Sequence[UUID]) -> tuple[dict[RunId, RunState], dict[RunId, Verdict]]:
        """Return the runs that can be steered, and verdicts about the others."""
        states = await self._driver.folds.states(map(RunId, run_ids))
        found: dict[RunId, RunState] = {}
        verdicts: dict[RunId, Verdict] = {}
        for run_id in map(RunId, run_ids):
            state = states.get(run_id)
            if state is None or state.brief.tenant != tenant:
                verdicts[run_id] = Verdict(run_id, "unknown", changed=False, error=str(NotFound("run", str(run_id))))
            elif state.status != "open":
                verdicts[run_id] = _is_over(run_id, state)
            else:
                found[run_id] = state
        return found, verdicts

    async def _each(self, verb: str, commands: Mapping[RunId, Sequence[Command]], news: Mapping[str, bool]) -> dict[RunId, Verdict]:
        """Have each run take note, and say what it is behind that: one may have ended while the command was on its way."""
        obeys = _OBEYS.get(verb)

        async def one(run_id: RunId, todo: Sequence[Command]) -> Verdict:
            try:
                for command in todo:
                    state = await self._driver.execute(run_id, command)
            except OrchestrationError as error:
                return Verdict(run_id, "unknown", changed=False, error=str(error))
            if obeys is not None and state.status != obeys:
                return _is_over(run_id, state)
            return Verdict(run_id, status_of(state), changed=news[run_scope(run_id)] or len(todo) > 1)

        made = await asyncio.gather(*(one(run_id, todo) for run_id, todo in commands.items()))
        return {RunId(verdict.run_id): verdict for verdict in made}


_OBEYS: Final = {"pause": "open", "quarantine": "open", "terminate": "cancelled"}
"""What a run is behind a command; behind a resumption or a release it may have come to its end."""


def _is_over(run_id: RunId, state: RunState) -> Verdict:
    return Verdict(run_id, state.status, changed=False, error=f"run {run_id} is over: it is {state.status}")


def _matches(state: RunState, asked: FindRequest, before_us: int | None) -> bool:
    return (
        (asked.kind is None or asked.kind in needed_kinds(state))
        and (not asked.status or status_of(state) in asked.status)
        and (before_us is None or state.submitted_us <= before_us)
    )


def _blocked(verb: Verb, state: RunState) -> str:
    """Say why a verb about one run would do nothing: something that is not the run's own keeps it paused."""
    others = [pause.scope for pause in state.pauses if not pause.scope.startswith("run/")]
    if verb != "resume" or not others or any(pause.scope.startswith("run/") for pause in state.pauses):
        return ""
    noun, _, name = others[0].partition("/")
    return f"run {state.run_id} is paused with its {noun} {name}: crewlog resume --{noun} {name}"


def _commands(verb: Verb, state: RunState, actor: str, reason: str) -> list[Command]:
    """Return what to ask of a run behind the command: to look, which makes it take note; and to let go of others' quarantines."""
    if verb != "release":
        return [Tick()]
    kept = [LiftQuarantine(q.scope, q.control, actor, reason) for q in state.quarantines if not q.scope.startswith("run/")]
    return [Tick(), *kept]
