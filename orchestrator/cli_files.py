"""Commands that take runs from files into the log and from the log into files: import, archive."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer

from crewlog.orchestrator.cli_options import HomeOption, OutputOption
from crewlog.orchestrator.cli_output import Exit, Output, complain, confirm, load_config, print_json, run_async, say

if TYPE_CHECKING:
    from crewlog.events.artifacts import ArtifactStore
    from crewlog.events.config import Config
    from crewlog.events.connections import Connections
    from crewlog.orchestrator.client import Client
    from crewlog.orchestrator.run_archive import Archived
    from crewlog.projections.query_rows import RunView

AGE: Final = re.compile(r"(\d{1,6})([smhdw])")
AGE_S_MAX: Final = 100 * 365 * 86_400
_UNIT_S: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command("import")(run_async(import_run))
    app.command()(run_async(archive))


async def import_run(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `crewlog export` or `crewlog archive` wrote.", show_default=False)],
    unverified: Annotated[bool, typer.Option("--unverified", help="Take also a run whose decisions do not follow from each other.")] = False,
    home: HomeOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Read a run of another crew, or an archived one, into the log: to be looked at, never carried out.

    It keeps its ids, versions and times, is marked as imported (view crewlog.imports), and replays here as it did there. No key is needed. What a
    fork shares with its parent comes with it, unless the log has that already; the file of the parent completes it.
    """
    from crewlog.events.clock import SystemClock
    from crewlog.events.kek import kek_source
    from crewlog.events.personal_store import PersonalStore
    from crewlog.events.postgres_store import PostgresStore
    from crewlog.orchestrator.archived_files import restore_files
    from crewlog.orchestrator.bundle import unpack_bundle
    from crewlog.orchestrator.client import Client
    from crewlog.orchestrator.run_import import import_run as import_bundle
    from crewlog.orchestrator.run_import import is_here, marker_of
    from crewlog.schemas.payload import content_hash

    data = file.read_bytes()
    bundle, config = unpack_bundle(data, str(file)), load_config(home)
    marker = marker_of(bundle, file=file.name, sha256=content_hash(data), actor=config.user)
    async with Client.connect(config) as client, _connections(config, "operator") as connections:
        store = await client.store()
        if any(recorded.erased_us for recorded in bundle.events) and not isinstance(store, PersonalStore):
            assert isinstance(store, PostgresStore)
            store = PersonalStore(store, kek_source(config.person_kek, config.home), SystemClock(), gives_keys=False)
        if bundle.files and await is_here(store, bundle):
            restored = await restore_files(await client.artifact_store(), bundle, file.parent)
            say(f"run {bundle.run_id} is in this log already; put {restored.put} files that it read and made into the store")
            nothing: dict[str, Any] = {"events": 0, "blobs": 0, "position": None, "state_hash": None, "beginnings": []}
            same = {"run_id": str(bundle.run_id), **nothing, "files": restored.put, "files_missing": restored.missing}
            print_json(same) if output is Output.JSON else typer.echo(str(bundle.run_id))
            return
        done = await import_bundle(store, connections, bundle, marker, SystemClock(), verify=not unverified)
        restored = await restore_files(await client.artifact_store(), bundle, file.parent)
    if output is Output.JSON:
        told = {"run_id": done.run_id, "events": done.events, "blobs": done.blobs, "position": done.position, "state_hash": done.report.state_hash}
        print_json({**told, "beginnings": [str(run) for run in done.beginnings], "files": restored.put, "files_missing": restored.missing})
    else:
        typer.echo(str(done.run_id))
        for parent in done.beginnings:
            say(f"imported what the fork shares of run {parent}; the file of that run, once imported, completes it")
        say(f"imported {done.events} events and {done.blobs} blobs at position {done.position}; it replays to the state that it had there")
        if restored.put:
            say(f"put {restored.put} files that it read and made into the store; save what it made: crewlog show {str(done.run_id)[:8]} --save FOLDER")
        if restored.missing:
            say(f"{restored.missing} files that it refers to came neither in {file.name} nor beside it: its texts can be looked at, those cannot be opened")


async def archive(
    older_than: Annotated[str, typer.Option("--older-than", metavar="AGE", help="Runs that ended longer ago than this: 90d, 12h, 0s.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the files, one for each run.")],
    tenant: Annotated[str | None, typer.Option("--tenant", help="Runs of this tenant alone.")] = None,
    user: Annotated[str | None, typer.Option("--user", help="Runs of this user alone.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Most runs to archive.")] = 1_000,
    without_files: Annotated[bool, typer.Option("--without-files", help="Keep texts alone, not the files that runs read and made.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say which runs would go.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    home: HomeOption = None,
    output: OutputOption = Output.TABLE,
) -> int:
    """Move runs that are over from the log into files.

    A run leaves the log only when its file was read back and replays to the same state. Its place in the log stays sealed, and `verify` names
    what is archived. The files that runs read and made lie in the folder files beside them. Look at an archive as at a run: `crewlog replay FILE`,
    `crewlog show FILE --as tree`; `crewlog import FILE` brings it back. Ends with code 1 when a run had to stay.
    """
    from crewlog.orchestrator.client import Client

    config = load_config(home)
    async with Client.connect(config) as client, _connections(config, "archivist") as connections:
        runs = await _old_runs(client, older_than, tenant, user, limit)
        if output is Output.TABLE:
            say(f"{len(runs)} runs ended more than {older_than} ago")
        if dry_run:
            names = [str(run.run_id) for run in runs]
            print_json(names) if output is Output.JSON else typer.echo("\n".join(names))
            return Exit.OK
        if runs:
            confirm(f"move {len(runs)} runs from the log into files in {out}?", yes=yes)
        left = await _finish_interrupted(config, connections, out)
        artifacts = None if without_files else await client.artifact_store()
        done, stayed = await _archive_each(config, connections, runs, out, artifacts)
        stayed += left
    if output is Output.JSON:
        print_json({"archived": [{**one._asdict(), "file": str(one.file)} for one in done], "stayed": stayed})
    elif done:
        say(f"{len(done)} runs are in {out} now: {sum(one.events for one in done)} events left the log, {sum(one.size for one in done)} bytes of files")
    return Exit.RUN_FAILED if stayed else Exit.OK


async def _old_runs(client: Client, older_than: str, tenant: str | None, user: str | None, limit: int) -> list[RunView]:
    from datetime import UTC, datetime, timedelta

    from crewlog.events.clock import SystemClock
    from crewlog.orchestrator.run_archive import finished_before

    cutoff = datetime.fromtimestamp(SystemClock().now_us() / 1e6, UTC) - timedelta(seconds=age_s("--older-than", older_than))
    found: list[RunView] = []
    async for run in finished_before(client.queries(), cutoff, tenant=tenant, user=user):
        found.append(run)
        if len(found) == limit:
            break
    return found


async def _finish_interrupted(config: Config, connections: Connections, out: Path) -> list[str]:
    """Seal what is to go, and let go what an interrupted command had announced, as far as its file is there; returns what stays."""
    from crewlog.events.run_files import half_archived
    from crewlog.events.verify import seal
    from crewlog.orchestrator.run_archive import finish_announced
    from crewlog.schemas.errors import ContractError

    async with _connections(config, "operator") as sealing:
        while await seal(sealing):
            pass
    stayed: list[str] = []
    for announced in await half_archived(connections):
        try:
            events = await finish_announced(connections, announced, out)
        except ContractError as error:
            complain(f"run {announced.run_id} stays in the log, although its file was announced before", why=str(error))
            stayed.append(str(announced.run_id))
        else:
            say(f"run {announced.run_id}: its file was announced before, its {events} events left the log now")
    return stayed


async def _archive_each(
    config: Config, connections: Connections, runs: list[RunView], out: Path, artifacts: ArtifactStore | None
) -> tuple[list[Archived], list[str]]:
    from crewlog.events.clock import SystemClock
    from crewlog.events.personal_store import personal_log
    from crewlog.events.postgres_store import PostgresStore
    from crewlog.orchestrator.endpoints import database_url
    from crewlog.orchestrator.run_archive import LeftAlready, archive_run
    from crewlog.schemas.errors import ContractError

    done: list[Archived] = []
    stayed: list[str] = []
    _make(out)
    log_store = await PostgresStore.open(database_url(config, "archivist"), actor=f"archivist@{config.user}", clock=SystemClock(), lanes=1)
    try:
        store = await personal_log(log_store, config, SystemClock())
        for run in runs:
            try:
                done.append(await archive_run(store, connections, run, out, artifacts=artifacts, actor=config.user, clock=SystemClock()))
            except LeftAlready as error:
                say(str(error))
            except ContractError as error:
                complain(f"run {run.run_id} stays in the log", why=str(error))
                stayed.append(str(run.run_id))
    finally:
        await log_store.close()
    return done, stayed


def _make(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)


@asynccontextmanager
async def _connections(config: Config, role: Literal["operator", "archivist"]) -> AsyncIterator[Connections]:
    from crewlog.events.clock import SystemClock
    from crewlog.events.verify import open_connections
    from crewlog.orchestrator.endpoints import database_url

    connections = open_connections(database_url(config, role), SystemClock(), name=role)
    try:
        yield connections
    finally:
        await connections.close()


def age_s(option: str, text: str) -> int:
    """Read an age as people write it, in seconds: 90d, 12h, 30m, 0s, 2w.

    Raises:
        ContractError: it is none.
    """
    from crewlog.schemas.errors import ContractError

    found = AGE.fullmatch(text)
    if found is None:
        raise ContractError(f"{option} {text}: write a number and a unit, such as 90d, 12h or 2w")
    age = int(found[1]) * _UNIT_S[found[2]]
    if age > AGE_S_MAX:
        raise ContractError(f"{option} {text}: that is longer ago than anything in a log; at most {AGE_S_MAX // _UNIT_S['d']}d")
    return age
