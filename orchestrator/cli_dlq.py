"""Commands about dead letters, messages that nobody could handle: dlq list, show, redrive, drop."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Final

import typer

from crewlog.orchestrator.cli_options import HomeOption, OutputOption
from crewlog.orchestrator.cli_output import Exit, Output, confirm, load_config, plain, print_json, print_rows, printable, run_async, say

if TYPE_CHECKING:
    from datetime import datetime

    from crewlog.orchestrator.client import Client
    from crewlog.orchestrator.client_letters import LetterView, Redriven

REASON_COLUMN_CHARS: Final = 60
PROGRESS_EVERY: Final = 50
"""Letters between two words of progress."""

SequencesArgument = Annotated[list[int] | None, typer.Argument(metavar="[SEQ]…", help="Letters by their number, as `dlq list` prints it.", show_default=False)]
KindOption = Annotated[str, typer.Option("--kind", help="All letters of this kind of agent.")]
FingerprintOption = Annotated[str, typer.Option("--fingerprint", help="All letters that met the same error.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    dlq = typer.Typer(help="Messages that no worker could handle; their tasks have failed.", no_args_is_help=True)
    dlq.command("list")(run_async(list_letters))
    dlq.command("show")(run_async(show_letter))
    dlq.command("redrive")(run_async(redrive_letters))
    dlq.command("drop")(run_async(drop_letters))
    app.add_typer(dlq, name="dlq")


async def list_letters(
    kind: KindOption = "",
    fingerprint: FingerprintOption = "",
    home: HomeOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List dead letters, the oldest first, with why and how often they were handed out."""
    from datetime import UTC, datetime

    from crewlog.events.clock import SystemClock
    from crewlog.orchestrator.client import Client

    async with Client.connect(load_config(home)) as client:
        found = [letter async for letter in client.letters.all(kind=kind, fingerprint=fingerprint)]
    if output is Output.JSON:
        print_json([plain(letter) for letter in found])
        return
    now = datetime.fromtimestamp(SystemClock().now_us() / 1e6, UTC)
    columns = {name.upper(): name for name in ("seq", "kind", "task", "run", "deliveries", "age", "fingerprint", "reason")}
    print_rows([_row(letter, now) for letter in found], columns, output, empty="there are no dead letters", right=frozenset({"SEQ", "DELIVERIES", "AGE"}))


async def show_letter(
    sequence: Annotated[int, typer.Argument(metavar="SEQ", help="A letter by its number, as `dlq list` prints it.")],
    home: HomeOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show one dead letter: why it is there, its headers, and its body on stdout."""
    from crewlog.orchestrator.client import Client

    async with Client.connect(load_config(home)) as client:
        found = await client.letters.show(sequence)
    body = found.body.decode(errors="replace")
    if output is Output.JSON:
        print_json({**plain(found.letter), "subject": found.subject, "headers": dict(found.headers), "body": body})
        return
    for name, value in sorted(found.headers.items()):
        say(f"{printable(name)}: {printable(value)}")
    say(f"fingerprint: {found.letter.fingerprint}")
    typer.echo(printable(body))


async def redrive_letters(
    sequences: SequencesArgument = None,
    kind: KindOption = "",
    fingerprint: FingerprintOption = "",
    home: HomeOption = None,
    output: OutputOption = Output.TABLE,
) -> int:
    """Publish tasks of dead letters again; one that has ended is said to have, and nothing is done."""
    from crewlog.orchestrator.client import Client

    done: list[Redriven] = []
    async with Client.connect(load_config(home)) as client:
        chosen = await _chosen(client, sequences, kind, fingerprint)
        for sequence in chosen:
            redriven = await client.letters.redrive(sequence)
            done.append(redriven)
            if output is Output.TABLE:
                say(f"letter {sequence}: {redriven.status}" + (f"; {redriven.detail}" if redriven.detail else ""))
            _progress(len(done), len(chosen))
    if output is Output.JSON:
        print_json([plain(redriven) for redriven in done])
    elif len(done) != 1:
        counts = Counter(redriven.status for redriven in done)
        say(", ".join(f"{count} {status}" for status, count in counts.items()) or "there are no such letters")
    return Exit.CONFLICT if done and all(redriven.status != "published" for redriven in done) else Exit.OK


async def drop_letters(
    sequences: SequencesArgument = None,
    kind: KindOption = "",
    fingerprint: FingerprintOption = "",
    yes: YesOption = False,
    home: HomeOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Delete dead letters for good; the log keeps why their tasks failed."""
    from crewlog.orchestrator.client import Client

    dropped: list[int] = []
    async with Client.connect(load_config(home)) as client:
        chosen = await _chosen(client, sequences, kind, fingerprint)
        if not sequences and chosen:
            confirm(f"delete {len(chosen)} dead letters?", yes=yes)
        for count, sequence in enumerate(chosen, 1):
            if await client.letters.drop(sequence):
                dropped.append(sequence)
            _progress(count, len(chosen))
    if sequences and not dropped:
        from crewlog.schemas.errors import NotFound

        raise NotFound("dead letter", ", ".join(map(str, sequences)))
    if output is Output.JSON:
        print_json({"dropped": dropped})
    else:
        say(f"{len(dropped)} dropped")


async def _chosen(client: Client, sequences: list[int] | None, kind: str, fingerprint: str) -> list[int]:
    """Return the letters a command is about: those named, or all of a kind or an error. Read before the first is touched.

    Raises:
        ContractError: neither is given, or both.
    """
    from crewlog.schemas.errors import ContractError

    if bool(sequences) == bool(kind or fingerprint):
        raise ContractError("name letters by their numbers, or choose them with --kind or --fingerprint\nsee them with: crewlog dlq list")
    return sequences or [letter.sequence async for letter in client.letters.all(kind=kind, fingerprint=fingerprint)]


def _progress(done: int, of: int) -> None:
    if of > PROGRESS_EVERY and done % PROGRESS_EVERY == 0:
        say(f"{done} of {of}")


def _row(letter: LetterView, now: datetime) -> dict[str, object]:
    from crewlog.orchestrator.cli_run import elapsed
    from crewlog.schemas.text import shorten

    return {
        "seq": letter.sequence,
        "kind": letter.kind,
        "task": str(letter.task_id or "-")[:8],
        "run": str(letter.run_id or "-")[:8],
        "deliveries": letter.deliveries,
        "age": elapsed(letter.kept_at, now),
        "fingerprint": letter.fingerprint,
        "reason": shorten(letter.reason, REASON_COLUMN_CHARS),
    }
