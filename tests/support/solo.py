"""One task carried out in this process: a real specialist with its real tools, driven by a model as the worker drives it, without log or bus."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from support.toolbox import Bench

from crewlog.agents.fresh_setup import make_setup
from crewlog.agents.model import Model
from crewlog.agents.recall import READ_CONTEXT_TOOL
from crewlog.agents.setup import ContextMode, opening_message
from crewlog.agents.spec import AgentSpec, ToolOutput, ToolSpec
from crewlog.agents.tool_runner import arguments_problem, run_tool
from crewlog.agents.tool_ways import ToolHealth
from crewlog.events.clock import SystemClock
from crewlog.schemas.blocks import Message, ModelReply, ModelRequest, Text, ToolResult, ToolUse
from crewlog.schemas.values import Outcome


@dataclass
class Solo:
    """What happened: every reply, every tool call with its result, and the outcome."""

    outcome: Outcome | None = None
    text: str = ""
    replies: list[ModelReply] = field(default_factory=list)
    requests: list[ModelRequest] = field(default_factory=list)
    calls: list[tuple[str, str, str, bool]] = field(default_factory=list)
    """(tool, arguments, result, is_error)"""

    def used(self, tool: str) -> list[str]:
        """Return the arguments of each call of a tool."""
        return [arguments for name, arguments, _, _ in self.calls if name == tool]

    @property
    def result(self) -> Outcome:
        """The outcome; its absence is a failure of the test."""
        assert self.outcome is not None, f"no outcome; the model said {self.text!r} after {[(c[0], c[2][:300]) for c in self.calls]}"
        return self.outcome


async def carry_out(spec: AgentSpec, model: Model, at: Bench, *, deny: Sequence[str] = (), turns_max: int = 25, context: ContextMode = "inject") -> Solo:
    """Run a task to its end.

    Args:
        at: the bench that holds the task and its files.
        deny: tools that a person refuses.
        context: how it is given the outcomes of earlier tasks.
    """
    tools = spec.tools_for(at.task)
    setup, _ = make_setup(spec, tools, context)
    messages: list[Message] = [Message("user", (Text(opening_message(at.task, context)),))]
    solo = Solo()
    for _ in range(turns_max):
        request = ModelRequest(model.name, setup.system, setup.offered(is_compacted=False), tuple(messages), setup.max_tokens)
        reply = await model.complete(request, timeout_s=5)
        solo.replies.append(reply)
        solo.requests.append(request)
        messages.append(Message("assistant", reply.content))
        uses = [block for block in reply.content if isinstance(block, ToolUse)]
        if not uses:
            solo.text = " ".join(block.text for block in reply.content if isinstance(block, Text))
            return solo
        results = [await _run(use, {t.name: t for t in (*tools, READ_CONTEXT_TOOL)}, at, deny) for use in uses]
        for use, (output, is_ok) in zip(uses, results, strict=True):
            solo.calls.append((use.name, use.arguments, output.content, not is_ok))
            solo.outcome = output.outcome or solo.outcome
        messages.append(Message("user", tuple(ToolResult(u.call_id, u.name, o.content, not ok) for u, (o, ok) in zip(uses, results, strict=True))))
        if solo.outcome is not None:
            return solo
    return solo


async def _run(use: ToolUse, tools: Mapping[str, ToolSpec], at: Bench, deny: Sequence[str]) -> tuple[ToolOutput, bool]:
    spec = tools[use.name]
    if use.name in deny:
        return ToolOutput(f"{use.name} was not run: denied by ann: not now"), False
    if problem := arguments_problem(spec, use.arguments):
        return ToolOutput(problem), False
    context: Any = replace(at.context(), call_id=use.call_id)
    ran = await run_tool(spec, context, use.arguments, SystemClock(), ToolHealth())
    at.made += ran.output.artifacts
    return ran.output, ran.is_ok
