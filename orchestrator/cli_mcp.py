"""Commands about MCP servers: what their tools are pinned to, and what the servers say of them now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from crewlog.orchestrator.cli_options import HomeOption, OutputOption
from crewlog.orchestrator.cli_output import Output, hush, load_config, print_json, print_rows, run_async, say

if TYPE_CHECKING:
    from crewlog.agents.mcp_pins import Pin
    from crewlog.events.config import Config

COLUMNS = {"SERVER": "server", "TOOL": "tool", "STATE": "state", "PINNED": "pinned", "NOW": "now", "KINDS": "kinds"}


def register(app: typer.Typer) -> None:
    """Add these commands."""
    mcp = typer.Typer(help="Tools of MCP servers: what is pinned, and what has changed.", no_args_is_help=True)
    mcp.command("list")(run_async(list_tools))
    mcp.command("show")(run_async(show_tool))
    app.add_typer(mcp, name="mcp")


async def list_tools(home: HomeOption = None, output: OutputOption = Output.TABLE) -> None:
    """List the tools of the configured servers: pinned, new, changed (not called until accepted), or gone."""
    config = load_config(home)
    tools, problems = await _look(config)
    rows = [{key: row[key] for key in COLUMNS.values()} for row in tools]
    print_rows(rows, COLUMNS, output, empty="no tools; servers are tables [mcp.NAME] in crewlog.toml")
    for problem in problems:
        say(problem)


async def show_tool(
    server: Annotated[str, typer.Argument(help="Name of the server, as configured.")],
    tool: Annotated[str, typer.Argument(help="Name of the tool, as the server gives it.")],
    home: HomeOption = None,
) -> None:
    """Print one tool's definition as it is pinned and as the server gives it now, as JSON. Read it before you accept it."""
    from crewlog.schemas.errors import NotFound

    tools, problems = await _look(load_config(home))
    found = next((row for row in tools if (row["server"], row["tool"]) == (server, tool)), None)
    if found is None:
        raise NotFound("MCP tool", f"{server} {tool}") if not problems else NotFound("MCP tool", f"{server} {tool} ({'; '.join(problems)})")
    print_json({key: found[key] for key in ("server", "tool", "state", "pinned_definition", "definition_now")})
    if found["state"] == "changed":
        say(f'to use it as it is now: accept = ["{found["now"]}"] under [mcp.{server}]')


async def _look(config: Config) -> tuple[list[dict[str, Any]], list[str]]:
    """Compare pins with what the servers say now. Nothing is pinned by looking."""
    from importlib.util import find_spec

    from crewlog.events.clock import SystemClock
    from crewlog.events.memory_store import MemoryStore
    from crewlog.orchestrator.client import Client
    from crewlog.schemas.errors import ConfigError

    if find_spec("mcp") is None:
        raise ConfigError("the library for MCP is missing", hint="pip install 'crewlog[mcp]'")
    from crewlog.agents.mcp_hub import McpHub
    from crewlog.agents.mcp_pins import read_pins

    async with Client.connect(config) as client:
        store = await client.store()
        pins = {name: (await read_pins(store, name))[0] for name in config.mcp}
    hush("crewlog.agents")
    hub = McpHub(config.mcp, MemoryStore(), SystemClock())
    try:
        await hub.start()
        now, problems = hub.definitions(), list(hub.problems())
    finally:
        await hub.stop()
    rows = []
    for name, settings in sorted(config.mcp.items()):
        for tool in sorted({*pins[name], *now[name]}):
            row = _row(pins[name].get(tool), now[name].get(tool))
            rows.append({"server": name, "tool": tool, "kinds": ", ".join(settings.kinds), **row})
    return rows, problems


def _row(pinned: Pin | None, now: Pin | None) -> dict[str, Any]:
    from crewlog.agents.mcp_pins import DIGEST_SHOWN

    state = "new" if pinned is None else "not listed" if now is None else "pinned" if pinned.digest == now.digest else "changed"
    return {
        "state": state,
        "pinned": pinned.digest[:DIGEST_SHOWN] if pinned else "",
        "now": now.digest[:DIGEST_SHOWN] if now else "",
        "pinned_definition": _plain(pinned),
        "definition_now": _plain(now),
    }


def _plain(pin: Pin | None) -> Any:
    import msgspec

    return msgspec.to_builtins(pin.definition) if pin else None
