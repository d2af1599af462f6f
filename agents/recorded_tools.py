"""Tools that are elsewhere when a recording is played: those of MCP servers and of the web, as the tasks of the recording were offered them.

What they answer is in the recording. None of them can run here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from crewlog.agents.json_args import JsonSchemaArgs
from crewlog.agents.setup import Setup, SetupTool
from crewlog.agents.spec import ArgsModel, ToolContext, ToolFailed, ToolOutput, ToolSpec
from crewlog.agents.web_pages import FetchUrl
from crewlog.agents.web_search import WebSearch

WEB: Final[Mapping[str, ArgsModel]] = {"web_search": WebSearch, "fetch_url": FetchUrl}
"""Tools of the research agent that it has where the operator allows them, and their arguments."""


def recorded_tools(setups: Iterable[Setup], kind: str) -> tuple[tuple[ToolSpec, ...], tuple[ToolSpec, ...]]:
    """Return the tools of servers, and those for the web, that tasks of a kind began with.

    Args:
        setups: of the recording, in its order: of a tool that changed meanwhile the last one is offered.
    """
    tools = {tool.definition.name: tool for setup in setups if setup.kind == kind for tool in setup.tools}
    web = (tool for name, tool in tools.items() if kind == "research" and name in WEB)
    return tuple(_spec(tool) for tool in tools.values() if tool.server), tuple(map(_spec, web))


def _spec(tool: SetupTool) -> ToolSpec:
    name, origin = tool.definition.name, f"a tool of the MCP server {tool.server}" if tool.server else "a tool for the web"

    async def refuse(_: ToolContext, __: Any) -> ToolOutput:
        raise ToolFailed(f"{name} is {origin}, which no golden task reaches; with --tools recorded it answers as it did")

    return ToolSpec(
        name=name,
        description=tool.definition.description,
        args=JsonSchemaArgs(tool.definition.parameters) if tool.server else WEB[name],
        run=refuse,
        effect=tool.effect,
        trust=tool.trust,
        needs_approval=tool.needs_approval,
        version=tool.version,
        calls_max=tool.calls_max,
        refusals_max=tool.refusals_max,
        server=tool.server,
    )
