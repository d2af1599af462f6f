"""The public client: submit goals, watch them, decide approvals, read what happened.

    async with Client.connect() as client:
        run = await client.submit("Summarise the measurements", attachments=[Path("penguins.csv")])
        await client.wait(run.run_id)

Commands go to the orchestrator over NATS, reads come from the views in Postgres. Whoever waits is woken by the relay of the log on
`events.>`; a slow look at the log stands behind it, since a hint may be lost.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, Literal, TypedDict, Unpack
from uuid import UUID

import msgspec

from crewlog.events.artifacts import ArtifactStore
from crewlog.events.bus import Bus, Handler, Message, Subscription
from crewlog.events.clock import Clock, SystemClock
from crewlog.events.config import Config, load
from crewlog.events.poke import Poke
from crewlog.events.store import EventStore, Recorded
from crewlog.orchestrator.attachments import collect, upload
from crewlog.orchestrator.client_budgets import ClientBudgets
from crewlog.orchestrator.client_control import ClientControl, ends_later
from crewlog.orchestrator.client_effects import ClientEffects
from crewlog.orchestrator.client_events import run_events
from crewlog.orchestrator.client_forks import ClientForks
from crewlog.orchestrator.client_given import must_be
from crewlog.orchestrator.client_letters import ClientLetters
from crewlog.orchestrator.client_schedules import ClientSchedules
from crewlog.orchestrator.client_why import ClientWhy
from crewlog.orchestrator.commands import Answer
from crewlog.orchestrator.control import ask_supervisor
from crewlog.orchestrator.disclosed_views import DisclosedViews
from crewlog.orchestrator.endpoints import with_login
from crewlog.orchestrator.home import ProcessState
from crewlog.orchestrator.run_names import NEWEST, VIEWS_FOLLOW_WITHIN_S, find_run, run_once_known
from crewlog.orchestrator.saved_files import save_files
from crewlog.projections.queries import Queries
from crewlog.projections.query_rows import AgentView, ApprovalView, DocumentView, ProviderView, RunView, TaskView
from crewlog.schemas import subjects
from crewlog.schemas.errors import ContractError, NotFound, OrchestrationError, Unavailable
from crewlog.schemas.ids import Hash, RunId
from crewlog.schemas.payload import Payload
from crewlog.schemas.plan import Plan
from crewlog.schemas.task import RUN, AgentTask, Budget, Limits, parse_task
from crewlog.schemas.task_events import TERMINAL_TYPES
from crewlog.schemas.trace_context import TRACEPARENT

REQUEST_TIMEOUT_S: Final = 10.0
HELD_FOR_GOOD_S: Final = 1.0
"""A run that its budget has room for is released much sooner than that, in seconds."""
GOES_ON: Final = TERMINAL_TYPES | {"RunReleased"}
"""What ends the time that a run is held."""
A_RUN: Final = "a RunView is needed, as `await client.run(RUN)` and `await client.wait(RUN)` return it"


class TaskFields(TypedDict, total=False):
    """What may be said of a task besides what it is about; see `AgentTask`."""

    auto_approve: bool
    """Let consequential tools run without asking a person."""
    timeout_seconds: int
    limits: Limits
    budget: Budget
    surface: str
    routing: Literal["planner", "router"]


class Submitted(msgspec.Struct, frozen=True):
    """The orchestrator has this run in the log. `duplicate`: it had it before."""

    run_id: RunId
    task_id: UUID
    status: Literal["accepted", "duplicate"]


class RequestRefused(OrchestrationError):
    """The orchestrator refused a request; `code` is the stable name of the reason."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Client:
    """One connection to a crew. Made by `connect`; connections to Postgres and to the artifacts are opened when they are first needed."""

    def __init__(self, config: Config, bus: Bus, *, clock: Clock, exits: AsyncExitStack, store: EventStore | None = None) -> None:
        self._config, self._bus, self._clock, self._exits = config, bus, clock, exits
        self._opening = asyncio.Lock()
        self._store = store
        self._artifacts: ArtifactStore | None = None
        self._queries: Queries | None = None
        self._is_open = True
        self.budgets, self.letters = ClientBudgets(config, self._request, self.queries), ClientLetters(bus, self._request)
        self.control = ClientControl(config, self._request)
        self.schedules, self.forks = ClientSchedules(config, self._request), ClientForks(config, self._clock, self._request)
        self.effects = ClientEffects(config, self._request, self.queries)
        self.waits = ClientWhy(bus, self._request, self.queries, self.find_run)

    @classmethod
    @asynccontextmanager
    async def connect(cls, where: Config | Path | None = None, *, clock: Clock | None = None) -> AsyncIterator[Client]:
        """Connect to a crew.

        Args:
            where: the configuration, or the home folder of a running `crewlog up`; None reads the configuration.

        Raises:
            Unavailable: no crew runs there, or its NATS server does not answer.
        """
        from crewlog.events.nats_bus import NatsBus

        config = where if isinstance(where, Config) else load() if where is None else load(home=where)
        config = with_login(config, "operator")
        assert config.nats_url is not None
        clock = clock or SystemClock()
        async with AsyncExitStack() as exits:
            bus = await NatsBus.connect(config.nats_url.get_secret_value(), name="client")
            exits.push_async_callback(bus.close)
            client = cls(config, bus, clock=clock, exits=exits)
            try:
                yield client
            finally:
                client._is_open = False

    async def prepare(
        self, what: str | AgentTask | Plan, *, attachments: Sequence[Path | str] = (), kind: str = RUN, **fields: Unpack[TaskFields]
    ) -> AgentTask:
        """Make the task that `submit` with these arguments sends, and store its files. Its id is known before anybody else has it."""
        must_be(what, (str, AgentTask, Plan), "what to submit is a goal in words, a Plan or an AgentTask")
        found = collect(attachments)
        files = await upload(found, await self.artifact_store()) if found else ()
        if isinstance(what, AgentTask):
            return parse_task({**vars(what), **fields, "attachments": (*what.attachments, *files)})
        plan = what if isinstance(what, Plan) else None
        objective = what if isinstance(what, str) else "; ".join(step.objective for step in what.steps)[:2000]
        whose = {"task_id": self._clock.random_id(), "tenant": self._config.tenant, "user": self._config.user, "type": RUN if plan else kind}
        return parse_task({**whose, "objective": objective, "plan": plan, "attachments": files, **fields})

    async def submit(self, what: str | AgentTask | Plan, *, attachments: Sequence[Path | str] = (), kind: str = RUN, **fields: Unpack[TaskFields]) -> Submitted:
        """Hand in a goal, a plan of one's own, or a complete task, and return once it is in the log.

        Args:
            what: a goal for the planner; or a plan; or an `AgentTask`, whose id makes a repetition harmless.
            attachments: files and folders; they are stored content-addressed before the task is sent.
            kind: agent kind for a goal that needs no plan.
            fields: further fields of the task; those of an `AgentTask` are replaced by them.

        Raises:
            ContractError: the task breaks the contract, every problem is named; or a file cannot be attached.
            Unavailable: no orchestrator answered. Sending the same `AgentTask` again is safe.
        """
        task = await self.prepare(what, attachments=attachments, kind=kind, **fields)
        answer = await self._request("tasks.submit", task, headers=_caller())
        return msgspec.convert({"run_id": answer["run_id"], "task_id": answer["task_id"], "status": answer["status"]}, Submitted)

    async def wait(self, run: UUID | str) -> RunView:
        """Wait until a run has ended and return it, also while a person or a budget holds it up. Use `asyncio.timeout` around it; the run goes on.

        Raises:
            NotFound: no run is called so, or several.
        """
        run_id = await self.find_run(run)
        async for _ in self.events(run_id, follow=True):
            pass
        return await self.ended(run_id)

    async def ended(self, run_id: UUID) -> RunView:
        """Return a run whose end is in the log, as soon as the views have it."""
        for wait_s in VIEWS_FOLLOW_WITHIN_S:
            await asyncio.sleep(wait_s)
            with suppress(NotFound):  # the views may not have heard of a run that was quick
                run = await self.queries().run(str(run_id))
                if run.finished_at is not None:
                    return run
        raise Unavailable(f"run {run_id} has ended, but the views do not show it: is a projector running?")

    async def events(self, run: UUID | str, *, follow: bool = False) -> AsyncIterator[Recorded]:
        """Read the events of a run in the order of the log; with `follow`, go on until the run has ended.

        Raises:
            NotFound: no run is called so, or several.
        """
        run_id, store = await self.find_run(run), await self.store()
        async with AsyncExitStack() as exits:
            hint = asyncio.Event() if follow else None
            if hint is not None:  # listen first, then read: what happens in between is seen twice, never missed
                exits.push_async_callback((await self.hear_of(run_id, hint)).stop)
            async for recorded in run_events(store, run_id, hint):
                yield recorded

    async def hear_of(self, run_id: RunId, hint: asyncio.Event) -> Subscription:
        """Set `hint` whenever something is recorded of a run; the caller stops it. A hint may be lost: look at the log now and then all the same."""

        async def wake(_: Message) -> None:
            hint.set()

        return await self._opened().subscribe(subjects.events(self._config.tenant, run_id, "*"), wake)

    async def hear(self, run_id: RunId, heard: Handler) -> Subscription:
        """Hand over answers of a run while they are being written, as `agents.live_text` tells them; the caller stops it."""
        return await self._opened().subscribe(subjects.live(self._config.tenant, run_id, "*"), heard)

    async def runs(self, *, limit: int = 50, status: str | None = None, user: str | None = None, trials: bool = False) -> list[RunView]:
        """List runs, the newest first; with `trials` also those that only repeat others."""
        return await self.queries().runs(tenant=self._config.tenant, user=user, status=status, limit=limit, trials=trials)

    async def run(self, run_id: UUID | str) -> RunView:
        """Return one run by its id, the first characters of it, or `@last`.

        Raises:
            NotFound: no run, or several.
        """
        return await run_once_known(self.queries(), str(run_id))

    async def find_run(self, name: UUID | str) -> RunId:
        """Return the id of the run that `name` means: an id, the first characters of one, `@last` or `-`."""
        return RunId(name) if isinstance(name, UUID) else await find_run(self.queries(), str(name))

    async def tasks(self, run: UUID | str) -> list[TaskView]:
        """List the tasks of a run in the order they were planned."""
        return await self.queries().tasks(await self.find_run(run))

    async def answer(self, run: RunView) -> str:
        """Return the answer of a run in Markdown; empty while there is none."""
        must_be(run, RunView, A_RUN)
        return await self.text(Payload(0, inline=run.answer or "") if run.answer_ref is None else Payload(0, ref=Hash(run.answer_ref)))

    async def text(self, payload: Payload) -> str:
        """Return a text of the log, wherever it is kept."""
        must_be(payload, Payload, "a text of the log is a Payload, as in `arguments` of an approval")
        if payload.ref is None:
            return payload.inline or ""
        return (await (await self.store()).get_blobs([payload.ref]))[payload.ref].decode()

    async def workers(self) -> list[AgentView]:
        """List the agents that are up, as they registered: one that was killed could not say that it stops, but answers no more."""
        return await self.waits.workers()

    async def providers(self) -> list[ProviderView]:
        """List models that failed a running worker, and whether it asks them again."""
        return await self.queries().providers()

    async def documents(self) -> list[DocumentView]:
        """List the documents of the library."""
        return await self.queries().documents(self._config.tenant)

    async def indexed(self, position: int, projection: str = "knowledge") -> None:
        """Wait until what is recorded up to a position of the log, by default documents, can be searched.

        Raises:
            Unavailable: they were not in time.
        """
        must_be(position, int, "a position of the log is a number")
        for wait_s in VIEWS_FOLLOW_WITHIN_S:
            await asyncio.sleep(wait_s)
            if all(lag.position >= position for lag in await self.queries().lag() if lag.name == projection):
                return
        raise Unavailable(f"it is recorded, but {projection} cannot be searched for it yet: is a projector running?")

    async def approvals(self, *, pending_only: bool = True, run_id: UUID | None = None, limit: int = 100) -> list[ApprovalView]:
        """List questions to people of the tenant: those that wait, the oldest first; or all, the latest first."""
        tenant = self._config.tenant if run_id is None else None
        return await self.queries().approvals(pending_only=pending_only, tenant=tenant, run_id=run_id, limit=limit)

    async def asked(self, run_id: UUID) -> list[ApprovalView]:
        """Return what a run asks people now, as soon as the views have it. Call it when the log has a `TaskSuspended` that nobody answered."""
        for wait_s in VIEWS_FOLLOW_WITHIN_S:
            await asyncio.sleep(wait_s)
            if waiting := await self.approvals(run_id=run_id):
                return waiting
        return []

    async def held(self, recorded: Recorded) -> bool:
        """Say whether a `RunHeld` or `ResultsHeld` lasts: tasks that were refused together may fit one by one. If so, the views know of it then."""
        if recorded.type == "ResultsHeld":
            return not await ends_later(await self.store(), self.queries(), recorded, VIEWS_FOLLOW_WITHIN_S)
        await asyncio.sleep(HELD_FOR_GOOD_S)
        later = await (await self.store()).read_streams({recorded.stream: recorded.version}, types=GOES_ON)
        run_id = RunId(UUID(recorded.stream.removeprefix("run/")))
        return not later and await self.budgets.held(run_id, VIEWS_FOLLOW_WITHIN_S) is not None

    async def find_approval(self, name: UUID | str) -> ApprovalView:
        """Return the approval that `name` means: an id, the first characters of one, or `-` for the only one that waits."""
        if name not in NEWEST:
            return await self.queries().approval(str(name))
        waiting = await self.approvals()
        if len(waiting) != 1:
            raise NotFound("approval", str(name), candidates=tuple(str(a.approval_id) for a in waiting))
        return waiting[0]

    async def decide(self, run_id: UUID, approval_id: UUID, decision: Answer, *, actor: str = "", note: str = "") -> None:
        """Approve or deny one waiting tool call, or say what became of one that was interrupted.

        Raises:
            RequestRefused: somebody has decided already, it has expired, or there is no such approval.
        """
        body = {"run_id": run_id, "approval_id": approval_id, "decision": decision, "actor": actor or self._config.user, "note": note}
        await self._request("approvals.decide", body)

    async def cancel(self, run_id: UUID, *, reason: str, actor: str = "") -> None:
        """Terminate one run: what `control.runs("terminate", …)` does to many.

        Raises:
            RequestRefused: there is no such run, or it has ended.
        """
        await self._request("runs.cancel", {"run_id": run_id, "reason": reason, "actor": actor or self._config.user})

    async def artifact(self, hash_: str) -> bytes:
        """Fetch a file that a task made or was given."""
        return await (await self.artifact_store()).get(must_be(hash_, str, "a file is named by its hash"))

    async def save(self, run: RunView, folder: Path | str) -> list[Path]:
        """Write the files of a run into a folder and return where they are.

        Raises:
            ContractError: a name that an agent chose would lie outside of the folder.
        """
        must_be(run, RunView, A_RUN)
        return await save_files(run.artifacts, Path(must_be(folder, (str, os.PathLike), "the folder to write files into is a path")), self.artifact)

    async def scale(self, copies: Mapping[str, int]) -> dict[str, int]:
        """Change how many copies of built-in agents a `crewlog up` runs; returns the copies of all kinds."""
        must_be(copies, Mapping, "copies are numbers by kind, such as {'research': 4}")
        return msgspec.convert((await ask_supervisor(self._opened(), "scale", dict(copies)))["agents"], dict[str, int])

    async def processes(self) -> list[ProcessState]:
        """List the processes of a `crewlog up`."""
        return msgspec.convert((await ask_supervisor(self._opened(), "status"))["processes"], list[ProcessState])

    async def store(self) -> EventStore:
        """Return the log, opened on first use with the operator's login."""
        from crewlog.events.personal_store import personal_log
        from crewlog.events.postgres_store import PostgresStore

        bus = self._opened()
        async with self._opening:
            if self._store is None:
                poke = Poke(bus)
                self._exits.push_async_callback(poke.close)
                opened = await PostgresStore.open(self._database_url(), actor="client", clock=self._clock, on_commit=poke.notify)
                self._exits.push_async_callback(opened.close)
                self._store = await personal_log(opened, self._config, self._clock)
            return self._store

    async def artifact_store(self) -> ArtifactStore:
        """Return the store of files, opened on first use."""
        from crewlog.events.artifact_store import open_artifacts

        self._opened()
        async with self._opening:
            if self._artifacts is None:
                self._artifacts = await open_artifacts(self._config.artifacts_url or self._config.home / "artifacts")
            return self._artifacts

    def queries(self) -> Queries:
        """Return the reads of the views: costs, and whatever else has no method here."""
        self._opened()
        if self._queries is None:
            self._queries = Queries(self._database_url(), self._clock, disclose=DisclosedViews(self.store))
            self._exits.push_async_callback(self._queries.close)
        return self._queries

    def _opened(self) -> Bus:
        """Return the bus, unless the client is closed: what was opened from then on, nobody would close."""
        if not self._is_open:
            raise ContractError("this client is closed; use it inside of `async with Client.connect() as client:`")
        return self._bus

    def _database_url(self) -> str:
        assert self._config.database_url is not None
        return self._config.database_url.get_secret_value()

    async def _request(
        self, what: str, body: AgentTask | dict[str, Any], *, headers: Mapping[str, str] | None = None, tenant: str | None = None
    ) -> dict[str, Any]:
        noun, _, verb = what.partition(".")
        try:
            data = msgspec.json.encode(body)
        except (TypeError, ValueError) as error:
            raise ContractError(f"{what} cannot be asked: {error}") from None
        reply = await self._opened().request(subjects.api(tenant or self._config.tenant, noun, verb), data, timeout_s=REQUEST_TIMEOUT_S, headers=headers)
        return _accepted(json.loads(reply.data))


def _accepted(answer: dict[str, Any]) -> dict[str, Any]:
    """Return an answer that is no refusal."""
    if answer["ok"]:
        return answer
    error = answer["error"]
    if error["code"] == ContractError.code:
        raise ContractError(error["message"], problems=tuple((p["pointer"], p["message"]) for p in error.get("problems", ())))
    raise RequestRefused(error["code"], error["message"])


def _caller() -> dict[str, str]:
    """Name the span that the calling program is in, when it uses OpenTelemetry: the run's trace is linked to it."""
    propagate = sys.modules.get("opentelemetry.propagate")
    found: dict[str, str] = {}
    if propagate is not None:
        propagate.inject(found)
    return {TRACEPARENT: found[TRACEPARENT]} if TRACEPARENT in found else {}
