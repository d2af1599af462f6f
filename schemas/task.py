"""`AgentTask`: the public contract. Publish one to `tasks.<tenant>.<type>`; agents receive the same type from the orchestrator.

pydantic rather than msgspec, because people and models write these by hand and its error texts go back to them.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from crewlog.schemas.budget import MICRO_USD_MAX
from crewlog.schemas.checks import Kind, Objective, RelativePath, SafeText, TaskKey, Token
from crewlog.schemas.effects import UndoOrder
from crewlog.schemas.errors import ContractError
from crewlog.schemas.ids import TOKEN
from crewlog.schemas.plan import Constraints, Plan
from crewlog.schemas.subjects import SHADOW_LANE
from crewlog.schemas.trial import Trial
from crewlog.schemas.values import ContextItem

RUN: Final = "run"
"""The `type` of a task that is a whole goal: it is planned first, or brings its own plan."""

TASK_BYTES_MAX: Final = 512 * 1024


class Attachment(BaseModel):
    """A file the task works on: stored content-addressed before the task is published."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: RelativePath
    hash: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size: Annotated[int, Field(ge=0)]
    media_type: SafeText = "application/octet-stream"


class Limits(BaseModel):
    """Where one task stops, each with its own error `limit_<name>`. Defaults suit interactive work; None means no limit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    turns_max: Annotated[int, Field(ge=1, le=1000)] = 40
    tool_calls_max: Annotated[int, Field(ge=0, le=10_000)] = 200
    attempts_max: Annotated[int, Field(ge=1, le=20)] = 3
    """Attempts at a task whose failures are worth retrying."""
    idle_seconds: Annotated[int, Field(ge=1, le=86_400)] = 600
    """Longest time without a sign of progress: no event, no piece of an answer, no result of a tool. Longer than any single model or
    tool call of the built-in kinds may take, so that it is reached only when something hangs."""
    output_tokens_max: Annotated[int, Field(ge=1)] | None = None
    """Tokens that the models may write in all answers together."""
    tokens_max: Annotated[int, Field(ge=1)] | None = None
    """Tokens in all requests and answers together; what is read from a provider's cache counts."""


class Budget(BaseModel):
    """Money for a run, in micro-USD. None means no limit of its own; a limit that the operator has set for all runs counts in any case."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hard_micro_usd: Annotated[int, Field(ge=0, le=MICRO_USD_MAX)] | None = None
    """No model call starts that might take the run beyond it. 0: nothing may be spent."""
    soft_micro_usd: Annotated[int, Field(ge=0, le=MICRO_USD_MAX)] | None = None
    """Reaching it warns. None: 70 % of the hard limit."""

    @model_validator(mode="after")
    def _soft_is_not_above_hard(self) -> Budget:
        if self.soft_micro_usd is not None and self.hard_micro_usd is not None and self.soft_micro_usd > self.hard_micro_usd:
            raise ValueError(f"soft_micro_usd {self.soft_micro_usd} is above hard_micro_usd {self.hard_micro_usd}: it would never warn in time")
        return self


class AgentTask(BaseModel):
    """One unit of work.

    `task_id` is chosen by the sender and makes publishing idempotent: the same id again is the same task. When a message on
    `tasks.>` has none, intake makes one, and a sender that retries then has two tasks. `run_id` defaults to `task_id`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

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
    objective: Objective
    context: tuple[ContextItem, ...] = ()
    attachments: tuple[Attachment, ...] = ()
    constraints: Constraints = Constraints()
    limits: Limits = Limits()
    timeout_seconds: Annotated[int, Field(ge=1, le=86_400)] = 900
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

    @model_validator(mode="before")
    @classmethod
    def _default_run(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("run_id") is None and "task_id" in data:
            return {**data, "run_id": data["task_id"]}
        return data

    @model_validator(mode="after")
    def _plan_needs_run(self) -> AgentTask:
        if self.plan is not None and self.type != RUN:
            raise ValueError(f"a plan needs type 'run', got {self.type!r}")
        if self.trial is not None and self.trial.name and not TOKEN.fullmatch(self.trial.name):
            raise ValueError(f"a trial is named with letters, digits, - and _, got {self.trial.name!r}")
        if self.priority == SHADOW_LANE and (self.trial is None or not self.trial.name or not self.trial.stubs_effects):
            raise ValueError("priority 'shadow' is for trials with a name whose effects are stubbed")
        names = [a.name for a in self.attachments]
        if len(set(names)) < len(names):
            raise ValueError("attachment names must be unique")
        if self.plan is not None:
            for step in self.plan.steps:
                unknown = sorted(set(step.attachments or ()) - set(names))
                if unknown:
                    raise ValueError(f"step {step.key!r} names unknown attachments {', '.join(unknown)}; attached: {', '.join(names) or 'none'}")
        return self


def parse_task(data: bytes | str | dict[str, Any]) -> AgentTask:
    """Decode and check one task.

    Raises:
        ContractError: with every problem and its JSON pointer.
    """
    try:
        return AgentTask.model_validate(data) if isinstance(data, dict) else AgentTask.model_validate_json(data)
    except ValidationError as error:
        raise contract_error("this is not a valid AgentTask", error) from None


def contract_error(message: str, error: ValidationError) -> ContractError:
    """Turn pydantic's report into ours: a JSON pointer and one sentence for each problem."""
    details = error.errors(include_url=False, include_input=False)
    return ContractError(message, problems=tuple(("".join(f"/{part}" for part in e["loc"]), e["msg"].removeprefix("Value error, ")) for e in details))
