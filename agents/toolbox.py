"""The tools of one task by name and version: what is offered to a new task, and what carries out a call of one that began earlier."""

from __future__ import annotations

from functools import lru_cache

from crewlog.agents.spec import ToolSpec
from crewlog.schemas.errors import ConfigError


class Toolbox:
    """Tools of a kind, several versions of the same name included. Later ones go before earlier ones of the same name.

    Raises:
        ConfigError: the same version of a tool is there twice.
    """

    def __init__(self, tools: tuple[ToolSpec, ...]) -> None:
        self._versions: dict[str, dict[str, ToolSpec]] = {}
        for tool in tools:
            versions = self._versions.setdefault(tool.name, {})
            if tool.version in versions:
                raise ConfigError(f"tool {tool.name!r} has version {tool.version!r} twice", hint="give each version of a tool a version of its own")
            versions[tool.version] = tool
        current = ([tool for tool in versions.values() if not (tool.retired or tool.undoes)] for versions in self._versions.values())
        self.offered = tuple(tools[-1] for tools in current if tools)
        """What a new task is offered: the last version of each tool that is not retired."""

    def find(self, name: str, version: str) -> ToolSpec | None:
        """Return what carries out calls of this version: itself, or a later one that says it serves them."""
        versions = self._versions.get(name, {})
        return versions.get(version) or next((tool for tool in reversed(versions.values()) if version in tool.serves), None)

    def latest(self, name: str) -> ToolSpec | None:
        """Return the last version of a tool, whether it is offered or not."""
        return next(reversed(self._versions.get(name, {}).values()), None)

    def versions(self, name: str) -> tuple[str, ...]:
        """Return the versions of a tool that are here."""
        return tuple(self._versions.get(name, ()))


@lru_cache(maxsize=64)
def toolbox(tools: tuple[ToolSpec, ...]) -> Toolbox:
    """Return the toolbox of these tools. Most tasks of a kind have the same ones."""
    return Toolbox(tools)
