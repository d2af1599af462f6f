"""`crewlog demo`: the whole crew at work on one small goal, every process and every server real, in a home folder of its own.

The story: release the Palmer penguins table. Research quotes the rules that apply, code repairs a loader that fails on missing values,
data computes the figures and a chart, communicate mails the note to a local mail sink once a person has agreed.
"""

from __future__ import annotations

import asyncio
import io
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from crewlog.agents.models import key_of
from crewlog.agents.smtp_sink import SmtpSink
from crewlog.events.clock import SystemClock
from crewlog.events.config import Config, load
from crewlog.events.migrate import fingerprint
from crewlog.orchestrator.cli_live import follow, redraws, show_approval
from crewlog.orchestrator.cli_output import Exit, complain, say
from crewlog.orchestrator.cli_run import headline
from crewlog.orchestrator.client import Client
from crewlog.orchestrator.commands import Answer
from crewlog.orchestrator.cost_text import print_costs
from crewlog.orchestrator.doctor import require_extras
from crewlog.orchestrator.replay import ReplayReport, replay
from crewlog.orchestrator.servers import SQL_FOLDERS
from crewlog.orchestrator.supervised import reading_pipe
from crewlog.orchestrator.supervisor import Supervisor
from crewlog.projections.queries import CostFilter
from crewlog.projections.query_rows import RunView
from crewlog.schemas.ids import RunId

DATA: Final = Path(__file__).with_name("demo")
ATTACHMENTS: Final = (DATA / "playbook", DATA / "penguins.csv", DATA / "penguin_loader")
RECIPIENT: Final = "team@example.org"
GOAL: Final = (
    "Prepare the open-data release note for the Palmer penguins table: check our loader and repair it if its tests fail, summarise the mean body "
    "mass by species with a chart, say which rules of the playbook apply to missing values, and mail the release note with the chart to "
    f"{RECIPIENT}."
)
RUN_TIMEOUT_S: Final = 900
MILESTONES: Final = frozenset(
    {"RunPlanned", "TaskDispatched", "TaskCompleted", "TaskReviewed", "ApprovalDecided", "AttemptFailed", "RunCompleted", "RunFailed"}
)


async def run_demo(home: Path | None, *, keep: bool, yes: bool) -> int:
    """Run the demo and return its exit code; leaves nothing running unless `keep`.

    Args:
        home: folder for everything the demo makes; None for one below the configured home that only this build uses: the demo starts
            whatever an older one left there.
        keep: leave the crew up until Ctrl-C.
        yes: approve the mail without asking; the same happens when nobody can be asked.
    """
    require_extras("the demo", ("embedded", "data", "docs", "demo"))
    configured = load()
    own = home or configured.home / f"demo-{fingerprint(SQL_FOLDERS)}"
    config = configured.model_copy(update={"home": own, "database_url": None, "nats_url": None})
    sink = SmtpSink(config.home / "mail")
    await sink.start()
    # the mail must stay on this machine whatever else is configured
    os.environ.update(CREWLOG_SMTP_HOST="127.0.0.1", CREWLOG_SMTP_PORT=str(sink.port), CREWLOG_SMTP_STARTTLS="false", CREWLOG_MAIL_FROM="crew@example.org")
    os.environ.pop("CREWLOG_SMTP_USER", None)
    say(f"crewlog demo in {config.home}\n{_models(config)}")
    try:
        async with _crew(config), Client.connect(config) as client:
            code = await _tell(client, config, sink, yes=yes or not (sys.stdin.isatty() and sys.stderr.isatty()))
            if keep:
                say(f"\nthe crew stays up; try from another shell: crewlog status --home {config.home}\nstop it with Ctrl-C")
                await asyncio.Event().wait()
            return code
    finally:
        await sink.stop()


def _models(config: Config) -> str:
    if config.models != "offline":
        return f"models: {config.models}"
    if provider := next((name for name in ("anthropic", "openai", "google") if key_of(name, config)), None):
        return f"models: offline rules. A key is set; to use it: CREWLOG_MODELS={provider}:<model> crewlog demo"
    return "models: offline rules, no key needed. Servers, processes, tools and files are real; the wording is simulated"


@asynccontextmanager
async def _crew(config: Config) -> AsyncIterator[None]:
    """Run the whole crew under a supervisor of our own; its log lines go to files only."""
    ready = asyncio.Event()
    supervisor = Supervisor(config, {}, clock=SystemClock(), console=io.StringIO(), on_phase=say)
    running = asyncio.create_task(supervisor.run(ready.set))
    waiting = asyncio.create_task(ready.wait())
    try:
        await asyncio.wait({running, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            yield
    finally:
        waiting.cancel()
        supervisor.request_stop()
        await running


async def _tell(client: Client, config: Config, sink: SmtpSink, *, yes: bool) -> int:
    live = redraws()
    say(f"\ngoal: {GOAL}\nfiles: 13 rules of a playbook, penguins.csv (344 rows), a loader with 5 tests of which 2 fail\n")
    submitted = await client.submit(GOAL, attachments=ATTACHMENTS, timeout_seconds=RUN_TIMEOUT_S)
    ending, position = await follow(client, submitted.run_id, live=live, stop_on_approval=True, types=MILESTONES)
    while ending == "waiting":
        await _decide(client, submitted.run_id, yes=yes)
        ending, position = await follow(client, submitted.run_id, live=live, stop_on_approval=True, after=position, types=MILESTONES)
    run = await client.run(submitted.run_id)
    report = await replay(await client.store(), submitted.run_id)
    folder = config.home / "runs" / str(run.run_id)
    files = await client.save(run, folder)
    say("\n" + headline(run))
    if run.simulated:
        say("offline rules chose the steps; every tool result is real")
    say("")
    for file in files:
        say(f"Answer      {file}" if file.name == "answer.md" else f"File        {file}")
    for mail in sink.received:
        say(f"Mail        {mail}")
    say("")
    print_costs(await client.queries().costs(("kind", "model"), CostFilter(run_id=submitted.run_id)))
    short = str(run.run_id)[:8]
    same = "identical" if report.divergence is None else f"DIVERGES: {report.divergence}"
    say(f"\nReplay      {same}: state hash {report.state_hash[:12]}, {report.events} events, 0 model calls made of {report.model_calls} recorded")
    say(f"Next        look around: crewlog demo --keep, and in another shell: crewlog show {short} --home {config.home}")
    say("            your own goal: crewlog up -d && crewlog submit 'GOAL' --attach FILES --wait && crewlog replay --verify")
    return _judge(run, report, sink)


def _judge(run: RunView, report: ReplayReport, sink: SmtpSink) -> int:
    if run.status != "completed":
        complain(f"the run {run.status}", why=run.error or "")
    elif report.divergence is not None:
        complain("the replay differs from what happened", why=str(report.divergence))
    elif not sink.received:
        complain("the run completed, but no mail arrived")
    else:
        return Exit.OK
    return Exit.RUN_FAILED


async def _decide(client: Client, run_id: RunId, *, yes: bool) -> None:
    """Put every waiting question to the person, or approve it for them when nobody can be asked."""
    for approval in await client.asked(run_id):
        say("")
        show_approval(approval, await client.text(approval.arguments))
        decision: Answer = "approved"
        if approval.question:
            say("    given up by the demo, which cannot know what became of it")
            decision = "give_up"
        elif yes:
            say("    approved by the demo: --yes was given, or nobody can be asked here")
        elif not await _ask("    send it? [y/N] "):
            decision = "denied"
        await client.decide(run_id, approval.approval_id, decision, actor="demo" if yes else "")


async def _ask(question: str) -> bool:
    """Ask on the terminal without blocking, so that Ctrl-C works."""
    sys.stderr.write(question)
    sys.stderr.flush()
    async with reading_pipe(os.dup(sys.stdin.fileno())) as reader:
        return (await reader.readline()).strip().lower() in (b"y", b"yes")
