"""The setup of a task that begins now, made of what its agent is today. One that was recorded is read without any of this, see `setup`."""

from __future__ import annotations

from functools import lru_cache

import msgspec

from crewlog.agents.escalation import ESCALATE_TOOL
from crewlog.agents.recall import READ_CONTEXT_TOOL, RECALL_TOOL
from crewlog.agents.setup import CONDUCT, CORRECTION_PROMPT, EMPTY_NUDGE, MAX_TOKENS, OUTPUT_PROMPT, REPEATS_MAX, WINDOW, ContextMode, Room, Setup, SetupTool
from crewlog.agents.spec import AgentSpec, ToolSpec


@lru_cache(maxsize=256)
def make_setup(
    spec: AgentSpec, tools: tuple[ToolSpec, ...], context: ContextMode = "inject", window: int = WINDOW, *, has_schema: bool = False
) -> tuple[Setup, str]:
    """Fix an agent's prompt and tool rules; returns them and their JSON. Most tasks of a kind share one, so it is made once.

    Args:
        tools: the agent's own; those that every agent has come behind them.
        has_schema: the task has an `output_schema`.
        window: tokens of a context window of which nobody knows the size.
    """
    ends = [t.name for t in tools if t.ends_task]
    names = {t.name for t in tools}
    more = (*((ESCALATE_TOOL,) if spec.may_escalate else ()), *((READ_CONTEXT_TOOL,) if context == "retrieve" else ()), RECALL_TOOL)
    added = [t for t in more if t.name not in names]
    setup = Setup(
        kind=spec.kind,
        version=spec.version,
        system=spec.instructions.strip() + "\n" + CONDUCT,
        tools=tuple(_setup_tool(t, is_late=t is RECALL_TOOL) for t in (*tools, *added)),
        max_tokens=MAX_TOKENS,
        nudge=f"Plain text does not finish this task. Finish it by calling {' or '.join(ends)}." if ends else "",
        repeats_max=REPEATS_MAX,
        room=Room(window=window),
        context=context,
        output_prompt=OUTPUT_PROMPT if has_schema else "",
        correction_prompt=CORRECTION_PROMPT if has_schema else "",
        empty_nudge="" if ends else EMPTY_NUDGE,
    )
    return setup, msgspec.json.encode(setup).decode()


def _setup_tool(tool: ToolSpec, *, is_late: bool) -> SetupTool:
    definition, approval, ends_task = tool.definition(), tool.needs_approval, tool.ends_task
    rules = (definition, tool.version, tool.effect, tool.trust, approval, ends_task, tool.calls_max, tool.refusals_max)
    has_probe, server = tool.probe is not None, tool.server
    return SetupTool(*rules, is_late=is_late, asks_person=tool.asks_person, is_contained=tool.is_contained, has_probe=has_probe, server=server)
