"""A plan: tasks as a directed acyclic graph. Made by the planner, or brought along by whoever submits the run."""

from __future__ import annotations

from typing import Annotated, Final, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from crewlog.schemas.checks import Kind, Objective, SafeText, StepKey

STEPS_MAX: Final = 100
RUBRIC_MAX: Final = 10
"""Criteria of one rubric."""


class Constraints(BaseModel):
    """Rules the deterministic critic holds an outcome to. All are optional; none means accepted as it is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    words_max: Annotated[int, Field(ge=1)] | None = None
    citations_min: Annotated[int, Field(ge=0)] = 0
    must_mention: tuple[SafeText, ...] = ()
    banned_phrases: tuple[SafeText, ...] = ()
    files_exist: tuple[SafeText, ...] = ()
    """Names (or `*.svg`-like patterns) of artifacts that must be there."""
    tests_pass: bool = False
    """The outcome's `output.tests.failed` must be 0 and `output.tests.passed` at least 1."""
    rubric: Annotated[tuple[SafeText, ...], Field(max_length=RUBRIC_MAX)] = ()
    """What a model judges once every rule above is kept: criteria in words, such as `names the risk that matters most`."""


class PlanStep(BaseModel):
    """One task of a plan. Results of the steps in `depends_on` reach it as context."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: StepKey
    type: Kind
    objective: Objective
    depends_on: tuple[StepKey, ...] = ()
    attachments: tuple[SafeText, ...] | None = None
    """Names of the run's attachments this step gets; None means all of them."""
    constraints: Constraints = Constraints()
    timeout_seconds: Annotated[int, Field(ge=1, le=86_400)] | None = None


class Plan(BaseModel):
    """Steps with unique keys, known dependencies and no cycle."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: Annotated[tuple[PlanStep, ...], Field(min_length=1, max_length=STEPS_MAX)]

    @model_validator(mode="after")
    def _is_a_dag(self) -> Self:
        keys = [step.key for step in self.steps]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise ValueError(f"step keys must be unique; used more than once: {', '.join(twice)}")
        for step in self.steps:
            unknown = sorted(set(step.depends_on) - set(keys))
            if unknown:
                raise ValueError(f"step {step.key!r} depends on unknown {', '.join(unknown)}; known steps: {', '.join(keys)}")
        left = {step.key: set(step.depends_on) for step in self.steps}
        while ready := [key for key, waits in left.items() if not waits]:
            for key in ready:
                del left[key]
            for waits in left.values():
                waits.difference_update(ready)
        if left:
            raise ValueError(f"the plan has a cycle through {' -> '.join([*left, next(iter(left))])}; remove one of these dependencies")
        return self
