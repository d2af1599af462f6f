"""Commands about golden tasks: golden record, golden run."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crewlog.orchestrator.cli_debug import RecordedRun
from crewlog.orchestrator.cli_look import is_file, opened
from crewlog.orchestrator.cli_options import HomeOption, OutputOption
from crewlog.orchestrator.cli_output import Exit, Output, load_config, plain, print_json, printable, run_async, say

if TYPE_CHECKING:
    from crewlog.orchestrator.bundle import Bundle
    from crewlog.orchestrator.golden import Golden
    from crewlog.orchestrator.golden_report import Verdict
    from crewlog.orchestrator.run_history import RunHistory
    from crewlog.schemas.ids import Hash


class Answers(StrEnum):
    """Where the answers of models come from."""

    RECORDED = "recorded"
    OFFLINE = "offline"


class Tools(StrEnum):
    """Where the results of tools come from."""

    RECORDED = "recorded"
    REAL = "real"


_TO = "File or folder to write to; else golden/NAME.golden.json."
_LIVE = "Hand the tasks in to the running crew, with its models; effects are stubbed."


def register(app: typer.Typer) -> None:
    """Add these commands."""
    golden = typer.Typer(help="Runs that went well, kept as tests: what was asked, what must come of it, and the recording.", no_args_is_help=True)
    golden.command("record")(run_async(record))
    golden.command("run")(run_async(run_golden))
    app.add_typer(golden, name="golden")


async def record(
    run: RecordedRun,
    to: Annotated[Path | None, typer.Option("--to", metavar="FILE", help=_TO)] = None,
    name: Annotated[str, typer.Option("--name", help="What it is called; else by its file, or its goal.")] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that says otherwise, with what was edited in it.")] = False,
    home: HomeOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Keep a run as a golden task: what it was asked, what came of it, its recording and its attachments."""
    from crewlog.orchestrator.bundle import collect, pack_bundle
    from crewlog.orchestrator.golden import SUFFIX, golden_of, golden_path, refuse_overwriting, write_golden
    from crewlog.orchestrator.raised_budget import raised_budget
    from crewlog.orchestrator.run_history import all_payloads, load_history, refuse_erased, with_texts

    async with opened(run, home) as (store, run_id):
        history = await load_history(store, run_id)
        refuse_erased(history, "recorded as a golden task")
        history = await with_texts(store, history, all_payloads(history.events))
        recording = pack_bundle(await collect(store, run_id))
        budget = await raised_budget(store, run_id)
    path = golden_path(to, name or _slug(_goal(history)))
    named = name or path.name.removesuffix(SUFFIX)
    golden = golden_of(history, named, budget=budget)
    if not overwrite:
        refuse_overwriting(path, golden)
    written = write_golden(path, golden, recording, await _attachments(golden, run, home))
    if output is Output.JSON:
        print_json({"run_id": str(run_id), "name": named, "files": [str(file) for file in written]})
        return
    for file in written:
        typer.echo(file)
    say(f"{named}: {golden.expect.max_steps} steps and {golden.expect.max_seconds:g} s at most; edit `expect`, then play it with: crewlog golden run {path}")


def _goal(history: RunHistory) -> str:
    from crewlog.schemas.run_events import RunForked, RunSubmitted

    return next(e.goal for r in reversed(history.run_events) if isinstance(e := r.event(), RunSubmitted | RunForked))


def _slug(text: str) -> str:
    import re

    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:48].strip("-") or "task"


async def _attachments(golden: Golden, run: str, home: Path | None) -> Mapping[Hash, bytes]:
    """Fetch what the run was given: from the crew's store, or from the exported file as far as it has it."""
    from crewlog.orchestrator.bundle import read_bundle
    from crewlog.orchestrator.client import Client

    wanted = [attached["hash"] for attached in golden.task.get("attachments", ())]
    if is_file(run):
        files = read_bundle(Path(run)).files
        return {hash_: files[hash_] for hash_ in wanted if hash_ in files}
    async with Client.connect(load_config(home)) as client:
        artifacts = await client.artifact_store()
        return {hash_: await artifacts.get(hash_) for hash_ in wanted}


async def run_golden(
    paths: Annotated[list[Path] | None, typer.Argument(metavar="PATH", help="Golden tasks, or folders of them; else the folder golden.")] = None,
    *,
    models: Annotated[Answers, typer.Option("--models", help="recorded: as they answered then. offline: the rules answer anew.")] = Answers.RECORDED,
    tools: Annotated[Tools, typer.Option("--tools", help="recorded: as they answered then. real: they run, on the kept attachments.")] = Tools.RECORDED,
    live: Annotated[bool, typer.Option("--live", help=_LIVE)] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Fail also when models are asked otherwise than recorded.")] = False,
    update: Annotated[bool, typer.Option("--update", help="Write what came of each into its file, where that looks at it.")] = False,
    agents: Annotated[list[str] | None, typer.Option("--agent", metavar="MODULE:ATTR", help="An agent that is not built in; repeatable.")] = None,
    report: Annotated[Path | None, typer.Option("--junit", metavar="FILE", help="Also write a JUnit report.")] = None,
    home: HomeOption = None,
    output: OutputOption = Output.TABLE,
) -> int:
    """Play golden tasks and compare what comes of them; ends with code 1 when one is not as expected. Needs no crew and no network."""
    from crewlog.orchestrator.golden import find_golden
    from crewlog.orchestrator.golden_report import junit, verdict_lines

    verdicts: list[Verdict] = []
    options: dict[str, Any] = {"models": str(models), "tools": str(tools), "agents": agents or ()}
    for path in find_golden(paths or [Path("golden")]):
        verdict = await _judged(path, home, options, live=live, strict=strict, update=update)
        verdicts.append(verdict)
        if output is Output.TABLE:
            for line in verdict_lines(verdict):
                typer.echo(printable(line))
    if report is not None:
        report.write_text(junit(verdicts), encoding="utf-8")
    failed = [verdict for verdict in verdicts if not verdict.passed]
    if output is Output.JSON:
        print_json([plain(verdict) for verdict in verdicts])
    else:
        say(f"{len(verdicts) - len(failed)} of {len(verdicts)} golden tasks are as expected")
    return Exit.RUN_FAILED if failed else Exit.OK


async def _judged(path: Path, home: Path | None, options: dict[str, Any], *, live: bool, strict: bool, update: bool) -> Verdict:
    """Play one golden task; what goes wrong with it is its verdict, and the others are played all the same."""
    from crewlog.events.clock import SystemClock
    from crewlog.orchestrator.golden import read_golden, recording_of, updated, write_golden
    from crewlog.orchestrator.golden_observe import differences, observe
    from crewlog.orchestrator.golden_play import Played, play
    from crewlog.orchestrator.golden_report import Verdict
    from crewlog.schemas.errors import OrchestrationError

    clock, name = SystemClock(), path.name
    began = clock.monotonic()
    try:
        golden = read_golden(path)
        name = golden.name
        if live:
            played = Played(await _lived(golden, path, home), (), 0)
        else:
            played = await play(golden, _recording(path), path, clock, **options)
        seen = observe(played.history)
    except (OrchestrationError, OSError, TimeoutError) as error:
        return Verdict(name, str(path), False, (), str(error) or f"it did not end in time ({type(error).__name__})", None, clock.monotonic() - began)
    if update:
        golden = type(golden)(name=golden.name, task=golden.task, expect=updated(golden.expect, seen))
        write_golden(path, golden, recording_of(path).read_bytes(), {})
    found = differences(golden.expect, seen, is_exact=not live)
    drift = tuple(played.drift)
    passed = not found and not (strict and drift)
    return Verdict(name, str(path), passed, tuple(found), "", seen, clock.monotonic() - began, drift, played.calls)


def _recording(path: Path) -> Bundle:
    """Read the recording of a golden task.

    Raises:
        ContractError: it is not there, or is none.
    """
    from crewlog.orchestrator.bundle import read_bundle
    from crewlog.orchestrator.golden import recording_of
    from crewlog.schemas.errors import ContractError

    file = recording_of(path)
    if not file.is_file():
        raise ContractError(f"its recording {file} is not there: record a run again with crewlog golden record RUN --to {path}, or play it with --live")
    return read_bundle(file)


async def _lived(golden: Golden, path: Path, home: Path | None) -> RunHistory:
    """Hand a golden task in to the running crew, wait for its end, and return its history."""
    import asyncio

    from crewlog.events.clock import SystemClock
    from crewlog.orchestrator.bundle import read_bundle
    from crewlog.orchestrator.client import Client, RequestRefused
    from crewlog.orchestrator.golden import FILES, recording_of, task_of
    from crewlog.orchestrator.run_history import all_payloads, load_history, with_texts
    from crewlog.schemas.ids import RunId
    from crewlog.schemas.trial import Trial

    config = load_config(home)
    async with Client.connect(config) as client:
        artifacts = await client.artifact_store()
        for kept in sorted((path.parent / FILES).glob("*")):
            await artifacts.put(kept.name, kept.read_bytes())
        recorded = read_bundle(recording_of(path)).run_id if recording_of(path).is_file() else None
        is_known = recorded is not None and bool(await (await client.store()).read_run(recorded))
        ids = {"task_id": str(SystemClock().random_id()), "tenant": config.tenant, "user": config.user}
        task = task_of(golden, **ids, auto_approve=True, trial=plain(Trial("stub", recorded if is_known else None, fresh_reads=True)))
        submitting = asyncio.create_task(client.submit(task))
        try:
            async with asyncio.timeout(task.timeout_seconds):
                run_id = RunId((await asyncio.shield(submitting)).run_id)
                await client.wait(run_id)
        except (asyncio.CancelledError, TimeoutError):
            run_id = RunId((await submitting).run_id)  # once it was asked for, there may be a run
            with suppress(RequestRefused):  # it has ended meanwhile
                await client.cancel(run_id, reason="the golden task was given up")
            say(f"run {str(run_id)[:8]} is cancelled: the golden task was given up")
            raise
        store = await client.store()
        history = await load_history(store, run_id)
        return await with_texts(store, history, all_payloads(history.events))
