"""A specialist whose tools stop at a gate that a test holds. Run as a process:  python -m support.gated_agent

The objective of a task is its script: the tools to call, turn by turn, as in `stamp send finish`.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from dataclasses import replace

from pydantic import BaseModel

from crewlog.agents import AgentSpec, Probed, ToolContext, ToolOutput, ToolSpec, Undo
from crewlog.agents.model import OnText
from crewlog.agents.process import run_worker
from crewlog.events.config import load
from crewlog.orchestrator.endpoints import with_login
from crewlog.schemas.blocks import ModelReply, ModelRequest, Text, ToolUse
from crewlog.schemas.effects import Effect
from crewlog.schemas.usage import Usage
from crewlog.schemas.values import Outcome

KIND = "gated"


class Nothing(BaseModel):
    """The tools take no arguments."""


class Script:
    """A model that calls the tools the objective names, one each turn."""

    wire, provider, name, simulated = "offline", "offline", "script-1", True

    async def complete(self, request: ModelRequest, *, timeout_s: float, on_text: OnText | None = None) -> ModelReply:
        opening = request.messages[0].content[0]
        assert isinstance(opening, Text)
        found = re.search(r'"objective":"([a-z_ ]+)"', opening.text)
        assert found is not None
        turn = sum(message.role == "assistant" for message in request.messages)
        return ModelReply((ToolUse("call", found[1].split()[turn], "{}"),), "tool_use", Usage(100, 20), self.name)

    async def close(self) -> None:
        """Nothing to close."""


async def at_the_gate(name: str, context: ToolContext) -> str:
    """Tell the test who calls, and return what it says when it says so."""
    reader, writer = await asyncio.open_unix_connection(os.environ["GATE"])
    call = {"tool": name, "task_id": str(context.task.task_id), "key": context.idempotency_key, "pid": os.getpid()}
    writer.write(json.dumps(call).encode() + b"\n")
    answer = await reader.readline()
    writer.close()
    if not answer:
        raise ConnectionError("the test has gone")
    return answer.decode().strip()


def gated(name: str, effect: Effect, *, probes: bool = False, undo: str = "", undoes: bool = False) -> ToolSpec:
    """Make a tool that tells the test who calls it, and returns when the test says so."""

    async def run(context: ToolContext, _: Nothing) -> ToolOutput:
        return ToolOutput(await at_the_gate(name, context))

    async def probe(context: ToolContext, _: Nothing) -> Probed:
        found = await at_the_gate(f"probe {name}", context)
        return Probed("happened" if found == "happened" else "did_not_happen", found)

    known = (lambda _args, key: Undo(undo, {}, resource=key)) if undo else None
    return ToolSpec(name, name, Nothing, run, effect=effect, trust="trusted", probe=probe if probes else None, undo=known, undoes=undoes)


async def finish(_: ToolContext, __: Nothing) -> ToolOutput:
    """End the task."""
    return ToolOutput("finished", outcome=Outcome(f"finished by version {VERSION}"))


def pay(version: str, *, retired: bool = False) -> ToolSpec:
    """Make one version of a tool that a person must allow."""

    async def run(_: ToolContext, __: Nothing) -> ToolOutput:
        return ToolOutput(f"paid by version {version}")

    return ToolSpec("pay", f"pay, {version}", Nothing, run, effect="irreversible", trust="trusted", needs_approval=True, version=version, retired=retired)


VERSION = os.environ.get("GATED_VERSION", "1")
"""A later one has another prompt and another version of `pay`, and still has the first one for tasks that began with it."""

AGENT = AgentSpec(
    kind=KIND,
    description="Does what the objective says, when the test lets it.",
    instructions="Call the tools that the objective names." + ("" if VERSION == "1" else f" This is version {VERSION}."),
    version=VERSION,
    tools=(
        *((pay("1"),) if VERSION == "1" else (pay("1", retired=True), pay(VERSION))),
        gated("look", "read"),
        gated("stamp", "idempotent"),
        gated("send", "irreversible"),
        gated("wire", "irreversible", probes=True),
        gated("book", "compensable", probes=True),
        gated("rent", "compensable", undo="leave"),
        gated("leave", "idempotent", undoes=True),
        ToolSpec("finish", "finish", Nothing, finish, effect="read", trust="trusted", ends_task=True),
    ),
)


async def run_gated() -> None:
    """Work until SIGTERM, under the kind that the environment names."""
    kind = os.environ.get("GATED_KIND", KIND)
    await run_worker(with_login(load(), kind), replace(AGENT, kind=kind), model=Script())


if __name__ == "__main__":
    asyncio.run(run_gated())
