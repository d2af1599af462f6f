"""What a tool of an MCP server is held to: its definition at first sight, until the operator accepts another.

A server can describe a tool as harmless until it is trusted, and as something else afterwards. So the first description is pinned in the
log, in `mcp/<server>`, and whatever the server says later is compared with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from crewlog.agents.json_args import JsonSchemaArgs, strings_in
from crewlog.events.clock import Clock
from crewlog.events.store import NO_STREAM, AppendRequest, EventStore, Write
from crewlog.schemas.errors import ConflictError, ContractError
from crewlog.schemas.ids import Hash, mcp_stream
from crewlog.schemas.payload import content_hash
from crewlog.schemas.system_events import McpToolPinned
from crewlog.schemas.text import find_bad, shorten

TOOLS_MAX: Final = 128
DEFINITION_BYTES_MAX: Final = 32 * 1024
NAME_CHARS_MAX: Final = 64
TRIES_MAX: Final = 5
DIGEST_SHOWN: Final = 12

_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_-]+")


class Definition(msgspec.Struct, frozen=True):
    """A tool as its server describes it."""

    name: str
    description: str
    parameters: dict[str, Any]

    def encoded(self) -> bytes:
        """Return the bytes whose hash is the pin."""
        return msgspec.json.encode(self, order="deterministic")


class Pin(NamedTuple):
    """What one tool is held to."""

    digest: Hash
    definition: Definition


Pins = Mapping[str, Pin]
"""Pins of one server by the names it gives its tools."""


class Found(NamedTuple):
    """What a server lists now: the tools that can be used at all, and why others cannot."""

    tools: Mapping[str, Pin]
    refused: Mapping[str, str]


def tool_name(server: str, tool: str) -> str:
    """Return the name under which a model knows a tool; one that had to be altered ends in a digest, so that no two become one.

    >>> tool_name("files", "read_file"), tool_name("files", "read.file")
    ('files__read_file', 'files__read-file-dd32cdf5')
    """
    plain = _UNSAFE.sub("-", tool)
    name = f"{server}__{plain}"
    if plain == tool and len(name) <= NAME_CHARS_MAX:
        return name
    return f"{name[: NAME_CHARS_MAX - 9]}-{content_hash(tool.encode())[:8]}"


def examine(definitions: Iterable[Definition], allowed: Sequence[str]) -> Found:
    """Sort what a server lists into what can be used and what cannot.

    Args:
        allowed: names of tools the operator wants; empty means all.
    """
    tools: dict[str, Pin] = {}
    refused: dict[str, str] = {}
    for definition in definitions:
        name = definition.name
        if allowed and name not in allowed:
            continue
        problem = _problem(definition) or ("the server lists it twice" if name in tools else "")
        if problem or len(tools) >= TOOLS_MAX:
            refused[shorten(name, NAME_CHARS_MAX)] = problem or f"the server lists more than {TOOLS_MAX} tools; name those you want in `tools`"
        else:
            tools[name] = Pin(content_hash(definition.encoded()), definition)
    refused |= {name: "the server does not list it" for name in allowed if name not in tools and name not in refused}
    return Found(tools, refused)


def _problem(definition: Definition) -> str:
    """Return why a definition cannot be used, or nothing."""
    try:
        size = len(definition.encoded())
        if size > DEFINITION_BYTES_MAX:
            return f"its definition has {size} bytes, at most {DEFINITION_BYTES_MAX} are taken"
        if any(find_bad(text) is not None for text in (definition.name, definition.description, *strings_in(definition.parameters))):
            return "its definition holds NUL or a lone surrogate"
        JsonSchemaArgs(definition.parameters)
    except ContractError as error:
        return error.message
    except (RecursionError, UnicodeEncodeError, msgspec.MsgspecError) as error:
        return f"its definition cannot be read: {type(error).__name__}"
    return ""


def to_pin(server: str, found: Found, pins: Pins, accept: Sequence[str]) -> list[McpToolPinned]:
    """Decide what is pinned now: tools nobody has seen, and changes the operator accepts. Pure."""
    events = []
    for name, pin in found.tools.items():
        known = pins.get(name)
        is_change = known is not None and known.digest != pin.digest
        if known is None or (is_change and accepts(accept, pin.digest)):
            events.append(McpToolPinned(server, name, pin.digest, msgspec.Raw(pin.definition.encoded()), accepted=is_change))
    return events


def accepts(accept: Sequence[str], digest: str) -> bool:
    """Tell whether the operator accepts a definition."""
    return any(digest.startswith(prefix) for prefix in accept)


async def read_pins(store: EventStore, server: str) -> tuple[dict[str, Pin], int]:
    """Fold a server's stream; returns its pins and the version of the stream, `NO_STREAM` when nobody wrote to it."""
    pins: dict[str, Pin] = {}
    version = NO_STREAM
    for recorded in await store.read_streams({mcp_stream(server): 0}):
        event = recorded.event()
        version = recorded.version
        if isinstance(event, McpToolPinned):
            pins[event.tool] = Pin(event.digest, msgspec.json.decode(event.definition, type=Definition))
    return pins, version


async def keep_pins(store: EventStore, clock: Clock, server: str, found: Found, accept: Sequence[str]) -> Pins:
    """Pin what is new in the log, and return what holds now. Of several workers that see a tool first, one pins it.

    Raises:
        ConflictError: others won every try.
        Unavailable: the log cannot be reached.
    """
    conflict: ConflictError | None = None
    for _ in range(TRIES_MAX):
        pins, version = await read_pins(store, server)
        events = to_pin(server, found, pins, accept)
        if not events:
            return pins
        request = AppendRequest([Write(mcp_stream(server), events, expected=version)], [clock.new_id() for _ in events], clock.now_us())
        try:
            await store.append(request)
        except ConflictError as error:
            # another worker pinned something meanwhile: what it saw first holds
            conflict = error
        else:
            return pins | {event.tool: found.tools[event.tool] for event in events}
    assert conflict is not None
    raise conflict
