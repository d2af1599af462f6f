"""`crewlog prune`: delete texts and files that nothing in the log refers to any more, such as those of runs that went to an archive."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from crewlog.orchestrator.cli_options import HomeOption, OutputOption
from crewlog.orchestrator.cli_output import Exit, Output, confirm, load_config, print_json, run_async, say


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(run_async(prune))


async def prune(
    unused_for: Annotated[str, typer.Option("--unused-for", metavar="AGE", help="Only what nobody stored again for so long: at least 1d.")] = "1d",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say how much would go.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    home: HomeOption = None,
    output: OutputOption = Output.TABLE,
) -> int:
    """Delete texts and files that nothing in the log refers to: what archived runs alone had. What is shared with other runs stays.

    Reads the whole log. Safe beside a crew at work: whoever needs a text or file stores it again, which keeps it for another day.
    """
    from crewlog.events.artifact_store import open_artifacts
    from crewlog.events.clock import SystemClock
    from crewlog.events.personal_store import personal_log
    from crewlog.events.postgres_store import PostgresStore
    from crewlog.events.prune import is_used, mentioned, prune_blobs, unused_blobs
    from crewlog.events.verify import open_connections
    from crewlog.orchestrator.cli_files import age_s
    from crewlog.orchestrator.endpoints import database_url
    from crewlog.schemas.errors import ContractError

    config, clock, age = load_config(home), SystemClock(), age_s("--unused-for", unused_for)
    if age < timedelta(days=1).total_seconds():
        raise ContractError(f"--unused-for {unused_for}: what was stored within the last day may be about to be referred to; write 1d or more")
    before = datetime.fromtimestamp(clock.now_us() / 1e6, UTC) - timedelta(seconds=age + 1)
    artifacts = await open_artifacts(config.artifacts_url or config.home / "artifacts")
    address = database_url(config, "archivist")
    connections = open_connections(address, clock, name="prune")
    try:
        log_store = await PostgresStore.open(address, actor=f"archivist@{config.user}", clock=clock, lanes=1)
        try:
            used = await mentioned(connections, await personal_log(log_store, config, clock, works=True))
        finally:
            await log_store.close()
        texts = await unused_blobs(connections, used, before)
        files = [(hash_, size) for hash_, size in await artifacts.untouched(before) if not is_used(hash_, used)]
        found = {"texts": len(texts), "files": len(files), "file_bytes": sum(size for _, size in files)}
        if not dry_run and (texts or files):
            confirm(f"delete {len(texts)} texts and {len(files)} files that nothing in the log refers to?", yes=yes)
            found |= {"texts": (await prune_blobs(connections, texts, before)).blobs}
            for hash_, _ in files:
                await artifacts.delete(hash_)
    finally:
        await connections.close()
    if output is Output.JSON:
        print_json({**found, "deleted": not dry_run})
    else:
        say(f"{found['texts']} texts and {found['files']} files of {found['file_bytes']} bytes {'would go' if dry_run else 'are deleted'}")
    return Exit.OK
