"""A crewlog agent for benchmarks: one model turn that costs nothing, one tool call that ends the task.

python fanout_agent.py KIND [SLOTS [SECONDS]]      (CREWLOG_DATABASE_URL and CREWLOG_NATS_URL say where; the model thinks for SECONDS)
"""

from __future__ import annotations

import asyncio
import sys

from pydantic import BaseModel

from crewlog.agents import AgentSpec, ToolContext, ToolOutput, ToolSpec
from crewlog.agents.model import OnText
from crewlog.agents.process import run_worker
from crewlog.events.config import load
from crewlog.events.event_loop import new_event_loop
from crewlog.schemas.blocks import ModelReply, ModelRequest, ToolUse
from crewlog.schemas.usage import Usage
from crewlog.schemas.values import Outcome


class Note(BaseModel):
    """Arguments of the one tool."""

    text: str


async def note(_: ToolContext, args: Note) -> ToolOutput:
    """Hand the text back as the task's outcome."""
    return ToolOutput(args.text, outcome=Outcome(args.text))


class InstantModel:
    """Answers at once, or after always the same time, and always the same: what is measured is crewlog."""

    wire, provider, name, simulated = "offline", "offline", "instant-1", True

    def __init__(self, thinks_s: float = 0.0) -> None:
        self._thinks_s = thinks_s

    async def complete(self, request: ModelRequest, *, timeout_s: float, on_text: OnText | None = None) -> ModelReply:  # noqa: ARG002
        if self._thinks_s:
            await asyncio.sleep(self._thinks_s)
        arguments = '{"text":"' + "x" * 300 + '"}'
        return ModelReply((ToolUse("call", "note", arguments),), "tool_use", Usage(100, 20), self.name)


def agent(kind: str) -> AgentSpec:
    """Make the agent of one kind."""
    tool = ToolSpec("note", "Write a note.", Note, note, effect="idempotent", trust="trusted", ends_task=True)
    return AgentSpec(kind, "Benchmark agent.", "Write one note.", (tool,))


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=new_event_loop) as runner:  # as `crewlog agent` does
        kind, slots, thinks_s = sys.argv[1], int((*sys.argv[2:], "200")[0]), float((*sys.argv[3:], "0")[0])
        runner.run(run_worker(load(slots=slots), agent(kind), model=InstantModel(thinks_s)))
