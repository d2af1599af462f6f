"""Agents: the turn machine, the worker around it, tools, the built-in kinds and the model adapters."""

from crewlog.agents.spec import AgentSpec, Requirement, ToolContext, ToolFailed, ToolOutput, ToolSpec

__all__ = ["AgentSpec", "Requirement", "ToolContext", "ToolFailed", "ToolOutput", "ToolSpec"]
