"""A specialist that asks models for money, over real wires. Run as a process:  python -m support.paid_agent

`CREWLOG_MODELS` names its models and their servers on loopback.
"""

from __future__ import annotations

import asyncio

from pydantic import BaseModel

from crewlog.agents import AgentSpec, ToolContext, ToolOutput, ToolSpec
from crewlog.agents.process import run_worker
from crewlog.events.config import load
from crewlog.orchestrator.endpoints import with_login
from crewlog.schemas.values import Outcome

KIND = "paid"


class At(BaseModel):
    """Where to look."""

    at: str = ""


async def look(_: ToolContext, args: At) -> ToolOutput:
    """Say what is there."""
    return ToolOutput(f"nothing at {args.at}")


async def finish(_: ToolContext, __: At) -> ToolOutput:
    """End the task."""
    return ToolOutput("finished", outcome=Outcome("finished"))


AGENT = AgentSpec(
    kind=KIND,
    description="Asks a model that costs money.",
    instructions="Look, then finish.",
    tools=(
        ToolSpec("look", "Look.", At, look, effect="read", trust="trusted"),
        ToolSpec("finish", "Finish.", At, finish, effect="read", trust="trusted", ends_task=True),
    ),
)

if __name__ == "__main__":
    asyncio.run(run_worker(with_login(load(), KIND), AGENT))
