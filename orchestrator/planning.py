"""Plans: from the sender, from the planner, or one step for a single task; always checked before anything is dispatched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

import msgspec

from crewlog.orchestrator.brief import Brief
from crewlog.orchestrator.run import RunState
from crewlog.schemas.errors import ContractError
from crewlog.schemas.parse import parse
from crewlog.schemas.plan import Plan, PlanStep, read_constraints
from crewlog.schemas.run_events import Step
from crewlog.schemas.sparse import sparse_json
from crewlog.schemas.task import RUN, AgentTask
from crewlog.schemas.text import shorten
from crewlog.schemas.values import Outcome

PLANNER: Final = "planner"
SINGLE_KEY: Final = "task"
NOTE_CHARS_MAX: Final = 2_000
_NO_PLAN: Final = "this is not a valid plan"


class Offer(NamedTuple):
    """An agent kind as planners see it. `unavailable` is empty, or says what its workers lack and how to install it."""

    description: str
    unavailable: str = ""


Kinds = Mapping[str, Offer]


def given_steps(plan: Plan) -> tuple[Step, ...]:
    """Turn a checked plan into recorded steps."""
    return tuple(_recorded(step) for step in plan.steps)


def single_step(task: AgentTask) -> Step:
    """Make the one step of a run that is a single task."""
    return Step(task.key or SINGLE_KEY, task.type, task.objective, (), msgspec.Raw(sparse_json(task.constraints)))


def check_kinds(task: AgentTask, kinds: Kinds) -> None:
    """Check that every kind a task needs exists and can work.

    Raises:
        ContractError: naming each unknown or unavailable kind, and the known ones.
    """
    wanted: list[tuple[str, str]] = []
    if task.type != RUN:
        wanted.append(("/type", task.type))
    elif task.plan is not None:
        wanted += [(f"/plan/steps/{index}/type", step.type) for index, step in enumerate(task.plan.steps)]
    else:
        wanted.append(("/plan", PLANNER))
    if task.synthesis == PLANNER:
        wanted.append(("/synthesis", PLANNER))
    problems = [(pointer, text) for pointer, kind in wanted if (text := _kind_problem(kind, kinds))]
    if problems:
        raise ContractError("nobody can carry out this task", problems=tuple(problems))


def _kind_problem(kind: str, kinds: Kinds) -> str:
    offer = kinds.get(kind)
    if offer is None:
        return unknown_kind(kind, kinds)
    return f"kind {kind!r} is unavailable: {offer.unavailable}" if offer.unavailable else ""


def unknown_kind(kind: str, known: Iterable[str]) -> str:
    """Say that there is no such kind, which there are, and how to go on: with the one that may be meant, or by starting an agent of it."""
    from difflib import get_close_matches  # nearly no process ever needs it

    there = sorted(known)
    near = get_close_matches(kind.lower(), there, n=1)
    meant = f", perhaps {near[0]!r}" if near else ""
    own = "" if kind in (RUN, PLANNER) else f", or start an agent of kind {kind!r} with `crewlog agent MODULE:ATTR`"
    return f"unknown kind {kind!r}; known kinds: {', '.join(there) or 'none'}; name one of them{meant}{own}"


def offers(kinds: Kinds) -> dict[str, str]:
    """Return what a planner may use: kind -> description."""
    return {kind: offer.description for kind, offer in sorted(kinds.items()) if kind != PLANNER and not offer.unavailable}


def away(kinds: Kinds) -> dict[str, str]:
    """Return what a planner cannot use now: kind -> what its workers lack and how to install it."""
    return {kind: offer.unavailable for kind, offer in sorted(kinds.items()) if kind != PLANNER and offer.unavailable}


def planned_steps(state: RunState, outcome: Outcome, offered: Iterable[str]) -> tuple[tuple[Step, ...], str]:
    """Read the plan a planner made, on top of the steps that are finished already, and its note.

    Raises:
        ContractError: there is none, it breaks the rules of a plan, or names kinds or attachments that do not exist.
    """
    output = outcome.output
    if not isinstance(output, dict) or not isinstance(output.get("steps"), list):
        raise ContractError("the outcome has no plan", problems=(("/output/steps", "expected a list of steps"),))
    done = [step for step in state.steps if (task := state.tasks.get(step.key)) is not None and task.is_finished]
    kept = {step.key for step in done}
    new = [parse(PlanStep, step, _NO_PLAN) for step in output["steps"] if not (isinstance(step, dict) and step.get("key") in kept)]
    parse(Plan, {"steps": (*map(_as_plan_step, done), *new)}, _NO_PLAN)
    _check_names(new, state.brief, frozenset(offered))
    return (*done, *map(_recorded, new)), shorten(str(output.get("note") or ""), NOTE_CHARS_MAX)


def _check_names(steps: list[PlanStep], brief: Brief, offered: frozenset[str]) -> None:
    attached = {attachment["name"] for attachment in brief.attachments}
    problems: list[tuple[str, str]] = []
    for step in steps:
        if step.type not in offered:
            problems.append((f"/{step.key}/type", unknown_kind(step.type, offered)))
        unknown = sorted(set(step.attachments or ()) - attached)
        if unknown:
            problems.append((f"/{step.key}/attachments", f"unknown {', '.join(unknown)}; attached: {', '.join(sorted(attached)) or 'none'}"))
    if problems:
        raise ContractError("the plan names what does not exist", problems=tuple(problems))


def _recorded(step: PlanStep) -> Step:
    constraints = msgspec.Raw(sparse_json(step.constraints))
    return Step(step.key, step.type, step.objective, step.depends_on, constraints, step.attachments, step.timeout_seconds)


def _as_plan_step(step: Step) -> PlanStep:
    return PlanStep(
        key=step.key,
        type=step.type,
        objective=step.objective,
        depends_on=step.depends_on,
        attachments=step.attachments,
        constraints=read_constraints(step.constraints),
        timeout_seconds=step.timeout_seconds,
    )
