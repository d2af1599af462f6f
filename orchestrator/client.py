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
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, Literal
from uuid import UUID

import msgspec

from crewlog.events.artifacts import ArtifactStore
from crewlog.events.bus import Bus, Message
from crewlog.events.clock import Clock, SystemClock
from crewlog.events.config import Config, load
from crewlog.events.store import EventStore, Recorded
from crewlog.orchestrator.attachments import collect, upload
from crewlog.orchestrator.control import ask_supervisor
from crewlog.orchestrator.endpoints import with_login
from crewlog.orchestrator.home import ProcessState
from crewlog.schemas import subjects
from crewlog.schemas.errors import ContractError, NotFound, OrchestrationError
from crewlog.schemas.ids import RunId, run_stream, task_stream
from crewlog.schemas.plan import Plan
from crewlog.schemas.run_events import TaskDispatched
from crewlog.schemas.task import RUN, AgentTask, parse_task
from crewlog.schemas.task_events import TERMINAL_TYPES

REQUEST_TIMEOUT_S: Final = 10.0
LOOK_AGAIN_S: Final = 5.0
"""How long whoever follows a run trusts that a hint would have come, in seconds."""
LAST: Final = ("-", "@last")
"""Names for the run submitted last."""


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

    def __init__(self, config: Config, bus: Bus, *, clock: Clock, exits: AsyncExitStack) -> None:
        self._config, self._bus, self._clock, self._exits = config, bus, clock, exits
        self._opening = asyncio.Lock()
        self._store: EventStore | None = None
        self._artifacts: ArtifactStore | None = None

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
            yield cls(config, bus, clock=clock, exits=exits)

    async def submit(
        self, what: str | AgentTask | Plan, *, attachments: Sequence[Path] = (), kind: str = RUN, auto_approve: bool = False, timeout_seconds: int = 900
    ) -> Submitted:  # fmt: skip
        """Hand in a goal, a plan of one's own, or a complete task, and return once it is in the log.

        Args:
            what: a goal for the planner; or a plan; or an `AgentTask`, whose own fields then count and whose id makes a repetition harmless.
            attachments: files and folders; they are stored content-addressed before the task is sent.
            kind: agent kind for a goal that needs no plan.
            auto_approve: let consequential tools run without asking a person.

        Raises:
            ContractError: the task breaks the contract; every problem is named.
            Unavailable: no orchestrator answered. Sending the same `AgentTask` again is safe.
        """
        files = await upload(collect(attachments), await self.artifact_store()) if attachments else ()
        if isinstance(what, AgentTask):
            task = what if not files else parse_task({**what.model_dump(), "attachments": [*what.attachments, *files]})
        else:
            plan = what if isinstance(what, Plan) else None
            objective = what if isinstance(what, str) else "; ".join(step.objective for step in what.steps)[:2000]
            fields = {"task_id": self._clock.random_id(), "tenant": self._config.tenant, "user": self._config.user, "type": RUN if plan else kind}
            task = parse_task(
                {**fields, "objective": objective, "plan": plan, "attachments": files, "auto_approve": auto_approve, "timeout_seconds": timeout_seconds}
            )
        answer = await self._request("tasks.submit", task)
        return msgspec.convert({"run_id": answer["run_id"], "task_id": answer["task_id"], "status": answer["status"]}, Submitted)

    async def wait(self, run_id: RunId, *, stop_on_approval: bool = False) -> str:
        """Wait until a run has ended and return its status; with `stop_on_approval` also return, with `waiting`, when it needs a person.

        Use `asyncio.timeout` around it to wait no longer than that; the run goes on.
        """
        async for recorded in self.events(run_id, follow=True):
            if recorded.stream == run_stream(run_id):
                if recorded.type in TERMINAL_TYPES:
                    return recorded.type.removeprefix("Run").lower()
                if stop_on_approval and recorded.type == "TaskSuspended":
                    return "waiting"
        raise AssertionError("unreachable: following ends with the run")

    async def events(self, run_id: RunId, *, follow: bool = False) -> AsyncIterator[Recorded]:
        """Read the events of a run in the order of the log; with `follow`, go on until the run has ended.

        Raises:
            NotFound: the log has no such run.
        """
        store = await self.store()
        async with AsyncExitStack() as exits:
            hint = asyncio.Event()
            if follow:  # listen first, then read: what happens in between is seen twice, never missed
                await self._hints(run_id, hint, exits)
            batch = await store.read_run(run_id)
            if not batch:
                raise NotFound("run", str(run_id))
            seen = {run_stream(run_id): 0}
            ended = False
            while True:
                for recorded in batch:
                    seen[recorded.stream] = recorded.version
                    event = recorded.event()
                    if isinstance(event, TaskDispatched):
                        seen.setdefault(task_stream(event.task_id), 0)
                    ended = ended or (recorded.type in TERMINAL_TYPES and recorded.stream == run_stream(run_id))
                    yield recorded
                if not follow or (ended and not batch):
                    return
                if not batch:
                    with suppress(TimeoutError):
                        await asyncio.wait_for(hint.wait(), LOOK_AGAIN_S)
                hint.clear()
                batch = await store.read_streams(seen)

    async def decide(self, run_id: RunId, approval_id: UUID, decision: Literal["approved", "denied"], *, actor: str = "", note: str = "") -> None:
        """Approve or deny one waiting tool call.

        Raises:
            RequestRefused: somebody has decided already, it has expired, or there is no such approval.
        """
        body = {"run_id": run_id, "approval_id": approval_id, "decision": decision, "actor": actor or self._config.user, "note": note}
        await self._request("approvals.decide", body)

    async def cancel(self, run_id: RunId, *, reason: str, actor: str = "") -> None:
        """Stop a run; tasks that are being worked on end at their next step.

        Raises:
            RequestRefused: there is no such run, or it has ended.
        """
        await self._request("runs.cancel", {"run_id": run_id, "reason": reason, "actor": actor or self._config.user})

    async def artifact(self, hash_: str) -> bytes:
        """Fetch a file that a task made or was given."""
        return await (await self.artifact_store()).get(hash_)

    async def scale(self, copies: Mapping[str, int]) -> dict[str, int]:
        """Change how many copies of built-in agents a `crewlog up` runs; returns the copies of all kinds."""
        agents: dict[str, int] = (await ask_supervisor(self._bus, "scale", copies))["agents"]
        return agents

    async def processes(self) -> list[ProcessState]:
        """List the processes of a `crewlog up`."""
        return msgspec.convert((await ask_supervisor(self._bus, "status"))["processes"], list[ProcessState])

    async def store(self) -> EventStore:
        """Return the log, opened on first use with the operator's login."""
        from crewlog.events.postgres_store import PostgresStore

        async with self._opening:
            if self._store is None:
                self._store = await PostgresStore.open(self._database_url(), actor="client", clock=self._clock)
                self._exits.push_async_callback(self._store.close)
            return self._store

    async def artifact_store(self) -> ArtifactStore:
        """Return the store of files, opened on first use."""
        from crewlog.events.artifact_store import open_artifacts

        async with self._opening:
            if self._artifacts is None:
                self._artifacts = await open_artifacts(self._config.artifacts_url or self._config.home / "artifacts")
            return self._artifacts

    def _database_url(self) -> str:
        assert self._config.database_url is not None
        return self._config.database_url.get_secret_value()

    async def _hints(self, run_id: RunId, hint: asyncio.Event, exits: AsyncExitStack) -> None:
        async def wake(_: Message) -> None:
            hint.set()

        subscription = await self._bus.subscribe(subjects.events(self._config.tenant, run_id, "*"), wake)
        exits.push_async_callback(subscription.stop)

    async def _request(self, what: str, body: AgentTask | dict[str, Any]) -> dict[str, Any]:
        noun, verb = what.split(".")
        data = body.model_dump_json().encode() if isinstance(body, AgentTask) else msgspec.json.encode(body)
        reply = await self._bus.request(subjects.api(self._config.tenant, noun, verb), data, timeout_s=REQUEST_TIMEOUT_S)
        answer: dict[str, Any] = json.loads(reply.data)
        if answer["ok"]:
            return answer
        error = answer["error"]
        if error["code"] == ContractError.code:
            raise ContractError(error["message"], problems=tuple((p["pointer"], p["message"]) for p in error.get("problems", ())))
        raise RequestRefused(error["code"], error["message"])
