"""Agents: the turn machine, the worker around it, tools, the built-in kinds and the model adapters."""

from crewlog.agents.spec import AgentSpec, Probed, Requirement, ToolContext, ToolFailed, ToolOutcomeUnknown, ToolOutput, ToolSpec, Undo

__all__ = ["AgentSpec", "Probed", "Requirement", "ToolContext", "ToolFailed", "ToolOutcomeUnknown", "ToolOutput", "ToolSpec", "Undo"]
