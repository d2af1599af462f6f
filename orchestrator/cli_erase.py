"""The command that erases a person's data: erase."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from crewlog.orchestrator.cli_options import HomeOption, OutputOption
from crewlog.orchestrator.cli_output import Exit, Output, complain, confirm, load_config, print_json, run_async, say

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from crewlog.orchestrator.client import Client
    from crewlog.orchestrator.erasure import Erased, Found


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(run_async(erase))


async def erase(
    user: Annotated[str, typer.Argument(metavar="USER", help="Whose data: the `user` of runs.", show_default=False)],
    tenant: Annotated[str | None, typer.Option("--tenant", help="Of which tenant; else CREWLOG_TENANT.")] = None,
    terminate: Annotated[bool, typer.Option("--terminate", help="End runs of the user that are still under way first.")] = False,
    reason: Annotated[str, typer.Option("--reason", help="Why; recorded with it for good, so name nobody.")] = "",
    actor: Annotated[str, typer.Option("--as", metavar="NAME", help="Who wants it; else CREWLOG_USER.")] = "",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    home: HomeOption = None,
    output: OutputOption = Output.TABLE,
) -> int:
    """Destroy the keys under which what was said in a user's runs is stored, and delete their files.

    Nothing brings it back. The log stays as it is and verifies: ids, times, money and states are left. Runs that were recorded while
    CREWLOG_PERSON_KEYS was off have no key: they stay readable and are named, with what to do, and the command ends with code 1.
    """
    from crewlog.events.clock import SystemClock
    from crewlog.events.personal_store import Person
    from crewlog.events.postgres_store import PostgresStore
    from crewlog.orchestrator.client import Client
    from crewlog.orchestrator.endpoints import database_url
    from crewlog.orchestrator.erasure import Eraser, end_runs, find, refuse_hindrances

    config = load_config(home)
    person, actor = Person(tenant or config.tenant, user), actor or config.user
    async with Client.connect(config) as client:
        store = await PostgresStore.open(database_url(config, "archivist"), actor=f"archivist@{config.user}", clock=SystemClock(), lanes=1)
        try:
            found = await find(store, client.queries(), person)
            if found.keys or found.open_runs:
                confirm(f"erase {_what(found)} of {user} (tenant {person.tenant}) for good?", yes=yes)
            if terminate and found.open_runs:
                await end_runs(client, found, actor=actor)
                found = await find(store, client.queries(), person)
            refuse_hindrances(found)
            eraser = Eraser(store, store.person_keys, await client.artifact_store(), client.queries(), SystemClock())
            done = await eraser.erase(found, actor=actor, reason=reason)
        finally:
            await store.close()
        letters = await _drop_letters(client, [use.key.key_id for use in (*found.keys, *found.gone)])
        if done.position:
            await client.indexed(done.position, "runs")
    if output is Output.JSON:
        told = {name: value for name, value in done._asdict().items() if name != "person"}
        print_json({"tenant": person.tenant, "user_name": person.name, **told, "letters": letters})
    else:
        _print(done, letters)
    return _judge(done)


def _what(found: Found) -> str:
    under_way = f" and {len(found.open_runs)} that are under way" if found.open_runs else ""
    return f"what was said in {len(found.keys)} runs and schedules{under_way}"


async def _drop_letters(client: Client, run_ids: Sequence[UUID]) -> int:
    """Delete dead letters of these runs: they hold tasks as they were sent."""
    own = frozenset(run_ids)
    going = [letter.sequence async for letter in client.letters.all() if letter.run_id in own] if own else []
    return sum([await client.letters.drop(sequence) for sequence in going])


def _print(done: Erased, letters: int) -> None:
    from crewlog.orchestrator.run_history import erased_text
    from crewlog.schemas.text import counted

    name, tenant = done.person.name, done.person.tenant
    besides = ", ".join(
        (
            counted(done.files, "file"),
            counted(done.documents, "document"),
            f"{done.memories} {'memory' if done.memories == 1 else 'memories'}",
            counted(letters, "dead letter"),
        )
    )
    if done.keys:
        keys = f"{counted(done.keys, 'key')} of {counted(done.runs, 'run')}, {counted(done.blobs, 'large text')}"
        typer.echo(f"erased {name} (tenant {tenant}): {keys}, {besides}")
    elif done.erased_us:
        left = f"what an interrupted command had left went now: {besides}"
        is_more = done.files or done.documents or done.memories or letters
        say(f"{name} (tenant {tenant}): {erased_text(done.erased_us)}; {left if is_more else 'nothing else was left to erase'}")
    for file in done.archived:
        say(f"one of these runs was archived to {file}: what was written under a key opens no more; delete the file if it was written without")


def _judge(done: Erased) -> int:
    if not done.in_clear:
        return Exit.OK
    from crewlog.orchestrator.erasure import NAMED_MAX

    (tenant, name), runs = done.person, done.in_clear
    more = f" and {len(runs) - NAMED_MAX} more, see crewlog runs --user {name} --trials" if len(runs) > NAMED_MAX else ""
    complain(
        f"not erased: {len(runs)} {'run' if len(runs) == 1 else 'runs'} of {name} (tenant {tenant}) in the clear, under no key that could be destroyed: "
        f"{', '.join(map(str, runs[:NAMED_MAX]))}{more}",
        why="recorded while CREWLOG_PERSON_KEYS was off, or imported",
        next_step=f"take them out: crewlog archive --user {name} --tenant {tenant} --older-than 0s --without-files --out FOLDER, delete FOLDER, "
        "and a day later crewlog prune (their goals stay in crewlog.archives); runs get a key from when the crew is started with CREWLOG_PERSON_KEYS=on",
    )
    return Exit.RUN_FAILED
