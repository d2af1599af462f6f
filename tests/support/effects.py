"""An outside world in memory and tools of every effect class that act on it, each with or without a probe and a compensation."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from support.scripted import Recorder, Say

from crewlog.agents.spec import AgentSpec, Probed, ToolContext, ToolFailed, ToolOutcomeUnknown, ToolOutput, ToolSpec, Undo

Mode = Literal["answers", "done_and_silent", "lost", "hangs", "done_and_hangs", "breaks"]
"""What becomes of a request: an answer; done, but no answer comes; not done, and no answer comes; the worker never hears anything, whether it
was done or not; refused in the middle by a bug of the tool."""


@dataclass
class Outside:
    """What tools act on. A key does its work once, as receivers that know idempotency keys do."""

    mode: Mode = "answers"
    probes: bool = True
    """Off: a probe finds nothing out."""
    undo_fails: bool = False
    things: dict[str, str] = field(default_factory=dict)
    """Key -> what is there because of it."""
    arrivals: Counter[str] = field(default_factory=Counter)
    undone: list[tuple[str, str]] = field(default_factory=list)
    """(id of the thing, key) of every time something was taken back."""
    entered: asyncio.Event = field(default_factory=asyncio.Event)

    async def make(self, key: str, text: str) -> str:
        """Do something and return its id."""
        self.arrivals[key] += 1
        if self.mode not in ("lost", "hangs"):
            self.things[key] = text
        self.entered.set()
        match self.mode:
            case "hangs" | "done_and_hangs":
                await asyncio.Event().wait()
            case "lost" | "done_and_silent":
                raise ToolOutcomeUnknown("the connection broke")
            case "breaks":
                raise ZeroDivisionError("a bug")
            case "answers":
                pass
        return f"id-{key}"

    def tool(self, name: str, effect: Literal["compensable", "irreversible"], *, probe: bool = False, undo: Literal["", "intent", "outcome"] = "") -> ToolSpec:
        async def run(context: ToolContext, args: Say) -> ToolOutput:
            made = await self.make(context.idempotency_key, args.text)
            return ToolOutput(f"{name} did {args.text}", undo=_undo(made) if undo == "outcome" else None)

        async def look(context: ToolContext, _: Say) -> Probed:
            if not self.probes:
                raise ConnectionError("nobody answers")
            if context.idempotency_key not in self.things:
                return Probed("did_not_happen")
            return Probed("happened", f"{name} was found", _undo(f"id-{context.idempotency_key}") if undo == "outcome" else None)

        return ToolSpec(
            name,
            name,
            Say,
            run,
            effect=effect,
            trust="trusted",
            timeout_s=5,
            probe=look if probe else None,
            undo=(lambda _args, key: _undo(f"id-{key}")) if undo == "intent" else None,
        )

    def undoing(self) -> ToolSpec:
        async def run(context: ToolContext, args: Say) -> ToolOutput:
            if self.undo_fails:
                raise ToolFailed("it is in use")
            self.undone.append((args.text, context.idempotency_key))
            self.things.pop(args.text.removeprefix("id-"), None)
            return ToolOutput(f"{args.text} is gone")

        return ToolSpec("unmake", "unmake", Say, run, effect="idempotent", trust="trusted", undoes=True)

    def agent(self, kind: str = "data") -> AgentSpec:
        tools = (
            self.tool("book", "compensable", probe=True, undo="outcome"),
            self.tool("rent", "compensable", undo="intent"),
            self.tool("hire", "compensable", undo="outcome"),
            self.tool("pay", "irreversible", probe=True),
            self.tool("post", "irreversible"),
            self.undoing(),
            *(Recorder().tool(name, ends_task=name == "submit") for name in ("look", "submit")),
        )
        return AgentSpec(kind, "test agent", "Do what you are told.", tools)


def _undo(made: str) -> Undo:
    return Undo("unmake", {"text": made}, resource=made)
