"""Agents: the turn machine, the worker around it, tools, the built-in kinds and the model adapters."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crewlog.agents.spec import AgentSpec, Probed, Requirement, ToolContext, ToolFailed, ToolOutcomeUnknown, ToolOutput, ToolSpec, Undo

__all__ = ["AgentSpec", "Probed", "Requirement", "ToolContext", "ToolFailed", "ToolOutcomeUnknown", "ToolOutput", "ToolSpec", "Undo"]


def __getattr__(name: str) -> Any:
    # imported when it is used: whoever looks at a recorded task needs no tools
    if name in __all__:
        from crewlog.agents import spec

        return getattr(spec, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
