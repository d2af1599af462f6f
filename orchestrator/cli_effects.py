"""Commands about what runs did to the world: effects, rollback."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from crewlog.orchestrator.cli_options import HomeOption, OutputOption
from crewlog.orchestrator.cli_output import Exit, Output, load_config, plain, print_json, print_lines, print_rows, run_async, say

if TYPE_CHECKING:
    from crewlog.orchestrator.client_effects import RollbackResult

RESOURCE_COLUMN_CHARS = 60
LISTED_MAX = 1_000
"""Effects that are listed at once."""


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command("effects")(run_async(list_effects))
    app.command("rollback")(run_async(roll_back))


async def list_effects(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Of this run: an id, its first characters, or - for the newest.", show_default=False)] = "",
    open_only: Annotated[bool, typer.Option("--open", help="Only what is still there and can be taken back, or may have happened.")] = False,
    home: HomeOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List what tool calls did to the world, and what of it is still to be cleaned up."""
    from crewlog.orchestrator.cli_run import short_time
    from crewlog.orchestrator.client import Client
    from crewlog.schemas.text import shorten

    async with Client.connect(load_config(home)) as client:
        listed = await client.effects.all(await client.find_run(run) if run else None, open_only=open_only, limit=LISTED_MAX + 1)
    found = listed[-LISTED_MAX:]
    if len(listed) > LISTED_MAX:
        say(f"there are more: these are the latest {LISTED_MAX}; name a run, or ask the view effects with crewlog sql")
    if output is Output.JSON:
        print_json([plain(effect) for effect in found])
        return
    rows: list[dict[str, object]] = [
        {
            "run": str(effect.run_id)[:8],
            "task": effect.key or str(effect.task_id)[:8],
            "tool": effect.tool,
            "effect": effect.effect,
            "status": effect.status if effect.undone_in is None else f"undone by {str(effect.undone_in)[:8]}",
            "open": "yes" if effect.is_open else "",
            "began": short_time(effect.started_at),
            "undo": effect.compensation.tool if effect.compensation is not None else "",
            "resource": shorten(effect.resource or "", RESOURCE_COLUMN_CHARS),
        }
        for effect in found
    ]
    empty = "nothing is left to be cleaned up" if open_only else "no tool call did more than read"
    print_rows(rows, {name.upper(): name for name in ("run", "task", "tool", "effect", "status", "open", "began", "undo", "resource")}, output, empty=empty)


async def roll_back(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run that has ended: an id, its first characters, or - for the newest.")],
    reason: Annotated[str, typer.Option("--reason", help="Why; recorded with the rollback.")],
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is done.")] = True,
    actor: Annotated[str, typer.Option("--as", metavar="NAME", help="Who wants it; else CREWLOG_USER.")] = "",
    home: HomeOption = None,
    output: OutputOption = Output.TABLE,
) -> int:
    """Take back what a run that has ended did, and what came of it, the last effect first.

    Effects of runs that its tasks submitted are among them. What cannot be taken back is listed.

    It is a run of its own and goes on by itself: to see it later, use crewlog show.
    """
    from crewlog.orchestrator.client import Client
    from crewlog.schemas.text import counted

    async with Client.connect(load_config(home)) as client:
        begun = await client.effects.roll_back(await client.find_run(run), reason=reason, actor=actor)
        if output is Output.TABLE:
            again = " (it was on its way already)" if begun.status == "duplicate" else ""
            behind = f", {begun.more} more behind them" if begun.more else ""
            short = str(begun.run_id)[:8]
            say(f"rollback {short}: {counted(begun.orders, 'effect')} to take back, {begun.left} that cannot be{behind}{again}")
            if wait and begun.orders:
                say(f"it waits for agents, pauses and quarantines like any run; should it not end: crewlog why {short}")
        if not wait:
            if output is Output.JSON:
                print_json(plain(begun))
            return Exit.OK
        ended = await client.wait(begun.run_id)
        result = await client.effects.result(begun.run_id)
        text = await client.answer(ended)
    assert result is not None  # `roll_back` named it
    if output is Output.JSON:
        print_json({"rollback_id": str(begun.run_id), "status": ended.status, **plain(result)})
    else:
        print_lines([text or f"the rollback is {ended.status}: {ended.error}"])
    return Exit.OK if ended.status == "completed" and not _is_left(result) else Exit.RUN_FAILED


def _is_left(result: RollbackResult) -> bool:
    return bool(result.failed or result.left or result.more)
