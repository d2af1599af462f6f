"""`crewlog bisect`: run again from an earlier place with one candidate after the other, and find the first one that goes wrong."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import typer

from crewlog.orchestrator.cli_options import HomeOption, OutputOption
from crewlog.orchestrator.cli_output import Exit, Output, load_config, print_json, run_async, say
from crewlog.orchestrator.cli_runs import RunArgument
from crewlog.orchestrator.outcome_check import check_command, run_check

if TYPE_CHECKING:
    from crewlog.orchestrator.bisect import Found, Verdict
    from crewlog.orchestrator.client import Client
    from crewlog.orchestrator.client_forks import ForkChanges
    from crewlog.projections.query_rows import RunView
    from crewlog.schemas.ids import RunId

BAD_MAX: Final = 124
"""Greatest exit code that says bad. 125 cannot tell, as in `git bisect`; shells end with 126 and 127 when they cannot carry something out, and with more
when a signal did."""
CANDIDATES_MAX: Final = 1_000
TELL_S: Final = 10.0
"""How often it is said what a fork waits for, in seconds; half as often each time."""
TELL_AT_LEAST_S: Final = 120.0

_OVER = "What changes, and its candidates from the one known to be good to the one known to be bad, with commas (or ; between chains or several kinds)."
_PATIENCE = "Give up a run in which nothing has happened, and a check that has not ended, for so many seconds: of it nothing can be told."
_CHECK = (
    "Command without a shell; gets the answer on stdin, CREWLOG_RUN and CREWLOG_STATUS. 0 is good, 1 to 124 bad; else, as when it was killed, it cannot tell."
)


class Over(StrEnum):
    """What the candidates are."""

    MODELS = "models"
    PROMPTS = "prompts"
    VERSIONS = "versions"


class Tried(NamedTuple):
    """What came of a candidate. `answer` and `status` are those of its run; None when the check was not asked about it."""

    run_id: RunId
    verdict: Verdict
    answer: bytes | None = None
    status: str = ""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(run_async(bisect))


async def bisect(
    run: RunArgument,
    over: Annotated[tuple[Over, str], typer.Option("--over", metavar="WHAT LIST", help=_OVER)],
    check: Annotated[str, typer.Option("--check", metavar="CMD", help=_CHECK)],
    at: Annotated[int, typer.Option("--at", min=1, help="Event up to which all of them share the recorded run.")] = 1,
    budget: Annotated[str | None, typer.Option("--budget", metavar="USD", help="The most that each of the runs may spend.")] = None,
    patience: Annotated[float, typer.Option("--patience", metavar="SECONDS", min=1.0, max=86_400.0, help=_PATIENCE)] = 900.0,
    home: HomeOption = None,
    output: OutputOption = Output.TABLE,
) -> int:
    """Find the first model, prompt or agent version with which a run goes wrong: forks, effects stubbed. Ctrl-C cancels the one under way."""
    from crewlog.orchestrator.bisect import conclude, confirmed, next_probe, rests_on
    from crewlog.orchestrator.cli_budget import read_budget
    from crewlog.orchestrator.client import Client

    what, candidates, command = over[0], _candidates(over[1]), check_command(check)
    changes = [_changes(what, candidate) for candidate in candidates]
    if amounts := read_budget(budget, None):
        changes = [{**change, "changes": {"budget": {"soft_micro_usd": None, **amounts}}} for change in changes]
    tried: dict[int, Tried] = {}
    verdicts: dict[int, Verdict] = {}
    async with Client.connect(load_config(home)) as client:
        run_id = await client.find_run(run)
        if what is Over.VERSIONS:
            await _check_versions(client, candidates)
        while (n := next_probe(len(candidates), verdicts)) is not None:
            tried[n] = await _try(client, run_id, at, changes[n], command, patience)
            verdicts[n] = tried[n].verdict
            say(f"{verdicts[n]:<4}  {candidates[n]}  run {str(tried[n].run_id)[:8]}")
    found = conclude(len(candidates), verdicts)
    found = confirmed(found, verdicts, {n: await _asked_again(tried[n], command, patience) for n in rests_on(found)})
    if output is Output.JSON:
        shown = [{"candidate": candidates[n], "run_id": str(one.run_id), "verdict": one.verdict} for n, one in tried.items()]
        print_json({"over": what.value, "candidates": candidates, "tried": shown, **_named(found, candidates)})
    else:
        typer.echo(_told(found, candidates))
    return Exit.OK if found.outcome in ("first bad", "among several") else Exit.RUN_FAILED


def _candidates(listed: str) -> list[str]:
    from crewlog.schemas.errors import ContractError

    found = [each.strip() for each in listed.split(";" if ";" in listed else ",")]
    if len(found) < 2 or not all(found) or len(found) > CANDIDATES_MAX:
        raise ContractError(f"--over: {len(found)} candidates in {listed!r}; name at least two, the good one first and the bad one last")
    return found


def _changes(what: Over, candidate: str) -> ForkChanges:
    from crewlog.agents.models import named_models
    from crewlog.orchestrator.cli_fork import named_prompts

    match what:
        case Over.MODELS:
            named_models(candidate)  # what is wrong with any of them is said before the first is tried
            return {"models": candidate, "reason": f"bisect over models: {candidate}"}
        case Over.PROMPTS:
            return {"prompts": named_prompts([f"@{candidate}"]), "reason": f"bisect over prompts: {Path(candidate).name}"}
        case Over.VERSIONS:
            return {"agent_version": candidate, "reason": f"bisect over versions: {candidate}"}


async def _check_versions(client: Client, candidates: list[str]) -> None:
    """Refuse candidates that no kind has ever had, before the first is tried. One that was there, and is not now, is waited for."""
    from crewlog.orchestrator.kinds import known_versions, versions_meant
    from crewlog.schemas.trial import CURRENT

    known = await known_versions(await client.store())
    for candidate in candidates:
        if candidate != CURRENT:
            versions_meant(candidate, known)


async def _try(client: Client, run_id: RunId, at: int, changes: ForkChanges, command: list[str], patience_s: float) -> Tried:
    """Fork, wait for the end, and let the check look at the answer."""
    making = asyncio.create_task(client.forks.fork(run_id, at, **changes))
    try:
        forked = (await asyncio.shield(making)).run_id
        ended = await _ended(client, forked, patience_s)
    except asyncio.CancelledError:
        forked = (await making).run_id  # once it was asked for, there may be a run
        await _give_up(client, forked, "the search was given up")
        raise
    if ended is None:
        return Tried(forked, "skip")
    if why := await _untold(client, ended):
        say(f"run {str(forked)[:8]} tells nothing: {why}")
        return Tried(forked, "skip")
    answer = (await client.answer(ended)).encode()
    return Tried(forked, await _judged(forked, command, answer, ended.status, patience_s), answer, ended.status)


async def _asked_again(tried: Tried, command: list[str], patience_s: float) -> Verdict:
    """Ask the check once more about the same answer, and tell when it says otherwise."""
    if tried.answer is None:
        return tried.verdict
    verdict = await _judged(tried.run_id, command, tried.answer, tried.status, patience_s)
    if verdict != tried.verdict:
        told = "tells nothing" if verdict == "skip" else f"is {verdict}"
        say(f"run {str(tried.run_id)[:8]} {told} when the check is asked again about the same answer")
    return verdict


async def _judged(run_id: RunId, command: list[str], answer: bytes, status: str, patience_s: float) -> Verdict:
    verdict, why = await checked(command, answer, {**os.environ, "CREWLOG_RUN": str(run_id), "CREWLOG_STATUS": status}, patience_s)
    if why:
        say(f"run {str(run_id)[:8]}: the check {why}: it tells nothing")
    return verdict


async def checked(command: list[str], answer: bytes, env: dict[str, str], patience_s: float) -> tuple[Verdict, str]:
    """Let the check look at an answer; with what became of it when it cannot tell."""
    try:
        async with asyncio.timeout(patience_s):
            code = await run_check(command, answer, env)
    except TimeoutError:
        return "skip", f"was killed after {patience_s:g} s"
    told = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    return verdict_of(code), told if verdict_of(code) == "skip" else ""


def verdict_of(code: int) -> Verdict:
    """Read the exit code of a check. One that was killed, or could not be carried out, has said nothing about the run."""
    return "good" if code == 0 else "bad" if 0 < code <= BAD_MAX else "skip"


async def _untold(client: Client, fork: RunView) -> str:
    """Say why nothing can be told of a fork: somebody stopped it, or no model was asked, such as for want of a worker of the version; else nothing."""
    from crewlog.schemas.ids import RunId
    from crewlog.schemas.task_events import ModelCallStarted

    if fork.status == "cancelled":
        return "it was cancelled"
    own = await (await client.store()).read_run(RunId(fork.run_id)) if fork.status == "failed" else ()
    is_mute = bool(own) and not any(recorded.type == ModelCallStarted.__name__ for recorded in own)
    return f"no model was asked for it: {fork.error}" if is_mute else ""


async def _ended(client: Client, run_id: RunId, patience_s: float) -> RunView | None:
    """Wait for the end of a fork, and say what it waits for; None when nothing happened in it for so long that it was cancelled."""
    from crewlog.events.clock import SystemClock

    clock, tell_s = SystemClock(), TELL_S
    news_s = clock.monotonic()

    async def follow() -> None:
        nonlocal news_s
        async for _ in client.events(run_id, follow=True):
            news_s = clock.monotonic()

    following = asyncio.create_task(follow())
    try:
        while not (await asyncio.wait({following}, timeout=min(tell_s, max(0.1, news_s + patience_s - clock.monotonic()))))[0]:
            quiet_s, waits = clock.monotonic() - news_s, await _waits_for(client, run_id)
            if quiet_s >= patience_s:
                await _give_up(client, run_id, f"nothing has happened in it for {patience_s:g} s: {waits}")
                return None
            say(f"run {str(run_id)[:8]} for {quiet_s:.0f} s: {waits}")
            tell_s = min(2 * tell_s, TELL_AT_LEAST_S)
        following.result()
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    return await client.ended(run_id)


async def _waits_for(client: Client, run_id: RunId) -> str:
    from crewlog.schemas.errors import NotFound

    with suppress(NotFound):
        return "; ".join(f"{found.wait.detail}; ended by: {found.wait.ends}" for found in await client.waits.why(str(run_id))) or "it has just ended"
    return "the views have not heard of it"


async def _give_up(client: Client, run_id: RunId, why: str) -> None:
    """Cancel a fork and say so."""
    from crewlog.orchestrator.client import RequestRefused
    from crewlog.schemas.errors import Unavailable

    try:
        with suppress(RequestRefused):  # it has ended meanwhile
            await client.cancel(run_id, reason=why)
        say(f"run {str(run_id)[:8]} is cancelled: {why}")
    except Unavailable as error:
        say(f"run {str(run_id)[:8]} goes on, {error}: crewlog terminate {str(run_id)[:8]}")


def _named(found: Found, candidates: list[str]) -> dict[str, object]:
    """Say what was found by the names of the candidates: `4` of versions is version 4, not the fourth of them."""
    ends = {name: None if n is None else candidates[n] for name, n in (("last_good", found.last_good), ("first_bad", found.first_bad))}
    return {"outcome": found.outcome, **ends, "suspects": [candidates[n] for n in found.suspects]}


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
            return "nothing could be told of the first or the last one, between which the search goes: name others there"
        case "unsteady check":
            named = ", ".join(candidates[n] for n in found.suspects)
            return f"nothing was found: of {named} the check said otherwise when it was asked again; it has to say the same of the same answer"
