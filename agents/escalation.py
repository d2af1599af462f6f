"""Asking a person in the middle of a task: a tool like any other for the model, a question that waits at no cost for everybody else."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from crewlog.agents.spec import ToolContext, ToolFailed, ToolOutput, ToolSpec
from crewlog.schemas.checks import SafeText

ESCALATE: Final = "escalate_to_human"
ESCALATIONS_MAX: Final = 5
"""Questions of one task: who asks more often should fail and say what is missing."""


class Escalation(BaseModel):
    """Arguments of `escalate_to_human`."""

    model_config = ConfigDict(extra="forbid")

    reason: Annotated[SafeText, Field(min_length=1, max_length=500, description="The question, or what to decide, in one or two sentences.")]
    context: Annotated[SafeText, Field(max_length=8_000, description="What the person must know to answer: what was tried, found, and what follows.")] = ""


async def _only_a_person_answers(_: ToolContext, __: Any) -> ToolOutput:
    raise ToolFailed("only a person can answer this")


ESCALATE_TOOL: Final = ToolSpec(
    ESCALATE,
    "Ask a person when you cannot go on without a decision or a fact that only people have. The task waits for the answer, "
    "so use it for what matters and cannot be found with the other tools.",
    Escalation,
    _only_a_person_answers,
    effect="read",
    trust="trusted",
    asks_person=True,
    calls_max=ESCALATIONS_MAX,
)
