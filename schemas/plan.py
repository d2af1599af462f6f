"""A plan: tasks as a directed acyclic graph. Made by the planner, or brought along by whoever submits the run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Final, Protocol

import msgspec

from crewlog.schemas.checks import CLOSED, Check, Kind, Objective, SafeText, StepKey, Within

STEPS_MAX: Final = 100
RUBRIC_MAX: Final = 10
"""Criteria of one rubric."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraints:
    """Rules the deterministic critic holds an outcome to. All are optional; none means accepted as it is."""

    __pydantic_config__: ClassVar = CLOSED

    words_max: Annotated[int, Within(ge=1)] | None = None
    citations_min: Annotated[int, Within(ge=0)] = 0
    must_mention: tuple[SafeText, ...] = ()
    banned_phrases: tuple[SafeText, ...] = ()
    files_exist: tuple[SafeText, ...] = ()
    """Names (or `*.svg`-like patterns) of artifacts that must be there."""
    tests_pass: bool = False
    """The outcome's `output.tests.failed` must be 0 and `output.tests.passed` at least 1."""
    rubric: Annotated[tuple[SafeText, ...], Within(max_length=RUBRIC_MAX)] = ()
    """What a model judges once every rule above is kept: criteria in words, such as `names the risk that matters most`."""


UNCONSTRAINED: Final = Constraints()


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanStep:
    """One task of a plan. Results of the steps in `depends_on` reach it as context."""

    __pydantic_config__: ClassVar = CLOSED

    key: StepKey
    type: Kind
    objective: Objective
    depends_on: tuple[StepKey, ...] = ()
    attachments: tuple[SafeText, ...] | None = None
    """Names of the run's attachments this step gets; None means all of them."""
    constraints: Constraints = UNCONSTRAINED
    timeout_seconds: Annotated[int, Within(ge=1, le=86_400)] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Steps with unique keys, known dependencies and no cycle."""

    __pydantic_config__: ClassVar = CLOSED

    steps: Annotated[tuple[PlanStep, ...], Within(min_length=1, max_length=STEPS_MAX)]

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        return Check(_in_order).__get_pydantic_core_schema__(source, handler)


def _in_order(plan: Plan) -> Plan:
    check_order(plan.steps)
    return plan


class Ordered(Protocol):
    """A step as far as its place in a plan goes."""

    @property
    def key(self) -> str:
        """What other steps call it."""

    @property
    def depends_on(self) -> Sequence[str]:
        """Keys of the steps before it."""


def check_order(steps: Sequence[Ordered]) -> None:
    """Check that steps can be put in an order.

    Raises:
        ValueError: two have the same key, one depends on an unknown one, or they wait for each other.
    """
    keys = [step.key for step in steps]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise ValueError(f"step keys must be unique; used more than once: {', '.join(twice)}")
    for step in steps:
        unknown = sorted(set(step.depends_on) - set(keys))
        if unknown:
            raise ValueError(f"step {step.key!r} depends on unknown {', '.join(unknown)}; known steps: {', '.join(keys)}")
    left = {step.key: set(step.depends_on) for step in steps}
    while ready := [key for key, waits in left.items() if not waits]:
        for key in ready:
            del left[key]
        for waits in left.values():
            waits.difference_update(ready)
    if left:
        raise ValueError(f"the plan has a cycle through {' -> '.join([*left, next(iter(left))])}; remove one of these dependencies")


_constraints: Final = msgspec.json.Decoder(Constraints)


def read_constraints(recorded: msgspec.Raw) -> Constraints:
    """Decode constraints that were recorded, and checked before that."""
    return _constraints.decode(recorded)
