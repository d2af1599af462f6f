"""Commands about what was done to the log behind crewlog's back: seal, verify."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from crewlog.orchestrator.cli_options import HomeOption, OutputOption
from crewlog.orchestrator.cli_output import Exit, Output, complain, load_config, print_json, run_async, say

if TYPE_CHECKING:
    from crewlog.events.connections import Connections
    from crewlog.events.seals import SealMark
    from crewlog.events.verify import Progress, Verified

SHOWN_MAX: Final = 20
"""Places that are printed for people; JSON has all of them."""


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(run_async(seal))
    app.command()(run_async(verify))


async def seal(home: HomeOption = None, output: OutputOption = Output.TABLE) -> int:
    """Seal the log up to now and print the newest seal.

    Keep it somewhere else: `verify --against` then also finds a log that was cut or rewritten and sealed anew.
    """
    from crewlog.events.verify import newest_seal
    from crewlog.events.verify import seal as make_seal

    async with _opened(home, "seal") as connections:
        while await make_seal(connections):
            pass
        newest = await newest_seal(connections)
    if output is Output.JSON:
        print_json({"seal": str(newest) if newest else None})
    elif newest is None:
        say("the log is empty: there is nothing to seal")
    else:
        typer.echo(str(newest))
    return Exit.OK


async def verify(
    against: Annotated[str, typer.Option("--against", metavar="SEAL|FILE", help="A seal that was kept elsewhere, or a file that holds it.")] = "",
    blobs: Annotated[bool, typer.Option("--blobs", "--from-scratch", help="Also read every blob and compare it with its name.")] = False,
    home: HomeOption = None,
    output: OutputOption = Output.TABLE,
) -> int:
    """Compare every event of the log with its seal, and say where it was changed.

    Finds what was changed, removed, added or reordered behind crewlog's back. What is not sealed yet is compared with the versions of its streams.
    Who removes the newest seals with what they cover, or seals a changed log anew, is found by --against alone: keep what `crewlog seal` prints
    somewhere else. Ends with code 1 when something was found.
    """
    from crewlog.events.verify import verify as verify_log
    from crewlog.events.verify import verify_blobs

    mark = _mark(against) if against else None
    async with _opened(home, "verify") as connections:
        found = await verify_log(connections, against=mark, progress=_progress(output))
        spoiled = await verify_blobs(connections) if blobs else None
    if output is Output.JSON:
        print_json(_as_json(found, spoiled))
    else:
        _print(found, spoiled, mark)
    return Exit.RUN_FAILED if found.faults or spoiled else Exit.OK


def _as_json(found: Verified, spoiled: list[str] | None) -> dict[str, object]:
    places = [{"kind": f.kind, "position": f.position, "stream": f.stream, "version": f.version, "detail": f.detail} for f in found.faults]
    newest = str(found.newest) if found.newest else None
    return {**found._asdict(), "newest": newest, "archived": [run._asdict() for run in found.archived], "faults": places, "spoiled_blobs": spoiled}


def _print(found: Verified, spoiled: list[str] | None, mark: SealMark | None) -> None:
    from crewlog.schemas.text import counted

    typer.echo(f"{found.events} events under {counted(found.seals, 'seal')}, up to position {found.position}; {found.unsealed} behind them are not sealed yet")
    for run in found.archived[:SHOWN_MAX]:
        typer.echo(f"archived: run {run.run_id}, {run.events} events between positions {run.first} and {run.last}: {run.file} ({run.sha256[:12]}…)")
    if len(found.archived) > SHOWN_MAX:
        typer.echo(f"and {len(found.archived) - SHOWN_MAX} more archived runs: -o json lists them")
    for fault in found.faults[:SHOWN_MAX]:
        typer.echo(str(fault))
    if len(found.faults) > SHOWN_MAX:
        typer.echo(f"and {len(found.faults) - SHOWN_MAX} more: -o json lists them")
    for hash_ in (spoiled or [])[:SHOWN_MAX]:
        typer.echo(f"spoiled blob: {hash_} is stored with other bytes")
    if found.faults or spoiled:
        complain("the log is not what was sealed", next_step=_what_to_do(found))
        return
    blobs = "" if spoiled is None else ", and every blob is what its name says"
    if found.newest is None:
        say(f"nothing is sealed: only the versions of streams were compared, and they hold{blobs}. Seal the log with: crewlog seal")
        return
    say(f"nothing was changed{blobs}{how_sure(found, mark)}. Newest seal, to be kept elsewhere: {found.newest}")


def how_sure(found: Verified, mark: SealMark | None) -> str:
    """Say how far that reaches: whoever seals a log anew deceives its own seals, behind the last one that was kept elsewhere."""
    if mark is None:
        return ", as far as this log tells; one that was cut or sealed anew shows --against a kept seal"
    behind = "" if found.vouched_position == found.position else f"; behind position {found.vouched_position} as far as this log tells"
    return f"; it is the log of seal {mark.number}{behind}"


def _what_to_do(found: Verified) -> str:
    """Say how to find what was changed. That a log was sealed anew is all that it says itself."""
    copy = "a backup, or with the copy in the NATS stream EVENTS"
    if all(fault.kind == "other log" for fault in found.faults):
        return f"try older seals that were kept: up to the last that holds, nothing was changed. Then compare what follows (export --as ndjson) with {copy}"
    return f"compare it with {copy}"


def _mark(given: str) -> SealMark:
    from crewlog.events.seals import parse_mark

    return parse_mark(Path(given).read_text(encoding="utf-8") if Path(given).is_file() else given)


def _progress(output: Output) -> Progress:
    last = [-1]

    def tell(at: int, of: int) -> None:
        tenth = at * 10 // max(of, 1)
        if output is Output.TABLE and tenth > last[0] >= 0:
            say(f"position {at} of {of}")
        last[0] = tenth

    return tell


@asynccontextmanager
async def _opened(home: Path | None, name: str) -> AsyncIterator[Connections]:
    from crewlog.events.clock import SystemClock
    from crewlog.events.verify import open_connections
    from crewlog.orchestrator.endpoints import database_url

    connections = open_connections(database_url(load_config(home), "operator"), SystemClock(), name=name)
    try:
        yield connections
    finally:
        await connections.close()
