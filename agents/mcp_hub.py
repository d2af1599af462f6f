"""The MCP servers of one worker: their connections, what their tools are pinned to, and these tools as tools of an agent.

A server that is down keeps its tools: they are offered as pinned, and calling one says what is wrong. So what an agent can do does not
depend on the moment in which its task began, and a server that comes back is used at once. One that was never there has no tools yet: the tasks that
begin without them are told so, and the worker registers again once it has them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

from crewlog.agents.json_args import JsonSchemaArgs
from crewlog.agents.mcp_connection import CLOSE_TIMEOUT_S, REFRESH_S, McpConnection, NotConnected, ServerFailed
from crewlog.agents.mcp_pins import DIGEST_SHOWN, Definition, Found, Pin, Pins, examine, keep_pins, read_pins, tool_name
from crewlog.agents.mcp_results import to_output
from crewlog.agents.spec import ToolContext, ToolFailed, ToolOutcomeUnknown, ToolOutput, ToolSpec, ToolUnavailable
from crewlog.events.clock import Clock
from crewlog.events.config_mcp import McpServer
from crewlog.events.store import EventStore
from crewlog.schemas.text import shorten

log = logging.getLogger(__name__)

START_WAIT_S: Final = 15.0
"""How long a worker waits for its servers before it takes up work; one that needs longer joins later."""
DESCRIPTION_CHARS_MAX: Final = 4_000
RETRIES: Final = 2


class _Server:
    """One server and what is known of its tools."""

    def __init__(self, name: str, settings: McpServer, store: EventStore, clock: Clock, refresh_s: float) -> None:
        self.name, self.settings = name, settings
        self.connection = McpConnection(name, settings, self._listed, clock=clock, refresh_s=refresh_s)
        self.pins: Pins = {}
        self.found: Found | None = None
        self._store, self._clock = store, clock
        self._specs: dict[tuple[str, str], ToolSpec] = {}

    async def load(self) -> None:
        self.pins, _ = await read_pins(self._store, self.name)

    async def _listed(self, definitions: Sequence[Definition]) -> None:
        found = examine(definitions, self.settings.tools)
        before = self.problems()
        self.pins = await keep_pins(self._store, self._clock, self.name, found, self.settings.accept)
        self.found = found
        for problem in self.problems():
            if problem not in before:
                log.warning("%s", problem)

    def problems(self) -> list[str]:
        """Say what an operator should know."""
        problems = [f"MCP server {self.name}: {self.connection.problem}"] if self.connection.problem else []
        if self.found is not None:
            problems += [f"MCP server {self.name}: tool {tool} is not used: {why}" for tool, why in self.found.refused.items()]
            problems += [obstacle for tool in self.found.tools if (obstacle := self.obstacle(tool))]
        return problems

    def obstacle(self, tool: str) -> str:
        """Return why a tool may not be called although its server can be reached, or nothing."""
        if self.found is None:
            return ""
        now, pinned = self.found.tools.get(tool), self.pins.get(tool)
        if now is None or pinned is None:
            return f"MCP server {self.name} does not offer {tool} any more: {self.found.refused.get(tool, 'it no longer lists it')}"
        if now.digest == pinned.digest:
            return ""
        old, new = pinned.digest[:DIGEST_SHOWN], now.digest[:DIGEST_SHOWN]
        return (
            f"MCP server {self.name} changed its tool {tool} since it was first seen (from {old} to {new}), so it is not called. "
            f'When the operator has looked at the new definition, accept = ["{new}"] under [mcp.{self.name}] allows it (crewlog mcp show {self.name} {tool})'
        )

    def specs(self) -> list[ToolSpec]:
        """Return its tools as they are pinned: those it lists now, or, as long as it was not reached, all that are wanted."""
        names = self.pins if self.found is None else (name for name in self.pins if name in self.found.tools)
        return [self._spec(self.pins[name]) for name in names if not self.settings.tools or name in self.settings.tools]

    def _spec(self, pin: Pin) -> ToolSpec:
        tool = pin.definition.name
        if (tool, pin.digest) not in self._specs:
            rule = self.settings.rule(tool)
            assert rule.effect is not None
            assert rule.needs_approval is not None
            self._specs[tool, pin.digest] = ToolSpec(
                name=tool_name(self.name, tool),
                description=shorten(f"[{tool} of the MCP server {self.name}] {pin.definition.description}".strip(), DESCRIPTION_CHARS_MAX),
                args=JsonSchemaArgs(pin.definition.parameters),
                run=partial(self._call, tool),
                effect=rule.effect,
                trust="untrusted",
                needs_approval=rule.needs_approval,
                # the connection's own limit comes first, and says more
                timeout_s=self.settings.timeout_s + 3 * CLOSE_TIMEOUT_S,
                version=pin.digest[:DIGEST_SHOWN],
                calls_max=rule.calls_max,
                implementation=f"mcp {self.name}",
                # a server that was restarted is there again after a moment
                retries=RETRIES,
                server=self.name,
            )
        return self._specs[tool, pin.digest]

    def lacking(self) -> str:
        """Say why nobody knows any of its tools, or nothing. As soon as one was listed, calls say what is wrong."""
        if self.found is not None or self.specs():
            return ""
        return f"The tools of the MCP server {self.name} are not there: {self.connection.problem}"

    async def _call(self, tool: str, context: ToolContext, arguments: dict[str, Any]) -> ToolOutput:
        if obstacle := self.obstacle(tool):
            raise ToolFailed(obstacle)
        try:
            result = await self.connection.call(tool, arguments, key=context.idempotency_key)
        except NotConnected as error:
            raise ToolUnavailable(str(error)) from error
        except ServerFailed as error:
            raise ToolOutcomeUnknown(str(error)) from error
        return await to_output(result, context, tool_name(self.name, tool))


class McpHub:
    """All servers of a worker.

    Args:
        servers: settings by name.
        store: where pins are kept.
        refresh_s: how often tools are listed again, in seconds.
    """

    def __init__(self, servers: Mapping[str, McpServer], store: EventStore, clock: Clock, *, refresh_s: float = REFRESH_S) -> None:
        self._servers = [_Server(name, settings, store, clock, refresh_s) for name, settings in sorted(servers.items())]

    async def start(self, *, wait_s: float = START_WAIT_S) -> None:
        """Read the pins, begin to connect, and give each server `wait_s` seconds to be there.

        Raises:
            Unavailable: the log cannot be reached.
        """
        await asyncio.gather(*(server.load() for server in self._servers))
        for server in self._servers:
            server.connection.start()
        waiting = [asyncio.create_task(server.connection.settled()) for server in self._servers]
        late: set[asyncio.Task[None]] = set()
        if waiting:
            _, late = await asyncio.wait(waiting, timeout=wait_s)
        for task in late:
            task.cancel()

    async def stop(self) -> None:
        """Close all connections and end the servers that were started. Safe to call twice."""
        await asyncio.gather(*(server.connection.stop() for server in self._servers))

    def tools(self) -> tuple[ToolSpec, ...]:
        """Return the tools of all servers as they are now."""
        return tuple(spec for server in self._servers for spec in server.specs())

    def lacking(self) -> tuple[str, ...]:
        """Return what is said of servers that were never there."""
        return tuple(said for server in self._servers if (said := server.lacking()))

    def definitions(self) -> dict[str, Pins]:
        """Return what each server lists now; nothing for one that was not reached."""
        return {server.name: server.found.tools if server.found else {} for server in self._servers}

    def problems(self) -> tuple[str, ...]:
        """Return what an operator should know about the servers now."""
        return tuple(problem for server in self._servers for problem in server.problems())
