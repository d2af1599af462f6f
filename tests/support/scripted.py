"""A model that says what the test wrote down, and tools that record their calls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict

from crewlog.agents.model import ModelError, OnText
from crewlog.agents.spec import AgentSpec, ToolContext, ToolFailed, ToolOutput, ToolSpec
from crewlog.schemas.blocks import ModelReply, ModelRequest, Text, ToolUse
from crewlog.schemas.effects import Effect
from crewlog.schemas.usage import Usage
from crewlog.schemas.values import Outcome

Line = ModelReply | ModelError | Callable[[ModelRequest], ModelReply]


def calls(*uses: tuple[str, str], text: str = "") -> ModelReply:
    """A reply that asks for tools, each as (name, JSON arguments)."""
    said = (Text(text),) if text else ()
    return ModelReply((*said, *(ToolUse(f"x{n}", name, arguments) for n, (name, arguments) in enumerate(uses))), "tool_use", Usage(10, 5), "script-1")


def says(text: str) -> ModelReply:
    """A reply in plain text."""
    return ModelReply((Text(text),), "end_turn", Usage(10, 5), "script-1")


@dataclass
class ScriptedModel:
    """Answers call n with line n; asking for more than was written is a failure of the test."""

    lines: list[Line]
    requests: list[ModelRequest] = field(default_factory=list)
    wire: str = "offline"
    provider: str = "offline"
    name: str = "script-1"
    simulated: bool = True

    async def complete(self, request: ModelRequest, *, timeout_s: float, on_text: OnText | None = None) -> ModelReply:
        self.requests.append(request)
        line = self.lines[len(self.requests) - 1]
        if isinstance(line, ModelError):
            raise line
        return line if isinstance(line, ModelReply) else line(request)


class Say(BaseModel):
    """Arguments of every test tool."""

    model_config = ConfigDict(extra="forbid")

    text: str


@dataclass
class Recorder:
    """Tools of every effect class that note what they were called with. `gate` holds calls back until it is set."""

    calls: list[tuple[str, str, str]] = field(default_factory=list)
    """(tool, text, idempotency key)"""
    entered: asyncio.Event = field(default_factory=asyncio.Event)
    gate: asyncio.Event | None = None
    counts: bool = False
    """Each result says which call it is the result of, as results of the same call differ in time."""

    def tool(self, name: str, effect: Effect = "read", *, needs_approval: bool = False, ends_task: bool = False, calls_max: int | None = None) -> ToolSpec:
        async def run(context: ToolContext, args: Say) -> ToolOutput:
            self.calls.append((name, args.text, context.idempotency_key))
            self.entered.set()
            if self.gate is not None:
                await self.gate.wait()
            if args.text == "fail":
                raise ToolFailed("it does not work")
            if args.text == "crash":
                raise ZeroDivisionError("a bug")
            which = f" in call {len(self.calls)}" if self.counts else ""
            return ToolOutput(f"{name} says {args.text}{which}", outcome=Outcome(args.text) if ends_task else None)

        return ToolSpec(
            name, name, Say, run, effect=effect, trust="trusted", needs_approval=needs_approval, ends_task=ends_task, timeout_s=5, calls_max=calls_max
        )

    def agent(self, kind: str = "data") -> AgentSpec:
        tools = (
            self.tool("look"),
            self.tool("put", "idempotent"),
            self.tool("send", "irreversible"),
            self.tool("mail", "irreversible", needs_approval=True),
            self.tool("once", calls_max=1),
            self.tool("submit", ends_task=True),
        )
        return AgentSpec(kind, "test agent", "Do what you are told.", tools)
