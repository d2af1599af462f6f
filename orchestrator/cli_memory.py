"""Commands about memory: what agents remember for users and the tenant, and having it forgotten."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer

from crewlog.orchestrator.cli_options import HomeOption, OutputOption
from crewlog.orchestrator.cli_output import Output, load_config, plain, print_json, print_rows, printable, run_async, say

if TYPE_CHECKING:
    from crewlog.orchestrator.client import Client
    from crewlog.projections.query_rows import MemoryView

EVERYBODY: Final = "@"
"""In place of a user's name: what the whole tenant shares. No user can be called so."""
CANDIDATES_MAX: Final = 10

MemoryArgument = Annotated[str, typer.Argument(metavar="ID", help="Id of the memory, or its first characters.")]
WhoseOption = Annotated[str | None, typer.Option("--for", metavar="USER", help="Whose it is, when several have the same; @ for what the tenant shares.")]
UserOption = Annotated[str | None, typer.Option("--user", help="Only what this user is reminded of: their own, and what the tenant shares.")]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    memory = typer.Typer(help="What agents remember for users and the tenant.", no_args_is_help=True)
    memory.command("list")(run_async(list_memories))
    memory.command("show")(run_async(show_memory))
    memory.command("forget")(run_async(forget_memory))
    app.add_typer(memory, name="memory")


async def list_memories(
    user: UserOption = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="At most this many, the latest first.")] = 100,
    home: HomeOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List what is remembered in the tenant."""
    from crewlog.orchestrator.client import Client
    from crewlog.schemas.text import shorten

    config = load_config(home)
    async with Client.connect(config) as client:
        found = await client.queries().memories(config.tenant, user=user, limit=limit)
    if output is Output.JSON:
        print_json([plain(memory) for memory in found])
        return
    rows = [
        {
            "id": m.content[:12],
            "for": m.user_name or "everybody",
            "trust": m.trust,
            "by": m.kind,
            "day": m.remembered_at.date(),
            "memory": shorten(f"{m.about}: {m.memory}" if m.about else m.memory, 90),
        }
        for m in found
    ]
    print_rows(rows, {name.upper(): name for name in ("id", "for", "trust", "by", "day", "memory")}, output, empty="nothing is remembered")


async def show_memory(memory: MemoryArgument, whose: WhoseOption = None, home: HomeOption = None, output: OutputOption = Output.TABLE) -> None:
    """Show one memory: its text, whom it is for, and which task noted it."""
    from crewlog.orchestrator.client import Client

    config = load_config(home)
    async with Client.connect(config) as client:
        found = await _find(client, config.tenant, whose, memory)
    if output is Output.JSON:
        print_json(plain(found))
        return
    typer.echo(printable(found.memory))
    for name, value in (
        ("id", found.content),
        ("for", found.user_name or "everybody of the tenant"),
        ("about", found.about),
        ("trust", found.trust),
        ("noted", f"{found.remembered_at:%Y-%m-%d %H:%M:%S} UTC by {found.kind}, run {found.run_id}"),
    ):
        say(f"{name:<6} {printable(value)}")


async def forget_memory(
    memory: MemoryArgument,
    whose: WhoseOption = None,
    reason: Annotated[str, typer.Option("--reason", help="Recorded in the log.")] = "",
    actor: Annotated[str, typer.Option("--as", metavar="NAME", help="Who wants it; else CREWLOG_USER.")] = "",
    home: HomeOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Have one memory forgotten: it is recalled no more. The log keeps that it was there."""
    from crewlog.events.clock import SystemClock
    from crewlog.events.store import AppendRequest, Write
    from crewlog.orchestrator.client import Client
    from crewlog.schemas.ids import Hash, memory_stream
    from crewlog.schemas.system_events import MemoryForgotten

    config, clock = load_config(home), SystemClock()
    async with Client.connect(config) as client:
        found = await _find(client, config.tenant, whose, memory)
        user, content = found.user_name or "", Hash(found.content)
        event = MemoryForgotten(found.tenant, user, content, actor or config.user, reason)
        write = Write(memory_stream(found.tenant, user, content), [event])
        appended = await (await client.store()).append(AppendRequest([write], [clock.new_id()], clock.now_us()))
        await client.indexed(appended.positions[0], "memories")
    if output is Output.JSON:
        print_json({"content": found.content, "user_name": found.user_name, "status": "forgotten"})
    else:
        say(f"forgotten: {printable(found.memory)}")


async def _find(client: Client, tenant: str, whose: str | None, prefix: str) -> MemoryView:
    from crewlog.schemas.errors import NotFound

    begun = await client.queries().memories(tenant, prefix=prefix.lower()) if prefix else []
    found = begun if whose is None else [m for m in begun if (m.user_name or EVERYBODY) == whose]
    if len(found) != 1:
        raise NotFound("memory", prefix, candidates=tuple(f"{m.content[:12]} --for {m.user_name or EVERYBODY}" for m in found[:CANDIDATES_MAX]))
    return found[0]
