"""The agent of a chaos run, as a process of its own: `python -m crewlog.orchestrator.chaos_agent`.

The objective of a task is its script: tools by turns, `+` between those of one turn, as in `stamp+stamp send finish`. The model follows
it, takes a moment for each answer and charges money; the tools have effects on a sink (`chaos_sink`) that counts them. Everything else
is the product: the worker, its loop, its log.
"""

from __future__ import annotations

import asyncio
import os
import re
import zlib
from typing import Final

from pydantic import BaseModel

from crewlog.agents import AgentSpec, ToolContext, ToolOutput, ToolSpec
from crewlog.agents.model import OnText
from crewlog.agents.process import run_worker
from crewlog.events.config import load
from crewlog.orchestrator.chaos_sink import Bill, Effect, SinkEffect, tell
from crewlog.orchestrator.cli_output import log_to_stderr
from crewlog.orchestrator.endpoints import with_login
from crewlog.schemas.blocks import ModelReply, ModelRequest, Text, ToolUse
from crewlog.schemas.usage import Usage
from crewlog.schemas.values import Outcome

KIND: Final = "chaos"
SINK: Final = "CREWLOG_CHAOS_SINK"
"""Environment variable with the path of the sink's socket."""
MODEL: Final = "script-1"
USAGE: Final = Usage(input_tokens=100, output_tokens=20)
PRICES: Final = {f"{KIND}:{MODEL}": {"input": 3, "output": 15}}
"""USD per million tokens, for `CREWLOG_PRICES`."""
FINISHED: Final = "finished"
"""What every task says in the end."""
ANSWER_MICRO_USD: Final = 100 * 3 + 20 * 15
_SCRIPT: Final = re.compile(r'"objective":"([a-z+ ]+)"')


class Item(BaseModel):
    """Which call of the script this is."""

    item: str


class Script:
    """A model that calls the tools its task's script names, turn by turn."""

    wire, provider, name, simulated = "openai.chat", KIND, MODEL, False

    async def complete(self, request: ModelRequest, *, timeout_s: float, on_text: OnText | None = None) -> ModelReply:  # noqa: ARG002  (the port)
        """Answer with the calls of the next turn, and charge for it."""
        opening = request.messages[0].content[0]
        assert isinstance(opening, Text)
        script = _SCRIPT.search(opening.text)
        assert script is not None, "a chaos task brings a script"
        turn = sum(message.role == "assistant" for message in request.messages)
        await asyncio.sleep((20 + zlib.crc32(f"{script[1]}/{turn}".encode()) % 60) / 1000)
        await tell(os.environ[SINK], Bill(ANSWER_MICRO_USD))
        tools = script[1].split()[turn].split("+")
        calls = [ToolUse(f"call-{turn}-{n}", tool, f'{{"item":"{turn}-{n}"}}') for n, tool in enumerate(tools)]
        return ModelReply(tuple(calls), "tool_use", USAGE, self.name)

    async def close(self) -> None:
        """Nothing to close."""


def _tool(name: str, effect: SinkEffect, description: str) -> ToolSpec:
    async def run(context: ToolContext, args: Item) -> ToolOutput:
        await tell(os.environ[SINK], Effect(context.idempotency_key, f"{context.task.task_id}/{name}/{args.item}", effect))
        return ToolOutput(f"{name} {args.item}: done")

    return ToolSpec(name, description, Item, run, effect=effect, trust="trusted")


async def _finish(_: ToolContext, __: Item) -> ToolOutput:
    return ToolOutput(FINISHED, outcome=Outcome(FINISHED))


AGENT: Final = AgentSpec(
    kind=KIND,
    description="Does what its script says while processes are killed around it.",
    instructions="Call the tools that the objective names.",
    tools=(
        _tool("stamp", "idempotent", "An effect that its receiver carries out once for each key."),
        _tool("send", "irreversible", "An effect that nobody can take back or recognise."),
        ToolSpec("finish", "End the task.", Item, _finish, effect="read", trust="trusted", ends_task=True),
    ),
    may_escalate=False,
)

if __name__ == "__main__":
    log_to_stderr()
    asyncio.run(run_worker(with_login(load(), KIND), AGENT, model=Script()))
