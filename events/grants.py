"""Who may write what: the one table of rights, from which the rows of `es.grants` are made and which the memory log obeys.

A login may write the listed event types to streams of a category; agents only to task streams of their own kind, and never open
one. Whatever is not listed is refused by the log itself, so a process that was taken over can do no more than its role.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from crewlog.schemas.run_events import RUN_EVENTS
from crewlog.schemas.system_events import (
    AgentRegistered,
    AgentStopped,
    BudgetChanged,
    CallSettled,
    ClaimsOpened,
    DocumentErased,
    DocumentIngested,
    EffectClaimed,
    EffectSettled,
    McpToolPinned,
    MemoryForgotten,
    MemoryRemembered,
    PersonErased,
    ProviderStateChanged,
    RunArchived,
    RunImported,
    RunStoodStill,
    ScheduleAdded,
    ScheduleFired,
    SchedulePaused,
    ScheduleRemoved,
    ScheduleResumed,
    ScopePaused,
    ScopeQuarantined,
    ScopeReleased,
    ScopeResumed,
    WorkerDrained,
)
from crewlog.schemas.task_events import (
    TASK_EVENTS,
    TERMINAL_TYPES,
    ApprovalDecided,
    ApprovalRequested,
    AttemptFailed,
    BudgetWarned,
    CompensationFinished,
    CompensationStarted,
    ContextCompacted,
    ModelCallFailed,
    ModelCallFinished,
    ModelCallSkipped,
    ModelCallStarted,
    Nudged,
    TaskCancelled,
    TaskCompleted,
    TaskFailed,
    TaskForked,
    TaskHandedBack,
    TaskMoved,
    TaskOpened,
    TaskStarted,
    ToolFinished,
    ToolInDoubt,
    ToolProbed,
    ToolStarted,
)

BUILT_IN_KINDS: Final = ("planner", "research", "code", "data", "communicate")

ORCHESTRATOR: Final = "crewlog_orchestrator"
PROJECTOR: Final = "crewlog_projector"
SPECIALIST: Final = "crewlog_specialist"
OPERATOR: Final = "crewlog_operator"
ARCHIVIST: Final = "crewlog_archivist"
"""Takes runs out of the log that went to a file, destroys the keys of persons, and can do nothing else that others cannot."""
READER: Final = "crewlog_reader"
"""Reads the public views and nothing else."""


def kind_role(kind: str) -> str:
    """Name the login that workers of a kind use: built-in kinds have their own, all others share one."""
    return f"crewlog_{kind}" if kind in BUILT_IN_KINDS else SPECIALIST


ROLES: Final = (ORCHESTRATOR, PROJECTOR, *map(kind_role, BUILT_IN_KINDS), SPECIALIST, OPERATOR, ARCHIVIST, READER)
"""All logins of the database besides its owner."""


class Grant(NamedTuple):
    """One row of rights: `role` may write `types` to streams `<category>/…`."""

    role: str
    category: str
    types: frozenset[str]
    kind: str | None = None
    """Only streams of this agent kind."""
    except_kinds: frozenset[str] = frozenset()
    """Only streams of an agent kind that is not listed."""
    opens: bool = False
    """May write the first event of a stream."""

    @property
    def closing(self) -> frozenset[str]:
        """Those of its types that close the stream."""
        return self.types & TERMINAL_TYPES

    def covers(self, kind: str | None) -> bool:
        """Say whether a stream of this kind is within the grant."""
        return (self.kind is None or kind == self.kind) and (not self.except_kinds or (kind is not None and kind not in self.except_kinds))


def _names(*types: type) -> frozenset[str]:
    return frozenset(cls.__name__ for cls in types)


_RUN = _names(*RUN_EVENTS)
_AGENTS = _names(AgentRegistered, AgentStopped)
_DOCUMENTS = _names(DocumentIngested, DocumentErased)
_MCP = _names(McpToolPinned)
_BUDGETS = _names(BudgetChanged)
_MEMORIES = _names(MemoryRemembered, MemoryForgotten)
_SPEND = _names(CallSettled)
_PROVIDERS = _names(ProviderStateChanged)
_CLAIMS = _names(ClaimsOpened, EffectClaimed, EffectSettled)
_SCHEDULES = _names(ScheduleAdded, SchedulePaused, ScheduleResumed, ScheduleRemoved, ScheduleFired)
_IMPORTS = _names(RunImported)
_ARCHIVES = _names(RunArchived)
_PERSONS = _names(PersonErased)
_ALERTS = _names(RunStoodStill)
_CONTROLS = _names(ScopePaused, ScopeResumed, ScopeQuarantined, ScopeReleased, WorkerDrained)
_WORK = _names(
    *(TaskStarted, ModelCallStarted, ModelCallFinished, ModelCallFailed, ModelCallSkipped, ToolStarted, ToolFinished),
    *(ToolInDoubt, ToolProbed, CompensationStarted, CompensationFinished),
    *(ApprovalRequested, Nudged, ContextCompacted, BudgetWarned, AttemptFailed, TaskMoved, TaskHandedBack, TaskCompleted),
)  # fmt: skip

GRANTS: Final = (
    Grant(ORCHESTRATOR, "run", _RUN, opens=True),
    Grant(ORCHESTRATOR, "task", _names(TaskOpened, TaskForked, ApprovalDecided, TaskFailed, TaskCancelled), opens=True),
    Grant(ORCHESTRATOR, "agent", _AGENTS, opens=True),
    Grant(ORCHESTRATOR, "budget", _BUDGETS, opens=True),
    Grant(ORCHESTRATOR, "schedule", _SCHEDULES, opens=True),
    Grant(ORCHESTRATOR, "control", _CONTROLS, opens=True),
    Grant(ORCHESTRATOR, "alert", _ALERTS, opens=True),
    *(Grant(role, "spend", _SPEND, opens=True) for role in (ORCHESTRATOR, *map(kind_role, BUILT_IN_KINDS), SPECIALIST)),
    *(Grant(kind_role(kind), "task", _WORK, kind=kind) for kind in BUILT_IN_KINDS),
    Grant(SPECIALIST, "task", _WORK, except_kinds=frozenset(BUILT_IN_KINDS)),
    *(Grant(role, "claim", _CLAIMS, opens=True) for role in (*map(kind_role, BUILT_IN_KINDS), SPECIALIST)),
    *(Grant(role, "mcp", _MCP, opens=True) for role in (*map(kind_role, BUILT_IN_KINDS), SPECIALIST)),
    *(Grant(role, "provider", _PROVIDERS, opens=True) for role in (*map(kind_role, BUILT_IN_KINDS), SPECIALIST)),
    Grant(kind_role("research"), "doc", _names(DocumentIngested), opens=True),
    Grant(OPERATOR, "doc", _names(DocumentIngested), opens=True),
    Grant(OPERATOR, "import", _IMPORTS, opens=True),
    Grant(ARCHIVIST, "archive", _ARCHIVES, opens=True),
    Grant(ARCHIVIST, "person", _PERSONS, opens=True),
    Grant(ARCHIVIST, "doc", _names(DocumentErased)),
    Grant(ARCHIVIST, "memory", _names(MemoryForgotten)),
    # agents remember, people forget: an agent that was talked into it must not make anybody forget anything
    *(Grant(role, "memory", _names(MemoryRemembered), opens=True) for role in (kind_role("planner"), kind_role("research"), SPECIALIST)),
    Grant(OPERATOR, "memory", _names(MemoryForgotten)),
)


def owner_grants(role: str) -> tuple[Grant, ...]:
    """Return the rights of the login that owns the database: everything, so that one URL is enough for a small installation."""
    everything = (
        ("run", _RUN),
        ("task", _names(*TASK_EVENTS)),
        ("agent", _AGENTS),
        ("doc", _DOCUMENTS),
        ("mcp", _MCP),
        ("budget", _BUDGETS),
        ("spend", _SPEND),
        ("provider", _PROVIDERS),
        ("memory", _MEMORIES),
        ("schedule", _SCHEDULES),
        ("claim", _CLAIMS),
        ("import", _IMPORTS),
        ("archive", _ARCHIVES),
        ("person", _PERSONS),
        ("control", _CONTROLS),
        ("alert", _ALERTS),
    )
    return tuple(Grant(role, category, types, opens=True) for category, types in everything)
