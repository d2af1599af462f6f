"""Commands that try past runs again: eval, and shadow for runs that were shadowed while they were live."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated

import typer

from crewlog.orchestrator.cli_fork import named_prompts
from crewlog.orchestrator.cli_options import HomeOption, OutputOption
from crewlog.orchestrator.cli_output import Exit, Output, complain, load_config, plain, print_json, print_rows, run_async, say
from crewlog.orchestrator.outcome_check import check_command

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from crewlog.orchestrator.client_evaluation import Bill, Evaluation
    from crewlog.orchestrator.client_trials import Tried
    from crewlog.orchestrator.trials import Interval, Summary
    from crewlog.projections.query_rows import RunView

GOAL_COLUMN_CHARS = 40
WHY_COLUMN_CHARS = 100

_VERSION = "Only agents of this version, or of certain kinds: KIND=VERSION with commas."
_PATIENCE = "Give a trial up in which nothing has happened for so many seconds."
_CHECK = "A command that gets run and trial as JSON on stdin and ends with 0 when the trial is good enough."

LastOption = Annotated[int, typer.Option("--last", min=1, max=1000, help="How many runs, those that ended last.")]
TypeOption = Annotated[str | None, typer.Option("--type", help="Only runs of this type, such as research.")]
FailOption = Annotated[float | None, typer.Option("--fail-over", min=0.0, max=1.0, help="Fail when surely more than this share decides differently.")]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command("eval")(run_async(evaluate))
    app.command()(run_async(shadow))


async def evaluate(
    *,
    last: LastOption = 20,
    kind: TypeOption = None,
    model: Annotated[str, typer.Option("--model", help="Other models, as in CREWLOG_MODELS: PROVIDER:MODEL, or KIND=PROVIDER:MODEL.")] = "",
    prompt: Annotated[list[str] | None, typer.Option("--prompt", metavar="[KIND=]TEXT", help="Other instructions; @FILE reads a file.")] = None,
    agent_version: Annotated[str, typer.Option("--agent-version", metavar="[KIND=]VERSION", help=_VERSION)] = "",
    max_usd: Annotated[str, typer.Option("--max-usd", metavar="USD", help="The most that all trials may spend together.")] = "1",
    at_once: Annotated[int, typer.Option("--at-once", min=1, max=64, help="Trials under way at the same time.")] = 4,
    patience: Annotated[float, typer.Option("--patience", metavar="SECONDS", min=1.0, max=86_400.0, help=_PATIENCE)] = 900.0,
    fresh_reads: Annotated[bool, typer.Option("--fresh-reads", help="Let reading tools run, although the record has the same call.")] = False,
    check: Annotated[str | None, typer.Option("--check", metavar="COMMAND", help=_CHECK)] = None,
    fail_over: FailOption = None,
    home: HomeOption = None,
    output: OutputOption = Output.TABLE,
) -> int:
    """Try finished runs again with another model, prompt or agent version, effects stubbed, and compare.

    Compared are outcome, decisions, cost and time. Ends with code 1 when a trial ended worse or none could be compared, and with 6 when --max-usd did
    not suffice for all. Ctrl-C cancels the trials under way.
    """
    from crewlog.agents.models import named_models
    from crewlog.events.clock import SystemClock
    from crewlog.orchestrator.client import Client
    from crewlog.orchestrator.client_evaluation import Evaluation, Pace
    from crewlog.orchestrator.client_trials import finished_runs, kept_prompts
    from crewlog.orchestrator.kinds import known_versions, refuse_unknown, versions_meant
    from crewlog.schemas.errors import ContractError
    from crewlog.schemas.money import parse_usd
    from crewlog.schemas.trial import Trial

    config, clock = load_config(home), SystemClock()
    prompts = named_prompts(prompt or ())
    if not model and not prompts and not agent_version:
        raise ContractError("what is to be different? name other models with --model, other instructions with --prompt, or --agent-version")
    if model:
        named_models(model)
    command = () if check is None else check_command(check)
    name = f"eval-{clock.random_id().hex[:8]}"
    async with Client.connect(config) as client:
        runs = await finished_runs(client, last=last, type_=kind, tenant=config.tenant)
        store = await client.store()
        await refuse_unknown(store, prompts, what="a prompt")
        trial = Trial(
            fresh_reads=fresh_reads,
            models=model,
            agent_version=versions_meant(agent_version, await known_versions(store)) if agent_version else "",
            name=name,
            hard_micro_usd=parse_usd(max_usd),
            prompts=await kept_prompts(store, prompts),
        )
        if not runs:
            complain(f"no run{f' of type {kind}' if kind else ''} has ended that could be tried again", next_step="crewlog runs lists them")
            return Exit.NOT_FOUND
        pace = Pace(at_once=at_once, patience_s=patience)
        evaluation = Evaluation(client, clock, trial, tenant=config.tenant, tell=lambda text: say(f"{name}: {text}"), pace=pace, check=command)
        say(f"{name}: {len(runs)} runs, at most {max_usd} USD from budget {evaluation.scope}")
        tried = await _tried(evaluation, runs, output)
        bill = await evaluation.bill()
    code = _report(name, tried, output, fail_over, bill)
    if not evaluation.full:
        return code
    if output is Output.TABLE:
        left = sum(one.pair is None for one in tried)
        way_out = f"crewlog budget raise {evaluation.full} --hard USD"
        more = "go on with a higher --max-usd" if evaluation.full == bill.scope else f"budget {evaluation.full} has no room: {way_out}"
        say(f"stopped at its limit: {len(tried) - left} of {len(tried)} runs were compared, {left} are left; {more}")
    return Exit.WAITING_FOR_PERSON


async def _tried(evaluation: Evaluation, runs: Sequence[RunView], output: Output) -> list[Tried]:
    """Let an evaluation take its course; whoever interrupts it is told what was done and what is left."""
    from crewlog.schemas.errors import OrchestrationError

    try:
        async with aclosing(evaluation.run(runs)) as trying:
            return [one async for one in _told(trying, output)]
    except (asyncio.CancelledError, OrchestrationError):
        left = " ".join(str(trial)[:8] for trial in evaluation.left)
        say(
            f"given up: {evaluation.compared} of {len(runs)} runs were compared; "
            + (f"still under way: crewlog terminate {left}" if left else "nothing is under way")
        )
        raise


async def shadow(
    last: LastOption = 200,
    kind: TypeOption = None,
    fail_over: FailOption = None,
    home: HomeOption = None,
    output: OutputOption = Output.TABLE,
) -> int:
    """Compare live runs with their shadows. CREWLOG_SHADOW says which share of which runs has one.

    Shadows are the work of agents that were started for them: crewlog scale research.shadow=1, or crewlog agent research --shadow.
    """
    from crewlog.events.grants import BUILT_IN_KINDS
    from crewlog.orchestrator.client import Client
    from crewlog.orchestrator.client_trials import finished_runs, shadows

    config = load_config(home)
    async with Client.connect(config) as client:
        runs = await finished_runs(client, last=last, type_=kind, tenant=config.tenant)
        workers = [worker for worker in await client.workers() if worker.is_shadow]
        tried = [one async for one in _told(shadows(client, runs), output)]
    if not workers:
        kinds = sorted({one.run.type for one in tried} & set(BUILT_IN_KINDS)) or ["KIND"]
        groups = " ".join(f"{kind}.shadow=1" for kind in kinds)
        say(f"no agent is up that takes the work of shadows: start one with crewlog scale {groups}, or crewlog agent {kinds[0]} --shadow")
    if not tried:
        say("none of these runs has a shadow: CREWLOG_SHADOW says which share of which runs gets one, such as research=0.1:offline")
    return _report("shadow", tried, output, fail_over)


async def _told(tried: AsyncIterator[Tried], output: Output) -> AsyncIterator[Tried]:
    """Pass results on, and say each as it comes."""
    from crewlog.schemas.text import shorten

    async for one in tried:
        if output is Output.TABLE:
            goal = shorten(" ".join(one.run.goal.split()), GOAL_COLUMN_CHARS)
            # why there is nothing to compare may end with what to do, and is said whole
            what = "; ".join(one.why.splitlines()) if one.pair is None else shorten(one.pair.first or "the same decisions", WHY_COLUMN_CHARS)
            say(f"{str(one.run.run_id)[:8]}  {goal:<{GOAL_COLUMN_CHARS}}  {what}")
        yield one


def _report(name: str, tried: list[Tried], output: Output, fail_over: float | None, bill: Bill | None = None) -> int:
    from crewlog.orchestrator.trials import summarised

    pairs = [one.pair for one in tried if one.pair is not None]
    summary = summarised(pairs, unfinished=len(tried) - len(pairs))
    if output is Output.JSON:
        skipped = [{"run_id": str(one.run.run_id), "why": one.why, "was_begun": one.was_begun} for one in tried if one.pair is None]
        own = {} if bill is None else {"budget": bill._asdict()}
        print_json({"name": name, "summary": plain(summary), "pairs": [plain(pair) for pair in pairs], "skipped": skipped, **own})
    else:
        rows = [{"what": what, "runs": here, "trials": there} for what, here, there in (*_rows(summary), *_paid(bill))]
        print_rows(rows, {"": "what", "RUNS": "runs", "TRIALS": "trials"}, output, empty="nothing to compare", right=frozenset({"RUNS", "TRIALS"}))
    is_over = fail_over is not None and summary.diverging.low > fail_over
    is_mute = bill is not None and bool(tried) and not pairs
    return Exit.RUN_FAILED if summary.worse.count or is_over or is_mute else Exit.OK


def _rows(summary: Summary) -> list[tuple[str, str, str]]:
    from crewlog.schemas.usage import format_usd

    return [
        ("compared", str(summary.pairs), str(summary.pairs)),
        ("came to no end", "", str(summary.open)),
        ("decided differently", "", _share(summary.diverging)),
        ("ended worse", "", _share(summary.worse)),
        ("cost", format_usd(summary.cost_micro_usd), format_usd(summary.trial_cost_micro_usd)),
        ("models, median per run", f"{summary.model_ms / 1000:.2f} s", f"{summary.trial_model_ms / 1000:.2f} s"),
    ]


def _paid(bill: Bill | None) -> list[tuple[str, str, str]]:
    from crewlog.schemas.usage import format_usd

    return [] if bill is None or bill.hard_micro_usd is None else [("spent, of at most", format_usd(bill.hard_micro_usd), format_usd(bill.spent_micro_usd))]


def _share(interval: Interval) -> str:
    return f"{interval.count} of {interval.of}: {interval.share:.0%} (95 %: {interval.low:.0%} to {interval.high:.0%})"
