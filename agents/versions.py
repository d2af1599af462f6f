"""Which workers may carry a task on while agents of several versions are up side by side.

A task that is for one version (`Trial.version_of`) is carried out by that one alone. Any other task may be carried on by every worker that has the
tools it began with, in their versions: a later agent keeps those. A worker that has not lets the orchestrator hand it on to one of the version that
the task began under. Is none of those there, it goes on here, and the model is told which tools are gone.
"""

from __future__ import annotations

from typing import Final

import msgspec

from crewlog.agents.escalation import ESCALATE_TOOL
from crewlog.agents.recall import READ_CONTEXT_TOOL, RECALL_TOOL
from crewlog.agents.setup import Setup
from crewlog.agents.spec import AgentSpec
from crewlog.agents.task_state import TaskState
from crewlog.agents.toolbox import Toolbox, toolbox
from crewlog.events.store import EventStore
from crewlog.schemas.ids import Hash
from crewlog.schemas.task import AgentTask

SETUPS_MAX: Final = 64
"""Setups that a worker remembers: most tasks of a kind share one."""


def tools_of(spec: AgentSpec, task: AgentTask) -> Toolbox:
    """Return what carries out the calls of a task: the agent's own tools, and those that every agent has."""
    return toolbox((ESCALATE_TOOL, READ_CONTEXT_TOOL, RECALL_TOOL, *spec.tools_for(task)))


class Versions:
    """Compares what one worker has with what tasks need."""

    def __init__(self, spec: AgentSpec, store: EventStore, *, moves_tasks: bool) -> None:
        """Prepare.

        Args:
            moves_tasks: tasks go on with the tools that are here, but for what is under way.
        """
        self._spec, self._store, self._moves_tasks = spec, store, moves_tasks
        self._setups: dict[Hash, Setup] = {}

    def refused(self, task: AgentTask) -> str:
        """Return the version that a task is for, when that is another one; else nothing."""
        wanted = "" if task.trial is None else task.trial.version_of(task.type)
        return "" if wanted == self._spec.version else wanted

    async def better(self, state: TaskState) -> str:
        """Return the version that a task began under, when tools of it that it needs are not here; else nothing.

        Raises:
            Unavailable: the log cannot be reached.
        """
        setup = await self._setup(state)
        if setup is None or state.task is None or setup.version == self._spec.version:
            return ""
        here = tools_of(self._spec, state.task)
        open_calls = {call.call.tool for call in state.calls if call.status != "done"}
        needed = [tool for tool in setup.tools if not self._moves_tasks or tool.definition.name in open_calls]
        return "" if all(here.find(tool.definition.name, tool.version) is not None for tool in needed) else setup.version

    async def _setup(self, state: TaskState) -> Setup | None:
        """Read what a task began with; None when it has not begun, or that is missing, which whoever carries it on will find."""
        ref = None if state.setup is None else state.setup.ref
        if ref is not None and ref not in self._setups:
            if len(self._setups) >= SETUPS_MAX:
                self._setups.clear()
            for found in (await self._store.get_blobs([ref])).values():
                self._setups[ref] = msgspec.json.decode(found, type=Setup)
        return None if ref is None else self._setups.get(ref)
