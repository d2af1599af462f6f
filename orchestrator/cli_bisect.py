"""`crewlog bisect`: run again from an earlier place with one candidate after the other, and find the first one that goes wrong."""

from __future__ import annotations

import asyncio
import os
import shlex
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from crewlog.orchestrator.cli_options import HomeOption, OutputOption
from crewlog.orchestrator.cli_output import Exit, Output, load_config, plain, print_json, run_async, say
from crewlog.orchestrator.cli_runs import RunArgument

if TYPE_CHECKING:
    from crewlog.orchestrator.bisect import Found, Verdict
    from crewlog.orchestrator.client import Client
    from crewlog.orchestrator.client_forks import ForkChanges
    from crewlog.schemas.ids import RunId

SKIP: Final = 125
"""Exit code of a check that cannot tell, as in `git bisect`."""
CANDIDATES_MAX: Final = 1_000

_OVER = "What changes, and its candidates from the one known to be good to the one known to be bad, with commas (or ; between chains of models)."
_CHECK = "Command without a shell; gets the answer on stdin, CREWLOG_RUN and CREWLOG_STATUS. 0 is good, 125 cannot tell, else bad."


class Over(StrEnum):
    """What the candidates are."""

    MODELS = "models"
    PROMPTS = "prompts"
    VERSIONS = "versions"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(run_async(bisect))


async def bisect(
    run: RunArgument,
    over: Annotated[tuple[Over, str], typer.Option("--over", metavar="WHAT LIST", help=_OVER)],
    check: Annotated[str, typer.Option("--check", metavar="CMD", help=_CHECK)],
    at: Annotated[int, typer.Option("--at", min=1, help="Event up to which all of them share the recorded run.")] = 1,
    budget: Annotated[str | None, typer.Option("--budget", metavar="USD", help="The most that each of the runs may spend.")] = None,
    home: HomeOption = None,
    output: OutputOption = Output.TABLE,
) -> int:
    """Find the first model, prompt or agent version with which a run goes wrong: forks, effects stubbed."""
    from crewlog.orchestrator.bisect import conclude, next_probe
    from crewlog.orchestrator.cli_budget import read_budget
    from crewlog.orchestrator.client import Client

    what, candidates, command = over[0], _candidates(over[1]), _command(check)
    changes = [_changes(what, candidate) for candidate in candidates]
    if amounts := read_budget(budget, None):
        changes = [{**change, "changes": {"budget": {"soft_micro_usd": None, **amounts}}} for change in changes]
    verdicts: dict[int, Verdict] = {}
    tried: list[dict[str, object]] = []
    async with Client.connect(load_config(home)) as client:
        run_id = await client.find_run(run)
        while (n := next_probe(len(candidates), verdicts)) is not None:
            fork, verdicts[n] = await _try(client, run_id, at, changes[n], command)
            tried.append({"candidate": candidates[n], "run_id": str(fork), "verdict": verdicts[n]})
            say(f"{verdicts[n]:<4}  {candidates[n]}  run {str(fork)[:8]}")
    found = conclude(len(candidates), verdicts)
    if output is Output.JSON:
        print_json({"over": what.value, "candidates": candidates, "tried": tried, **plain(found)})
    else:
        typer.echo(_told(found, candidates))
    return Exit.OK if found.outcome in ("first bad", "among several") else Exit.RUN_FAILED


def _candidates(listed: str) -> list[str]:
    from crewlog.schemas.errors import ContractError

    found = [each.strip() for each in listed.split(";" if ";" in listed else ",")]
    if len(found) < 2 or not all(found) or len(found) > CANDIDATES_MAX:
        raise ContractError(f"--over: {len(found)} candidates in {listed!r}; name at least two, the good one first and the bad one last")
    return found


def _command(check: str) -> list[str]:
    from crewlog.schemas.errors import ContractError

    try:
        parts = shlex.split(check)
    except ValueError as error:
        raise ContractError(f"--check {check!r} is no command: {error}") from None
    if not parts:
        raise ContractError("--check is empty: name a command that ends with 0 when the answer is good")
    return parts


def _changes(what: Over, candidate: str) -> ForkChanges:
    from crewlog.orchestrator.cli_fork import named_prompts

    match what:
        case Over.MODELS:
            return {"models": candidate, "reason": f"bisect over models: {candidate}"}
        case Over.PROMPTS:
            return {"prompts": named_prompts([f"@{candidate}"]), "reason": f"bisect over prompts: {Path(candidate).name}"}
        case Over.VERSIONS:
            return {"agent_version": candidate, "reason": f"bisect over versions: {candidate}"}


async def _try(client: Client, run_id: RunId, at: int, changes: ForkChanges, command: list[str]) -> tuple[RunId, Verdict]:
    """Fork, wait for the end, and let the check look at the answer."""
    forked = await client.forks.fork(run_id, at, **changes)
    ended = await client.wait(forked.run_id)
    answer = await client.answer(ended)
    env = {**os.environ, "CREWLOG_RUN": str(forked.run_id), "CREWLOG_STATUS": ended.status}
    process = await asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL, env=env)
    try:
        await process.communicate(answer.encode())
    except asyncio.CancelledError:
        process.kill()
        await process.wait()
        raise
    return forked.run_id, "good" if process.returncode == 0 else "skip" if process.returncode == SKIP else "bad"


def _told(found: Found, candidates: list[str]) -> str:
    match found.outcome:
        case "first bad":
            assert found.first_bad is not None
            assert found.last_good is not None
            return f"first bad: {candidates[found.first_bad]} (the last good one is {candidates[found.last_good]})"
        case "among several":
            return f"the first bad one is among {', '.join(candidates[n] for n in found.suspects)}: of the others between them nothing could be told"
        case "all bad":
            return f"{candidates[0]} is bad already: begin with one that is good"
        case "none bad":
            return f"{candidates[-1]} is good, too: end with one that is bad"
        case "unknown":
            return "nothing could be told of the first or the last one: the search has no ends"
