"""`crewlog export`: a run, or the events of a tenant and a time, as files for other crews and other programs."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from enum import StrEnum
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from crewlog.orchestrator.cli_look import is_file, opened
from crewlog.orchestrator.cli_options import HomeOption
from crewlog.orchestrator.cli_output import load_config, run_async, say
from crewlog.orchestrator.whole_file import whole_file

if TYPE_CHECKING:
    import re

    from crewlog.orchestrator.bundle import Bundle
    from crewlog.orchestrator.event_export import Owned, Selection


class ExportFormat(StrEnum):
    """What `export` writes."""

    BUNDLE = "bundle"
    NDJSON = "ndjson"
    CLOUDEVENTS = "cloudevents"
    PARQUET = "parquet"


_RUN_HELP = "Id of the run, or its first characters; @last for the one submitted last; or an exported file. Without it: all events that are chosen."


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(run_async(export))


async def export(
    run: Annotated[str, typer.Argument(metavar="[RUN|FILE]", help=_RUN_HELP, show_default=False)] = "",
    *,
    out: Annotated[Path, typer.Option("--out", help="Where to write; - is stdout.")],
    view: Annotated[
        ExportFormat, typer.Option("--as", help="A file that replays anywhere; or events: lines of JSON, CloudEvents 1.0, Parquet.")
    ] = ExportFormat.BUNDLE,
    tenant: Annotated[str | None, typer.Option("--tenant", help="Without RUN: events of this tenant alone.")] = None,
    since: Annotated[str | None, typer.Option("--since", help="Without RUN: from this time on: 2026-11-01T08:00, or 7d for the last seven days.")] = None,
    until: Annotated[str | None, typer.Option("--until", help="Without RUN: before this time.")] = None,
    secret: Annotated[list[str] | None, typer.Option("--redact", metavar="REGEX", help="Replace what matches, besides CREWLOG_REDACT; repeatable.")] = None,
    without_files: Annotated[bool, typer.Option("--without-files", help="A bundle: texts alone, not the files that the run read and made.")] = False,
    reasoning: Annotated[bool, typer.Option("--reasoning", help="Events: also what the models thought; a bundle always holds it.")] = False,
    home: HomeOption = None,
) -> None:
    """Write a run to one file, or events of the log for other programs.

    A bundle has the events, blobs, prices, versions and checksums of a run: everything that models and tools were told, and the files that it was
    given and made. It is replayed and imported anywhere, without keys. What was redacted (--redact, CREWLOG_REDACT) is gone from it, and so are all
    files, into which nobody can look for it: it can be looked at, but not verified.
    """
    from crewlog.orchestrator.event_export import Selection
    from crewlog.orchestrator.redaction import compile_patterns
    from crewlog.schemas.errors import ContractError

    patterns = compile_patterns([*load_config(home).redact, *(secret or ())])
    if run and (tenant or since or until):
        raise ContractError("--tenant, --since and --until choose events of the whole log; leave the run out")
    if view is ExportFormat.BUNDLE:
        if not run:
            raise ContractError("a bundle is one run: name it; or choose another format with --as ndjson, cloudevents or parquet")
        await _write_bundle(run, out, home, patterns, with_files=not (without_files or patterns))
        return
    chosen = Selection(tenant, _time_us("--since", since), _time_us("--until", until))
    pages = _of_run(run, home) if run else _of_log(chosen, home)
    if view is ExportFormat.PARQUET and (str(out) == "-" or (out.exists() and not out.is_file())):
        raise ContractError("a Parquet file is written from its end: name a file with --out")
    async with aclosing(pages):  # who reads a pipe may go away in the middle
        events = await _write_events(pages, out, view, patterns, with_reasoning=reasoning)
    if str(out) != "-":
        say(f"wrote {out}: {events} events")


async def _write_bundle(run: str, out: Path, home: Path | None, patterns: Sequence[re.Pattern[str]], *, with_files: bool) -> None:
    from crewlog.orchestrator.bundle import pack_bundle
    from crewlog.orchestrator.bundle_redaction import redact_bundle
    from crewlog.orchestrator.replay import replay

    bundle = await _bundle(run, home, with_files=with_files)
    if patterns:
        bundle = redact_bundle(bundle, patterns)
        await replay(bundle.store(), bundle.run_id, verify=False)  # what can no longer be read is of no use to anybody
    data = pack_bundle(bundle)
    if str(out) == "-":
        typer.echo(data, nl=False)
        return
    with whole_file(out) as file:
        file.write(data)
    files = f"{len(bundle.files)} files" if with_files else "no files"
    told = ", redacted" if bundle.is_redacted else ""
    say(f"wrote {out}: run {bundle.run_id}, {len(bundle.events)} events, {len(bundle.blobs)} blobs, {files}, {len(data)} bytes{told}")


async def _bundle(run: str, home: Path | None, *, with_files: bool) -> Bundle:
    """Read a run from the log, or from a file that was exported before."""
    from crewlog.events.artifact_store import open_artifacts
    from crewlog.orchestrator.archived_files import with_files as filled
    from crewlog.orchestrator.bundle import collect, read_bundle

    if is_file(run):
        bundle = read_bundle(Path(run))
        return bundle if with_files else bundle._replace(files={})
    async with opened(run, home) as (store, run_id):
        bundle = await collect(store, run_id)
    if with_files:
        config = load_config(home)
        bundle, problems = await filled(await open_artifacts(config.artifacts_url or config.home / "artifacts"), bundle)
        for problem in problems:
            say(problem)
    return bundle


async def _of_run(run: str, home: Path | None) -> AsyncGenerator[Sequence[Owned], None]:
    from crewlog.orchestrator.event_export import owned_by_run
    from crewlog.orchestrator.run_history import load_history

    async with opened(run, home) as (store, run_id):
        yield await owned_by_run(store, (await load_history(store, run_id)).events)


async def _of_log(chosen: Selection, home: Path | None) -> AsyncGenerator[Sequence[Owned], None]:
    from crewlog.orchestrator.client import Client
    from crewlog.orchestrator.event_export import selected

    async with Client.connect(load_config(home)) as client, aclosing(selected(await client.store(), chosen)) as pages:
        async for page in pages:
            yield page


async def _write_events(
    pages: AsyncIterator[Sequence[Owned]], out: Path, view: ExportFormat, patterns: Sequence[re.Pattern[str]], *, with_reasoning: bool
) -> int:
    """Write lines as they come; a Parquet file is made of them at the end."""
    if str(out) == "-":
        import sys

        return await _write_lines(pages, sys.stdout.buffer, view, patterns, with_reasoning=with_reasoning)
    if view is not ExportFormat.PARQUET:
        with whole_file(out) as file:
            return await _write_lines(pages, file, view, patterns, with_reasoning=with_reasoning)
    from crewlog.orchestrator.parquet_file import write_parquet

    with tempfile.TemporaryFile(dir=out.parent) as lines:  # without a name: nothing is left of it, however this ends
        events = await _write_lines(pages, lines, view, patterns, with_reasoning=with_reasoning)
        with whole_file(out) as file:
            write_parquet(Path(f"/proc/self/fd/{lines.fileno()}"), Path(file.name))
        return events


async def _write_lines(
    pages: AsyncIterator[Sequence[Owned]], file: IO[bytes], view: ExportFormat, patterns: Sequence[re.Pattern[str]], *, with_reasoning: bool
) -> int:
    import msgspec

    from crewlog.orchestrator.event_export import cloud_event
    from crewlog.orchestrator.event_text import event_json
    from crewlog.orchestrator.parquet_file import parquet_line
    from crewlog.orchestrator.redaction import redact

    count = 0
    async for page in pages:
        for recorded, tenant in page:
            event = redact(event_json(recorded, with_reasoning=with_reasoning), patterns)
            match view:
                case ExportFormat.PARQUET:
                    file.write(parquet_line(event, tenant))
                case ExportFormat.CLOUDEVENTS:
                    file.write(msgspec.json.encode(cloud_event(event, tenant)) + b"\n")
                case _:
                    file.write(msgspec.json.encode(event) + b"\n")
        count += len(page)
    file.flush()
    return count


def _time_us(option: str, text: str | None) -> int | None:
    """Read a time as people write it, in microseconds since 1970: an ISO 8601 date or time (UTC unless it says otherwise), or an age."""
    from datetime import UTC, datetime

    from crewlog.events.clock import SystemClock
    from crewlog.orchestrator.cli_files import AGE, age_s
    from crewlog.schemas.errors import ContractError

    if text is None:
        return None
    if AGE.fullmatch(text):
        return SystemClock().now_us() - age_s(option, text) * 1_000_000
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ContractError(f"{option} {text}: write a time such as 2026-11-01T08:00, a day, or how long ago as in 7d") from None
    return round((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1_000_000)
