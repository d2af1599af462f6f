"""Commands by which people take part: approvals, approve, deny, resolve, and the documents of the library."""

from __future__ import annotations

import asyncio
import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from crewlog.orchestrator.cli_options import HomeOption, OutputOption, given_path
from crewlog.orchestrator.cli_output import Output, load_config, plain, print_json, print_rows, run_async, say

if TYPE_CHECKING:
    from crewlog.orchestrator.commands import Answer

LISTED_MAX: Final = 1_000
"""Questions that are listed at once."""

ApprovalArgument = Annotated[str, typer.Argument(metavar="APPROVAL", help="Id of the approval, or its first characters; - for the only one that waits.")]
NoteOption = Annotated[str, typer.Option("--note", help="Why; recorded with the decision, and the agent reads it.")]
ActorOption = Annotated[str, typer.Option("--as", metavar="NAME", help="Who decides; else CREWLOG_USER.")]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (approvals, approve, deny, resolve):
        app.command()(run_async(command))
    docs = typer.Typer(help="The library of documents that research may search.", no_args_is_help=True)
    docs.command("add")(run_async(add_documents))
    docs.command("list")(run_async(list_documents))
    app.add_typer(docs, name="docs")


async def approvals(
    every: Annotated[bool, typer.Option("--all", help="Also those that are decided.")] = False,
    home: HomeOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List what waits for a person."""
    from crewlog.orchestrator.cli_live import show_approval
    from crewlog.orchestrator.cli_run import short_time
    from crewlog.orchestrator.client import Client

    async with Client.connect(load_config(home)) as client:
        found = await client.approvals(pending_only=not every, limit=LISTED_MAX + 1)
        is_cut, found = len(found) > LISTED_MAX, found[:LISTED_MAX]
        arguments = [await client.text(approval.arguments) for approval in found]
    if output is Output.JSON:
        print_json([{**plain(approval), "arguments": json.loads(text)} for approval, text in zip(found, arguments, strict=True)])
    elif not every:
        for approval, text in zip(found, arguments, strict=True):
            show_approval(approval, text)
        if not found:
            say("nothing waits for a person")
    else:
        rows = [{**plain(a), "id": str(a.approval_id)[:8], "run": str(a.run_id)[:8], "asked": short_time(a.requested_at)} for a in found]
        headings = {"APPROVAL": "id", "STATUS": "status", "RUN": "run", "TOOL": "tool", "ASKED": "asked", "BY": "actor", "NOTE": "note"}
        print_rows(rows, headings, output, empty="nothing was ever asked")
    if is_cut:
        say(f"there are more: these are the {'latest' if every else 'oldest'} {LISTED_MAX}; crewlog sql has all of them in the view approvals")


async def approve(
    approval: ApprovalArgument, note: NoteOption = "", actor: ActorOption = "", home: HomeOption = None, output: OutputOption = Output.TABLE
) -> None:
    """Let a waiting tool call run."""
    await _decide(approval, "approved", note, actor, home, output)


async def deny(
    approval: ApprovalArgument, note: NoteOption = "", actor: ActorOption = "", home: HomeOption = None, output: OutputOption = Output.TABLE
) -> None:
    """Refuse a waiting tool call; the agent is told and goes on without it."""
    await _decide(approval, "denied", note, actor, home, output)


class Became(StrEnum):
    """What a person may say about a call that was interrupted."""

    HAPPENED = "happened"
    DID_NOT_HAPPEN = "did-not-happen"
    GIVE_UP = "give-up"


async def resolve(
    approval: Annotated[str, typer.Argument(metavar="APPROVAL", help="Id of the question, or its first characters; - for the only one that waits.")],
    became: Annotated[Became, typer.Argument(metavar="ANSWER", help="happened: taken for done. did-not-happen: it runs again. give-up: it stays unknown.")],
    note: NoteOption = "",
    actor: ActorOption = "",
    home: HomeOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Say what became of a tool call that was interrupted, so that it is neither lost nor done twice."""
    answers: dict[Became, Answer] = {Became.HAPPENED: "happened", Became.DID_NOT_HAPPEN: "did_not_happen", Became.GIVE_UP: "give_up"}
    await _decide(approval, answers[became], note, actor, home, output)


async def _decide(approval: str, decision: Answer, note: str, actor: str, home: Path | None, output: Output) -> None:
    from crewlog.orchestrator.client import Client

    async with Client.connect(load_config(home)) as client:
        found = await client.find_approval(approval)
        await client.decide(found.run_id, found.approval_id, decision, actor=actor, note=note)
    if output is Output.JSON:
        print_json({"approval_id": str(found.approval_id), "run_id": str(found.run_id), "tool": found.tool, "decision": decision})
    else:
        say(f"{decision.replace('_', ' ')}: {found.tool} of run {str(found.run_id)[:8]}; see it go on: crewlog watch {str(found.run_id)[:8]}")


async def add_documents(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH", parser=given_path, help="Files and folders: .md .txt .html .pdf .docx")],
    home: HomeOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Put documents into the library; the same bytes are added once."""
    from crewlog.agents.ingest import ingest
    from crewlog.events.clock import SystemClock
    from crewlog.orchestrator.attachments import collect
    from crewlog.orchestrator.client import Client

    config, added, position = load_config(home), [], 0
    files = collect(paths)
    async with Client.connect(config) as client:
        store = await client.store()
        for file in files:
            data = await asyncio.to_thread(file.path.read_bytes)
            done = await ingest(store, SystemClock(), tenant=config.tenant, name=file.name, data=data, library=True)
            position = max(position, done.position)
            added.append({"name": file.name, "content": done.document.content, "lines": done.document.lines, "added": done.added})
            if output is Output.TABLE:
                say(f"{'added' if done.added else 'known'}  {file.name}, {done.document.lines} lines")
        await client.indexed(position)
    if output is Output.JSON:
        print_json(added)


async def list_documents(home: HomeOption = None, output: OutputOption = Output.TABLE) -> None:
    """List the documents of the library."""
    from crewlog.orchestrator.client import Client

    async with Client.connect(load_config(home)) as client:
        rows = plain(await client.documents())
    headings = {"NAME": "name", "TITLE": "title", "TYPE": "media_type", "LINES": "lines", "BYTES": "size"}
    print_rows(rows, headings, output, empty="the library is empty; add to it: crewlog docs add FOLDER", right=frozenset({"LINES", "BYTES"}))
