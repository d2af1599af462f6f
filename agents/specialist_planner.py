"""The planner: turns a goal into steps, and the outcomes of the steps into the answer; routes and judges (see `planner_roles`).

Which of these a task is shows in its key.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from crewlog.agents.citations import unknown_references, used_citations
from crewlog.agents.planner_roles import CRITIC_PREFIX, JUDGE_INSTRUCTIONS, ROUTE_INSTRUCTIONS, ROUTE_TOOL, ROUTER, VERDICT_TOOL
from crewlog.agents.spec import AgentSpec, MemoryAccess, ToolContext, ToolFailed, ToolOutput, ToolSpec
from crewlog.schemas.checks import Kind, Objective, SafeText, StepKey
from crewlog.schemas.plan import RUBRIC_MAX, STEPS_MAX, check_order
from crewlog.schemas.task import AgentTask
from crewlog.schemas.values import SUMMARY_CHARS_MAX, ContextItem, Outcome

SYNTHESIS: Final = "@synthesis"
KINDS: Final = "@kinds"
AWAY: Final = "@away"
"""Kinds that cannot work now, each with what it lacks; there when there are any."""
ANSWER: Final = "answer.md"

INSTRUCTIONS: Final = """
You are the planner of a crew of specialists. You have no other means than them. Your task is one of four, and the tool you have tells which.

With submit_plan: break the objective into steps for the specialists.
- The context item "@kinds" lists the kinds there are and what each is good for. Use no other kind, and only those the objective needs.
- As few steps as possible: one step for each piece of work that one specialist can finish alone. One step is often right. Split only what can
  run in parallel or needs another specialist.
- A step sees nothing but its own objective, its attachments, and the outcomes of the steps in its `depends_on`. So write objectives that stand
  on their own: what to find out or make, from which files, for what purpose, with every name, number, address and limit of the goal copied
  word for word. Steps that do not need each other's outcome must not depend on each other; a step that reports must depend on all it reports.
- Name in `attachments` the files a step needs; leave it out to give it all of them.
- Put what can be checked by rule into `constraints` (words_max, citations_min, must_mention, banned_phrases, files_exist, tests_pass), and only
  what the goal asks for: an outcome that breaks one is sent back.
- Do not plan steps for checking, summing up or answering: reviews and the final answer happen anyway.
- When the context holds outcomes of an earlier plan, and "@open" lists its steps without a result: keep what succeeded, and plan only what is
  still missing, in another way than the one that failed.

With submit_answer: write the answer to the objective from the outcomes in the context, for the person who asked.
- Lead with the answer. Keep what matters for the decision, leave out how the crew worked. Say which files there are, by name.
- Use only what the outcomes say: copy numbers exactly. Put [source:line] behind what rests on a citation, with source and line as the context
  gives them.
- Say plainly what failed ("@open" lists it), was not found, contradicts itself or is flagged; an honest partial answer is a good answer.
- A "@review" says what an earlier answer lacks: repair exactly that.
"""
_INSTRUCTIONS: Final = INSTRUCTIONS + ROUTE_INSTRUCTIONS + JUDGE_INSTRUCTIONS


class ConstraintArgs(BaseModel):
    """Constraints with a description for the model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    words_max: Annotated[int | None, Field(ge=1, description="Most words of the outcome's summary.")] = None
    citations_min: Annotated[int, Field(ge=0, description="Fewest citations.")] = 0
    must_mention: Annotated[tuple[SafeText, ...], Field(description="Texts the summary must contain.")] = ()
    banned_phrases: Annotated[tuple[SafeText, ...], Field(description="Texts the summary must not contain.")] = ()
    files_exist: Annotated[tuple[SafeText, ...], Field(description="Names or patterns (*.svg) of files the step must make.")] = ()
    tests_pass: Annotated[bool, Field(description="All tests must pass in the end; for code steps.")] = False
    rubric: Annotated[tuple[SafeText, ...], Field(max_length=RUBRIC_MAX, description="Criteria in words, for what no rule above can check.")] = ()


class StepArgs(BaseModel):
    """A step with a description for the model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: Annotated[StepKey, Field(description="Short unique name such as `measure` or `rules`.")]
    type: Annotated[Kind, Field(description="Kind of the specialist that does it.")]
    objective: Annotated[Objective, Field(description="What to do, complete in itself.")]
    depends_on: Annotated[tuple[StepKey, ...], Field(description="Keys of the steps whose outcomes it needs.")] = ()
    attachments: Annotated[tuple[SafeText, ...] | None, Field(description="Names of the attachments it gets; null for all.")] = None
    constraints: Annotated[ConstraintArgs, Field(description="Rules its outcome is held to.")] = ConstraintArgs()
    timeout_seconds: Annotated[int | None, Field(ge=1, le=86_400, description="Longest time it may take; null for the run's.")] = None


class SubmitPlan(BaseModel):
    """A plan is checked as it is parsed: unique keys, known dependencies, no cycle."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: Annotated[tuple[StepArgs, ...], Field(min_length=1, max_length=STEPS_MAX, description="The steps, in any order.")]
    note: Annotated[SafeText, Field(max_length=2_000, description="One or two sentences for people: why these steps.")] = ""

    @model_validator(mode="after")
    def _is_in_order(self) -> Self:
        check_order(self.steps)
        return self


class SubmitAnswer(BaseModel):
    """The answer of the run."""

    model_config = ConfigDict(extra="forbid")

    title: Annotated[SafeText, Field(min_length=1, max_length=200, description="Title of the answer, without markup.")]
    markdown: Annotated[SafeText, Field(min_length=1, max_length=SUMMARY_CHARS_MAX, description="The answer in Markdown.")]


async def submit_plan(context: ToolContext, args: SubmitPlan) -> ToolOutput:
    """Check the plan against what exists, and end the task with it."""
    kinds, away = _kinds(context.task), _away(context.task)
    attached = {a.name for a in context.task.attachments}
    problems = []
    for step in args.steps:
        if step.type in away:
            problems.append(f"step {step.key!r}: kind {step.type!r} cannot work here: {away[step.type]}")
        elif kinds is not None and step.type not in kinds:
            problems.append(f"step {step.key!r}: there is no kind {step.type!r}; the kinds are {', '.join(kinds) or 'none at all'}")
        if unknown := sorted(set(step.attachments or ()) - attached):
            problems.append(f"step {step.key!r}: there is no attachment {', '.join(unknown)}; attached: {', '.join(sorted(attached)) or 'none'}")
    if problems:
        raise ToolFailed("the plan was not accepted; correct this and submit again:\n" + "\n".join(f"- {problem}" for problem in problems))
    steps = [step.model_dump(mode="json") for step in args.steps]
    summary = args.note or "; ".join(f"{step.key} ({step.type})" for step in args.steps)
    outcome = Outcome(summary=summary, output={"steps": steps, "note": args.note}, trust=_trust(context.task))
    return ToolOutput(f"The plan has {len(steps)} steps.", outcome=outcome)


async def submit_answer(context: ToolContext, args: SubmitAnswer) -> ToolOutput:
    """Store the answer as a file, and end the task with it."""
    items = _outcomes(context.task)
    citations = tuple(dict.fromkeys(c for item in items for c in item.outcome.citations))
    if unknown := unknown_references(args.markdown, citations):
        known = ", ".join(f"[{c.source}:{c.line}]" for c in citations) or "none"
        raise ToolFailed(f"the answer refers to {', '.join(f'[{r}]' for r in unknown)}, which no outcome cites; the citations are {known}")
    text = args.markdown if args.markdown.lstrip().startswith("# ") else f"# {args.title}\n\n{args.markdown}"
    ref = await context.artifacts.put(ANSWER, (text.rstrip() + "\n").encode(), "text/markdown")
    outcome = Outcome(
        summary=args.markdown,
        output={"title": args.title},
        artifacts=(ref,),
        citations=used_citations(args.markdown, citations),
        flags=tuple(dict.fromkeys(flag for item in items for flag in item.outcome.flags)),
        trust=_trust(context.task),
    )
    return ToolOutput(f"The answer is stored as {ANSWER}.", artifacts=(ref,), outcome=outcome)


def _outcomes(task: AgentTask) -> list[ContextItem]:
    return [item for item in task.context if item.type != "system"]


def _kinds(task: AgentTask) -> list[str] | None:
    """Return the kinds the orchestrator says there are, or None when it says nothing."""
    listed: Any = next((item.outcome.output for item in task.context if item.key == KINDS), None)
    return None if listed is None else [str(entry["kind"]) for entry in listed]


def _away(task: AgentTask) -> dict[str, str]:
    """Return the kinds that cannot work now, with what they lack."""
    listed: Any = next((item.outcome.output for item in task.context if item.key == AWAY), ())
    return {str(entry["kind"]): str(entry["unavailable"]) for entry in listed}


def _trust(task: AgentTask) -> Any:
    return "untrusted" if any(item.outcome.trust == "untrusted" for item in task.context) else "trusted"


PLAN_CORRECTIONS_MAX: Final = 2
_PLAN_TOOL: Final = ToolSpec(
    "submit_plan",
    "Hand in the plan and end the task.",
    SubmitPlan,
    submit_plan,
    effect="read",
    trust="trusted",
    ends_task=True,
    refusals_max=PLAN_CORRECTIONS_MAX,
)
_ANSWER_TOOL: Final = ToolSpec(
    "submit_answer",
    "Hand in the answer of the run and end the task.",
    SubmitAnswer,
    submit_answer,
    effect="idempotent",
    is_contained=True,
    trust="trusted",
    ends_task=True,
)


def _tools(task: AgentTask) -> tuple[ToolSpec, ...]:
    key = task.key or ""
    if key.startswith(CRITIC_PREFIX):
        return (VERDICT_TOOL,)
    return (_ANSWER_TOOL,) if key == SYNTHESIS else (ROUTE_TOOL,) if key == ROUTER else (_PLAN_TOOL,)


def _memory(task: AgentTask) -> MemoryAccess | None:
    """Only who plans has a memory: whoever judges or sums up has before them all that they need."""
    key = task.key or ""
    return None if key.startswith(CRITIC_PREFIX) or key in (SYNTHESIS, ROUTER) else "remember"


def planner_agent() -> AgentSpec:
    """Make the planner."""
    return AgentSpec(
        kind="planner",
        description="Makes plans and writes the answers of runs.",
        instructions=_INSTRUCTIONS,
        tools=_tools,
        memory=_memory,
        recalls_untrusted=False,
    )
