"""Look after effects: what a call asks for, how it is taken back, and what became of one whose outcome nobody recorded.

Probes and compensations run as tools do, with a tool's time and a tool's care for errors; who decides that they run is `tool_runner.judge`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from pydantic import BaseModel

from crewlog.agents.spec import Probed, ToolContext, ToolOutput, ToolSpec, Undo
from crewlog.agents.tool_runner import arguments_problem, run_tool
from crewlog.agents.tool_ways import ToolHealth
from crewlog.agents.toolbox import Toolbox
from crewlog.events.clock import Clock
from crewlog.schemas.effects import COMPENSATION_BYTES_MAX, Compensation, fingerprint
from crewlog.schemas.errors import ConfigError
from crewlog.schemas.ids import Hash
from crewlog.schemas.text import shorten


class Owner(msgspec.Struct, frozen=True):
    """Whose effects they are: part of what a fingerprint is made from."""

    tenant: str
    kind: str


def fingerprint_of(owner: Owner, spec: ToolSpec, arguments: str) -> Hash:
    """Name what a call asks for, whoever asks.

    All arguments take part, defaults filled in, except those that the tool declares as nonces.

    Args:
        arguments: valid JSON text of the call.
    """
    args = spec.args.model_validate_json(arguments or "{}")
    fields: Mapping[str, Any] = args.model_dump(mode="json") if isinstance(args, BaseModel) else args
    return fingerprint(owner.tenant, owner.kind, spec.name, {name: value for name, value in fields.items() if name not in spec.nonces})


def intended_compensation(owner: Owner, spec: ToolSpec, arguments: str, *, key: str, tools: Toolbox) -> Compensation | None:
    """Return how a call that is about to run can be taken back, as far as that can be said now.

    Raises:
        ConfigError: the tool names one that is not there, or cannot be called like that. Nothing has happened yet.
    """
    if spec.undo is None:
        return None
    undo = spec.undo(spec.args.model_validate_json(arguments or "{}"), key)
    compensation = compensation_of(owner, undo, tools)
    if not compensation.version:
        raise ConfigError(
            f"{spec.name} is taken back by {undo.tool!r}, which is no tool of its agent that may be repeated and takes {shorten(str(undo.arguments), 200)}",
            hint=f"give the agent that tool, and pass it the id of what was made: at most {COMPENSATION_BYTES_MAX} bytes of JSON",
        )
    return compensation


def compensation_of(owner: Owner, undo: Undo, tools: Toolbox) -> Compensation:
    """Write down how an effect is taken back. What cannot be called like that is kept, without a version, as the effect may be there already: it says
    at least what was made."""
    arguments = msgspec.json.encode(undo.arguments, order="sorted").decode()
    if len(arguments.encode()) > COMPENSATION_BYTES_MAX:
        return Compensation(undo.tool, "", "{}", undo.resource)
    spec = tools.latest(undo.tool)
    if spec is None or spec.effect != "idempotent" or arguments_problem(spec, arguments):
        return Compensation(undo.tool, "", arguments, undo.resource)
    return Compensation(undo.tool, spec.version, arguments, undo.resource, fingerprint_of(owner, spec, arguments))


async def probe_call(spec: ToolSpec, context: ToolContext, arguments: str, clock: Clock, health: ToolHealth) -> Probed:
    """Ask a tool's probe about a call; one that fails or takes too long knows nothing.

    Raises:
        Unavailable, ConflictError: the log itself failed.
    """
    probe, found = spec.probe, Probed("unknown")
    assert probe is not None

    async def look(context: ToolContext, args: Any) -> ToolOutput:
        nonlocal found
        found = await probe(context, args)
        return ToolOutput(found.content)

    looking = ToolSpec(
        spec.name, spec.description, spec.args, look, effect="read", timeout_s=spec.timeout_s, version=spec.version, implementation="probe", rate=spec.rate
    )
    ran = await run_tool(looking, context, arguments, clock, health)
    return found._replace(content=ran.output.content) if ran.is_ok else Probed("unknown", ran.output.content)
