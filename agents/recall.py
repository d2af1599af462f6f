"""Tools every agent has besides its own, once they are of use: reading back what a conversation no longer holds.

`recall_result` shows a result that was left out to make room; it is offered from the first time something was. `read_context` fetches
the outcome of an earlier task, where outcomes are listed instead of told (setting `context`).
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from crewlog.agents.compaction import RECALL
from crewlog.agents.spec import ToolContext, ToolFailed, ToolOutput, ToolSpec

READ_CONTEXT: Final = "read_context"
PART_CHARS: Final = 12_000
"""Characters of one part: a text that is longer is read in several."""
KEYS_SHOWN_MAX: Final = 50


class RecallResult(BaseModel):
    """Arguments of `recall_result`."""

    model_config = ConfigDict(extra="forbid")

    call_id: Annotated[str, Field(description="Id of the call, as the line says that stands in place of its result.")]
    part: Annotated[int, Field(ge=1, description="Which part of a long result, from 1.")] = 1


class ReadContext(BaseModel):
    """Arguments of `read_context`."""

    model_config = ConfigDict(extra="forbid")

    key: Annotated[str, Field(description="Key of the earlier result, as the task lists it.")]
    part: Annotated[int, Field(ge=1, description="Which part of a long result, from 1.")] = 1


async def recall_result(context: ToolContext, args: RecallResult) -> ToolOutput:
    """Show a result of an earlier call of this task again."""
    found = await context.recall(args.call_id)
    if found is None:
        raise ToolFailed(f"no call {args.call_id!r} of this task has a result; take the id from the line that stands in its place")
    return ToolOutput(part_of(found.content, args.part), trust=found.trust)


async def read_context(context: ToolContext, args: ReadContext) -> ToolOutput:
    """Fetch the outcome of an earlier task as JSON."""
    found = next((item for item in context.task.context if item.key == args.key), None)
    if found is None:
        keys = [item.key for item in context.task.context][:KEYS_SHOWN_MAX]
        raise ToolFailed(f"there is no earlier result {args.key!r}; there are: {', '.join(keys) or 'none'}")
    return ToolOutput(part_of(msgspec.json.encode(found.outcome).decode(), args.part), trust=found.outcome.trust)


def part_of(text: str, part: int) -> str:
    """Return one part of a text: all of it, without a word more, when it is short enough.

    Raises:
        ToolFailed: it has fewer parts.
    """
    parts = max(-(-len(text) // PART_CHARS), 1)
    if part > parts:
        raise ToolFailed(f"it has {parts} part{'s' if parts > 1 else ''}, there is no part {part}")
    shown = text[(part - 1) * PART_CHARS : part * PART_CHARS]
    return shown if parts == 1 else f"[part {part} of {parts}]\n{shown}"


RECALL_TOOL: Final = ToolSpec(
    RECALL,
    "Show the result of an earlier call that was left out of this conversation to make room.",
    RecallResult,
    recall_result,
    effect="read",
    trust="trusted",
)
READ_CONTEXT_TOOL: Final = ToolSpec(
    READ_CONTEXT,
    "Read one of the earlier results that the task lists under `available_context`.",
    ReadContext,
    read_context,
    effect="read",
    trust="trusted",
)
"""What they show keeps the label that it has: that of the tools themselves is for their error texts."""
