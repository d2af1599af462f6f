"""`AgentTask`: the public contract. Publish one to `tasks.<tenant>.<type>`; agents receive the same type from the orchestrator.

Frozen dataclasses, because two read them: pydantic what people and models write by hand (`parse_task`), whose error texts go back to them;
msgspec what the log recorded (`read_task`), which was checked when it was accepted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Final, Literal
from uuid import UUID

import msgspec

from crewlog.schemas.budget import MICRO_USD_MAX
from crewlog.schemas.checks import CLOSED, Check, Goal, Kind, RelativePath, SafeText, TaskKey, Token, Within
from crewlog.schemas.effects import UndoOrder
from crewlog.schemas.ids import TOKEN
from crewlog.schemas.parse import parse
from crewlog.schemas.plan import UNCONSTRAINED, Constraints, Plan
from crewlog.schemas.subjects import SHADOW_LANE
from crewlog.schemas.trial import Trial, named_versions
from crewlog.schemas.values import ContextItem

RUN: Final = "run"
"""The `type` of a task that is a whole goal: it is planned first, or brings its own plan."""

TASK_BYTES_MAX: Final = 512 * 1024
VERSION_CHARS_MAX: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """A file the task works on: stored content-addressed before the task is published."""

    __pydantic_config__: ClassVar = CLOSED

    name: RelativePath
    hash: Annotated[str, Within(pattern=r"^[0-9a-f]{64}$")]
    size: Annotated[int, Within(ge=0)]
    media_type: SafeText = "application/octet-stream"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Where one task stops, each with its own error `limit_<name>`. Defaults suit interactive work; None means no limit."""

    __pydantic_config__: ClassVar = CLOSED

    turns_max: Annotated[int, Within(ge=1, le=1000)] = 40
    tool_calls_max: Annotated[int, Within(ge=0, le=10_000)] = 200
    attempts_max: Annotated[int, Within(ge=1, le=20)] = 3
    """Attempts at a task whose failures are worth retrying."""
    idle_seconds: Annotated[int, Within(ge=1, le=86_400)] = 600
    """Longest time without a sign of progress: no event, no piece of an answer, no result of a tool. Longer than any single model or
    tool call of the built-in kinds may take, so that it is reached only when something hangs."""
    output_tokens_max: Annotated[int, Within(ge=1)] | None = None
    """Tokens that the models may write in all answers together."""
    tokens_max: Annotated[int, Within(ge=1)] | None = None
    """Tokens in all requests and answers together; what is read from a provider's cache counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Money for a run, in micro-USD. None means no limit of its own; a limit that the operator has set for all runs counts in any case."""

    __pydantic_config__: ClassVar = CLOSED

    hard_micro_usd: Annotated[int, Within(ge=0, le=MICRO_USD_MAX)] | None = None
    """No model call starts that might take the run beyond it. 0: nothing may be spent."""
    soft_micro_usd: Annotated[int, Within(ge=0, le=MICRO_USD_MAX)] | None = None
    """Reaching it warns. None: 70 % of the hard limit."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        return Check(_warning_in_time).__get_pydantic_core_schema__(source, handler)


@dataclass(frozen=True, kw_only=True)
class AgentTask:
    """One unit of work.

    `task_id` is chosen by the sender and makes publishing idempotent: the same id again is the same task. When a message on
    `tasks.>` has none, intake makes one, and a sender that retries then has two tasks. `run_id` defaults to `task_id`.
    """

    __pydantic_config__: ClassVar = CLOSED

    schema_version: Literal[1] = 1
    task_id: UUID
    run_id: UUID
    parent_task_id: UUID | None = None
    key: TaskKey | None = None
    """Key of the plan step this task carries out; set by the orchestrator."""
    tenant: Token = "default"
    user: Token = "anonymous"
    surface: Token = "default"
    """Where the work comes from, such as `batch` or `free`: the operator may set budgets for each. One without any has those of `default`."""
    type: Kind
    objective: Goal
    context: tuple[ContextItem, ...] = ()
    attachments: tuple[Attachment, ...] = ()
    constraints: Constraints = UNCONSTRAINED
    limits: Limits = Limits()
    timeout_seconds: Annotated[int, Within(ge=1, le=86_400)] = 900
    budget: Budget = Budget()
    output_schema: dict[str, Any] | None = None
    """JSON Schema that the outcome's `output` must satisfy."""
    priority: Literal["high", "normal", "low", "shadow"] = "normal"
    """Orders a tenant's own work. `shadow` is set by orchestrators alone, for trials that only workers started for shadows take
    (`crewlog agent KIND --shadow`)."""
    auto_approve: bool = False
    """Run consequential tools without asking a person. Recorded with the run; off unless the sender says so."""
    plan: Plan | None = None
    """For `type: run`: the sender's own plan. No planner is asked then."""
    routing: Literal["planner", "router"] = "planner"
    """Who is asked first about a goal without a plan: the planner, or a router, which may hand the whole goal to one specialist."""
    synthesis: Literal["planner", "collect"] | None = None
    """Who writes the answer of a run: the planner agent, or the orchestrator by putting the outcomes side by side.
    None means `collect` for a run with its own plan or of a single task, `planner` otherwise."""
    undo: UndoOrder | None = None
    """Set by the orchestrator for a task of a rollback: the one call that it is about. No model is asked."""
    trial: Trial | None = None
    """Set for a run that tries something out, such as a fork: which models answer, and that no effect reaches beyond the run."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        checked = Check(_consistent).__get_pydantic_core_schema__(source, handler)
        return Check(_with_run, is_first=True).__get_pydantic_core_schema__(source, lambda _: checked)


def _warning_in_time(budget: Budget) -> Budget:
    soft, hard = budget.soft_micro_usd, budget.hard_micro_usd
    if soft is not None and hard is not None and soft > hard:
        raise ValueError(f"soft_micro_usd {soft} is above hard_micro_usd {hard}: it would never warn in time")
    return budget


def _with_run(data: Any) -> Any:
    if isinstance(data, dict) and data.get("run_id") is None and "task_id" in data:
        return {**data, "run_id": data["task_id"]}
    return data


def _consistent(task: AgentTask) -> AgentTask:
    if task.plan is not None and task.type != RUN:
        raise ValueError(f"a plan needs type 'run', got {task.type!r}")
    if task.trial is not None and task.trial.name and not TOKEN.fullmatch(task.trial.name):
        raise ValueError(f"a trial is named with letters, digits, - and _, got {task.trial.name!r}")
    if task.trial is not None and task.trial.agent_version:
        _check_versions(task.trial.agent_version)
    if task.priority == SHADOW_LANE and (task.trial is None or not task.trial.name or not task.trial.stubs_effects):
        raise ValueError("priority 'shadow' is for trials with a name whose effects are stubbed")
    names = [a.name for a in task.attachments]
    if len(set(names)) < len(names):
        raise ValueError("attachment names must be unique")
    for step in () if task.plan is None else task.plan.steps:
        unknown = sorted(set(step.attachments or ()) - set(names))
        if unknown:
            raise ValueError(f"step {step.key!r} names unknown attachments {', '.join(unknown)}; attached: {', '.join(names) or 'none'}")
    return task


def _check_versions(text: str) -> None:
    for kind, version in named_versions(text).items():
        if not (kind == "*" or TOKEN.fullmatch(kind)) or not version or not version.isprintable() or len(version) > VERSION_CHARS_MAX:
            raise ValueError(f"{text!r} names no versions of agents: write VERSION, or KIND=VERSION of certain kinds with commas")


def parse_task(data: bytes | str | dict[str, Any]) -> AgentTask:
    """Decode and check a task that somebody sent.

    Raises:
        ContractError: with every problem and its JSON pointer.
    """
    return parse(AgentTask, data.encode(errors="surrogatepass") if isinstance(data, str) else data, "this is not a valid AgentTask")


_recorded: Final = msgspec.json.Decoder(AgentTask)


def read_task(recorded: bytes | msgspec.Raw) -> AgentTask:
    """Decode a task that was recorded, and checked before that. Fields of newer programs are passed over.

    Raises:
        msgspec.ValidationError: it was never one.
    """
    return _recorded.decode(recorded)
