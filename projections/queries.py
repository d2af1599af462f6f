"""Typed reads of the public views, for the client and the command line. Values travel as parameters, names come from fixed lists."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from datetime import date, datetime
from typing import Any, Final, Literal, NamedTuple, Protocol, Self, TypeVar, get_args
from uuid import UUID

import asyncpg
import msgspec

from crewlog.events.clock import Clock
from crewlog.events.connections import Connections
from crewlog.events.postgres_hosts import cluster
from crewlog.projections.query_rows import (
    AgentView,
    ApprovalView,
    BudgetView,
    CallView,
    ControlView,
    CostView,
    DocumentView,
    EffectView,
    EventView,
    Lag,
    MemoryView,
    ProblemView,
    ProviderView,
    RunView,
    StandstillView,
    TaskView,
    ToolCallView,
)
from crewlog.schemas.errors import ContractError, NotFound

CostColumn = Literal["run_id", "task_id", "key", "kind", "provider", "model", "user_name", "tenant", "day"]
"""What costs may be grouped by."""

LAST: Final = "@last"
"""Stands for the run that was submitted last."""


class CostFilter(NamedTuple):
    """Which calls to count; None does not ask. Days are those of UTC on which a call began, `since` and `until` included."""

    run_id: UUID | None = None
    tenant: str | None = None
    user: str | None = None
    since: date | None = None
    until: date | None = None


EVERYTHING: Final = CostFilter()

_CANDIDATES_MAX: Final = 10
_CALLS_PAGE_MAX: Final = 10_000
_RUNS_PAGE_MAX: Final = 200
_COST_FILTER: Final = """
WHERE ($1::uuid IS NULL OR run_id = $1) AND ($2::text IS NULL OR tenant = $2) AND ($3::text IS NULL OR user_name = $3)
  AND ($4::date IS NULL OR day >= $4) AND ($5::date IS NULL OR day <= $5)
"""
_SUMS: Final = tuple(name for name in CostView.__struct_fields__ if name not in ("group", "simulated"))
_EVENTS_MAX: Final = 100_000
_BUDGETS_MAX: Final = 1_000
_HEX: Final = re.compile(r"[0-9a-f]{1,32}")
_POSITION: Final = re.compile(r"[0-9]{1,18}")
_COST_COLUMNS: Final[tuple[str, ...]] = get_args(CostColumn)
_JSON_COLUMNS: Final = ("json", "jsonb")

V = TypeVar("V", bound=msgspec.Struct)


class Disclose(Protocol):
    """Returns rows with what is under persons' keys, as far as this process may know it; all others as they are."""

    async def __call__(self, rows: list[V]) -> list[V]: ...


def _select(view: type[msgspec.Struct], name: str) -> str:
    return f"SELECT {', '.join(view.__struct_fields__)} FROM crewlog.{name}"  # noqa: S608 - both come from this file


_RUNS: Final = _select(RunView, "runs")
_TASKS: Final = _select(TaskView, "tasks")
_APPROVALS: Final = _select(ApprovalView, "approvals")
_TOOL_CALLS: Final = _select(ToolCallView, "tool_calls")
_EFFECTS: Final = _select(EffectView, "effects")
_EVENTS: Final = _select(EventView, "events")
_PROVIDERS: Final = _select(ProviderView, "providers")
_BUDGETS: Final = _select(BudgetView, "budgets")
_AGENTS: Final = _select(AgentView, "agents")
_CONTROLS: Final = _select(ControlView, "controls")
_RUN_CONTROLS: Final = _select(ControlView, "run_controls")
_STANDSTILLS: Final = _select(StandstillView, "standstills")
_DOCUMENTS: Final = _select(DocumentView, "documents")
_MEMORIES: Final = _select(MemoryView, "memories")
_PROBLEMS: Final = _select(ProblemView, "problems")
_LAG: Final = """
SELECT c.name, c.position, coalesce((SELECT e.position FROM crewlog.events e ORDER BY e.position DESC LIMIT 1), 0) AS head,
       (SELECT e.occurred_at FROM crewlog.events e WHERE e.position > c.position ORDER BY e.position LIMIT 1) AS waiting_since
  FROM crewlog.checkpoints c ORDER BY c.name
"""


class Queries:
    """Reads the views over a few connections. A server that is away is waited for; every read may be repeated."""

    def __init__(self, url: str, clock: Clock, *, size: int = 2, disclose: Disclose | None = None) -> None:
        """Make a reader; connections are opened when they are needed.

        Args:
            url: login that may read the views: the operator's or the orchestrator's.
            size: most connections at once.
            disclose: puts in what views do not hold because it is under a person's key.
        """
        self._disclose = disclose

        async def connect() -> asyncpg.Connection:
            connection = await cluster(url).connect({"application_name": "crewlog queries", "jit": "off"})
            for name in _JSON_COLUMNS:
                await connection.set_type_codec(name, schema="pg_catalog", encoder=str, decoder=msgspec.json.decode)
            return connection

        self._connections = Connections(connect, clock, size=size)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Let go of the connections. Safe to call twice."""
        await self._connections.close()

    async def runs(
        self,
        *,
        tenant: str | None = None,
        user: str | None = None,
        status: str | None = None,
        before: datetime | None = None,
        behind: RunView | None = None,
        limit: int = 50,
        trials: bool = True,
    ) -> list[RunView]:
        """List runs, the newest first; those of the same microsecond by their ids.

        Args:
            before: only runs submitted before this time.
            behind: only runs that come behind this one; pass the last one of a page to get the next.
            limit: most runs to return.
            trials: also those that only repeat others: evaluations and shadows.
        """
        where = """WHERE ($1::text IS NULL OR tenant = $1) AND ($2::text IS NULL OR user_name = $2) AND ($3::text IS NULL OR status = $3)
                     AND ($4::timestamptz IS NULL OR submitted_at < $4) AND ($6 OR source NOT IN ('trial', 'shadow'))
                     AND ($7::timestamptz IS NULL OR submitted_at < $7 OR (submitted_at = $7 AND run_id > $8::uuid))
                   ORDER BY submitted_at DESC, run_id LIMIT $5"""
        key = (None, None) if behind is None else (behind.submitted_at, behind.run_id)
        return await self._read(RunView, "list runs", f"{_RUNS} {where}", tenant, user, status, before, limit, trials, *key)

    async def every_run(
        self, *, tenant: str | None = None, user: str | None = None, before: datetime | None = None, trials: bool = True, page_max: int = _RUNS_PAGE_MAX
    ) -> AsyncGenerator[RunView, None]:
        """Yield runs, the newest first, however many: read in pages of at most `page_max`. For the rest see `runs`."""
        behind = None
        while page := await self.runs(tenant=tenant, user=user, before=before, behind=behind, limit=page_max, trials=trials):
            for run in page:
                yield run
            behind = page[-1]

    async def run(self, prefix: str) -> RunView:
        """Return the run whose id begins with `prefix`, or the newest one for `@last`.

        Raises:
            NotFound: no run, or several; then the error lists them.
        """
        if prefix == LAST:
            found = await self.runs(limit=1, trials=False)
            if not found:
                raise NotFound("run", prefix)
            return found[0]
        low, high = _range("run", prefix)
        found = await self._read(RunView, "find a run", f"{_RUNS} WHERE run_id BETWEEN $1 AND $2 ORDER BY run_id LIMIT $3", low, high, _CANDIDATES_MAX)
        return _only("run", prefix, found, [str(run.run_id) for run in found])

    async def tasks(self, run_id: UUID) -> list[TaskView]:
        """List the tasks of a run in the order they were planned."""
        return await self._read(TaskView, "list tasks", f"{_TASKS} WHERE run_id = $1 ORDER BY planned_at, dispatched_at, key, revision", run_id)

    async def waiting(self, *, limit: int = 100) -> list[TaskView]:
        """List unfinished tasks of all runs: what waits, and why. The longest waiting come first."""
        return await self._read(TaskView, "list waiting tasks", f"{_TASKS} WHERE finished_at IS NULL ORDER BY planned_at, run_id, key LIMIT $1", limit)

    async def tool_calls(self, run_id: UUID) -> list[ToolCallView]:
        """List the tool calls of a run in the order they were asked for."""
        return await self._read(ToolCallView, "list tool calls", f"{_TOOL_CALLS} WHERE run_id = $1 ORDER BY requested_at, task_id, call_id", run_id)

    async def effects(self, tenant: str, *, run_id: UUID | None = None, open_only: bool = False, limit: int = 1_000) -> list[EffectView]:
        """List what calls of a tenant's runs did to the world, in the order they began.

        Args:
            open_only: only what is still there and can be taken back, or may have happened.
            limit: most of them; the latest ones.
        """
        where = "WHERE tenant = $1 AND ($2::uuid IS NULL OR run_id = $2) AND (NOT $3 OR is_open) ORDER BY started_at DESC, task_id DESC, call_id DESC LIMIT $4"
        return (await self._read(EffectView, "list effects", f"{_EFFECTS} {where}", tenant, run_id, open_only, limit))[::-1]

    async def approvals(self, *, pending_only: bool = True, tenant: str | None = None, run_id: UUID | None = None, limit: int = 100) -> list[ApprovalView]:
        """List questions to people: those that wait, the oldest first; or all, the latest first."""
        of_tenant = "$3::text IS NULL OR run_id IN (SELECT run_id FROM crewlog.runs WHERE tenant = $3)"
        where = f"WHERE (NOT $1 OR status = 'pending') AND ($2::uuid IS NULL OR run_id = $2) AND ({of_tenant})"
        order = "requested_at, approval_id" if pending_only else "requested_at DESC, approval_id"
        return await self._read(ApprovalView, "list approvals", f"{_APPROVALS} {where} ORDER BY {order} LIMIT $4", pending_only, run_id, tenant, limit)

    async def approval(self, prefix: str) -> ApprovalView:
        """Return the approval whose id begins with `prefix`.

        Raises:
            NotFound: none, or several; then the error lists them.
        """
        low, high = _range("approval", prefix)
        where = "WHERE approval_id BETWEEN $1 AND $2 ORDER BY approval_id LIMIT $3"
        found = await self._read(ApprovalView, "find an approval", f"{_APPROVALS} {where}", low, high, _CANDIDATES_MAX)
        return _only("approval", prefix, found, [str(approval.approval_id) for approval in found])

    async def costs(self, by: Sequence[CostColumn], of: CostFilter = EVERYTHING) -> list[CostView]:
        """Sum up model usage, the most expensive group first.

        Raises:
            ContractError: a column that costs cannot be grouped by.
        """
        names = ", ".join(_cost_columns(by))
        sums = ", ".join(f"sum({name})::bigint AS {name}" for name in _SUMS)
        # names come from fixed lists
        sql = f"""SELECT {names}, {sums}, bool_or(simulated) AS simulated FROM crewlog.costs {_COST_FILTER}
                   GROUP BY {names} ORDER BY cost_micro_usd DESC, input_tokens DESC, {names}"""  # noqa: S608
        rows = await self._connections.fetch("sum up costs", sql, *of)
        return [CostView(group={name: row[name] for name in by}, **{name: row[name] for name in CostView.__struct_fields__[1:]}) for row in rows]

    async def calls(self, by: Sequence[CostColumn], of: CostFilter = EVERYTHING, *, page_max: int = _CALLS_PAGE_MAX) -> AsyncIterator[CallView]:
        """Read what every single call used and cost, page by page, in the order of task and number.

        Raises:
            ContractError: a column that costs cannot be grouped by.
        """
        fields = CallView.__struct_fields__[1:]
        names = ", ".join(dict.fromkeys([*_cost_columns(by), *fields]))
        sql = f"""SELECT {names} FROM crewlog.model_calls {_COST_FILTER} AND (task_id, number) > ($6::uuid, $7::bigint)
                   ORDER BY task_id, number LIMIT $8"""  # noqa: S608 - names come from fixed lists
        after: tuple[UUID, int] = (UUID(int=0), 0)
        while rows := await self._connections.fetch("read model calls", sql, *of, *after, page_max):
            for row in rows:
                yield CallView(group={name: row[name] for name in by}, **{name: row[name] for name in fields})
            after = rows[-1]["task_id"], rows[-1]["number"]

    async def budgets(self, *, tenant: str, scope: str | None = None, run_id: UUID | None = None, every: bool = False) -> list[BudgetView]:
        """List budgets of a tenant: those that have a limit and whose run or day is not over.

        Args:
            scope: this one only, whatever it is.
            run_id: those that tasks of this run are charged to, whatever they are.
            every: also those without a limit, and of the past.
        """
        where = """WHERE tenant = $1 AND ($2::text IS NULL OR scope = $2)
                     AND ($3::uuid IS NULL OR scope IN (SELECT b.scope FROM crewlog.budget_tasks b WHERE b.run_id = $3))
                     AND ($4 OR (is_open AND (hard_micro_usd IS NOT NULL OR soft_micro_usd IS NOT NULL)))
                   ORDER BY kind, scope LIMIT $5"""
        everything = every or scope is not None or run_id is not None
        return await self._read(BudgetView, "list budgets", f"{_BUDGETS} {where}", tenant, scope, run_id, everything, _BUDGETS_MAX)

    async def events(self, run_id: UUID, *, after: int = 0, limit: int = _EVENTS_MAX) -> list[EventView]:
        """Read the events of a run in the order of the log, from behind a position."""
        return await self._read(EventView, "read events", f"{_EVENTS} WHERE run_id = $1 AND position > $2 ORDER BY position LIMIT $3", run_id, after, limit)

    async def event(self, name: str) -> EventView:
        """Return the fact at the position `name`, or whose event id begins with it.

        Raises:
            NotFound: none, or several; then the error lists them.
        """
        if _POSITION.fullmatch(name) and (at := await self._read(EventView, "find an event", f"{_EVENTS} WHERE position = $1", int(name))):
            return at[0]
        low, high = _range("event", name)
        where = "WHERE event_id BETWEEN $1 AND $2 ORDER BY event_id LIMIT $3"
        found = await self._read(EventView, "find an event", f"{_EVENTS} {where}", low, high, _CANDIDATES_MAX)
        return _only("event", name, found, [str(event.event_id) for event in found])

    async def agents(self, *, running_only: bool = False) -> list[AgentView]:
        """List workers as they registered last, by kind."""
        return await self._read(AgentView, "list agents", f"{_AGENTS} WHERE NOT $1 OR stopped_at IS NULL ORDER BY kind, started_at, worker", running_only)

    async def providers(self) -> list[ProviderView]:
        """List models that failed a running worker, with the state of each."""
        return await self._read(ProviderView, "list providers", f"{_PROVIDERS} ORDER BY provider, model, kind, worker")

    async def documents(self, tenant: str, *, library_only: bool = True) -> list[DocumentView]:
        """List the indexed documents of a tenant by name."""
        return await self._read(
            DocumentView, "list documents", f"{_DOCUMENTS} WHERE tenant = $1 AND (library OR NOT $2) ORDER BY name, content", tenant, library_only
        )

    async def memories(self, tenant: str, *, user: str | None = None, prefix: str = "", limit: int = 1_000) -> list[MemoryView]:
        """List what is remembered in a tenant, the newest first.

        Args:
            user: only what this user is reminded of: their own and what the tenant shares.
            prefix: only memories whose `content` begins with this.
        """
        where = """WHERE tenant = $1 AND ($2::text IS NULL OR user_name = $2 OR user_name IS NULL) AND starts_with(content, $3)
                   ORDER BY position DESC LIMIT $4"""
        return await self._read(MemoryView, "list memories", f"{_MEMORIES} {where}", tenant, user, prefix, limit)

    async def archive_files(self, run_ids: Sequence[UUID]) -> list[str]:
        """List the names of the files to which these runs went, if they were archived."""
        rows = await self._connections.fetch("list archives", "SELECT file FROM crewlog.archives WHERE run_id = ANY ($1) ORDER BY file", list(run_ids))
        return [row[0] for row in rows]

    async def standstills(self, tenant: str) -> list[StandstillView]:
        """List runs of a tenant that stand still although nothing is known that they wait for, the oldest first."""
        return await self._read(StandstillView, "list what stands still", f"{_STANDSTILLS} WHERE tenant = $1 ORDER BY since_at, run_id", tenant)

    async def is_imported(self, run_id: UUID) -> bool:
        """Say whether a run, or the beginning of it, came from a file and is only looked at."""
        return bool(await self._connections.fetch(f"look where run {run_id} comes from", "SELECT FROM crewlog.imports WHERE run_id = $1", run_id))

    async def controls(self, run_id: UUID | None = None) -> list[ControlView]:
        """List what is paused and in quarantine, the oldest first: everywhere, or what concerns one run, whichever scope it is of."""
        view, where = (_CONTROLS, "") if run_id is None else (_RUN_CONTROLS, "WHERE run_id = $1 ")
        return await self._read(ControlView, "list what is in force", f"{view} {where}ORDER BY since_at, scope", *(() if run_id is None else (run_id,)))

    async def lag(self) -> list[Lag]:
        """Say for each projection how far it is behind the log."""
        return await self._read(Lag, "read the lag of the views", _LAG)

    async def problems(self) -> list[ProblemView]:
        """List events that projections had to leave out."""
        return await self._read(ProblemView, "list problems", f"{_PROBLEMS} ORDER BY projection, position")

    async def _read(self, view: type[V], what: str, sql: str, *arguments: Any) -> list[V]:
        rows = await self._connections.fetch(what, sql, *arguments)
        found = [msgspec.convert(dict(row), view) for row in rows]
        return found if self._disclose is None else await self._disclose(found)


def _cost_columns(by: Sequence[str]) -> list[str]:
    unknown = [column for column in by if column not in _COST_COLUMNS]
    if unknown or not by:
        raise ContractError(f"costs cannot be grouped by {', '.join(unknown) or 'nothing'}; possible: {', '.join(_COST_COLUMNS)}")
    return list(dict.fromkeys(by))


def _range(what: str, prefix: str) -> tuple[UUID, UUID]:
    digits = prefix.strip().lower().replace("-", "")
    if not _HEX.fullmatch(digits):
        raise NotFound(what, prefix)
    return UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f"))


def _only(what: str, prefix: str, found: list[V], ids: list[str]) -> V:
    if len(found) != 1:
        raise NotFound(what, prefix, candidates=tuple(ids))
    return found[0]
