"""The command `fork`: go on from an earlier place of a run, with something changed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crewlog.orchestrator.cli_options import HomeOption, OutputOption
from crewlog.orchestrator.cli_output import Exit, Output, load_config, plain, print_json, run_async, say
from crewlog.orchestrator.cli_runs import RunArgument, TimeoutOption, follow_run

if TYPE_CHECKING:
    from crewlog.orchestrator.client import Client
    from crewlog.orchestrator.client_forks import ForkChanges
    from crewlog.schemas.ids import RunId

_AT = "Share everything up to this event: its index as `show --as events` numbers it, @POSITION, or an event id."
_RESULT = "Another result of a tool call: CALL_ID=TEXT, or CALL_ID=@FILE; repeatable."
_PROMPT = "Other instructions: [KIND=]TEXT, or [KIND=]@FILE; repeatable."
_VERSION = "Only agents of this version: VERSION, KIND=VERSION or several with commas; `current`: tasks under way go on with what agents have now."
_EFFECTS = "Carry out tools with effects; without it they are stubbed. Each is asked for again, unless --auto-approve."
_SET = "Another field of the submitted task, such as limits.turns_max=80 or constraints.words_max=120; repeatable."


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(run_async(fork))


async def fork(
    run: RunArgument,
    at: Annotated[str, typer.Option("--at", metavar="EVENT", help=_AT)],
    *,
    result: Annotated[list[str] | None, typer.Option("--result", metavar="CALL=TEXT", help=_RESULT)] = None,
    message: Annotated[str, typer.Option("--message", help="What the model is told behind its last results.")] = "",
    task: Annotated[str, typer.Option("--task", metavar="KEY", help="The task that --message is for, when several are under way.")] = "",
    objective: Annotated[str | None, typer.Option("--objective", help="Another goal in place of the submitted one.")] = None,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", metavar="[KIND=]TEXT", help=_PROMPT)] = None,
    model: Annotated[str, typer.Option("--model", help="Other models, as in CREWLOG_MODELS: PROVIDER:MODEL, a chain with >, or KIND=PROVIDER:MODEL.")] = "",
    provider: Annotated[str, typer.Option("--provider", help="With --model MODEL: whose model it is.")] = "",
    agent_version: Annotated[str, typer.Option("--agent-version", help=_VERSION)] = "",
    budget: Annotated[str | None, typer.Option("--budget", metavar="USD", help="The most that the fork may spend, such as 0.50.")] = None,
    change: Annotated[list[str] | None, typer.Option("--set", metavar="FIELD=JSON", help=_SET)] = None,
    yes: Annotated[bool | None, typer.Option("--auto-approve/--ask", help="Let tools with consequences run without asking, or ask.")] = None,
    allow_effects: Annotated[bool, typer.Option("--allow-effects", help=_EFFECTS)] = False,
    fresh_reads: Annotated[bool, typer.Option("--fresh-reads", help="Let reading tools run, although the parent's record has the same call.")] = False,
    reason: Annotated[str, typer.Option("--reason", help="What it is for; recorded.")] = "",
    wait: Annotated[bool, typer.Option("--wait", "-w", help="Show the work and wait until the fork has ended.")] = False,
    timeout: TimeoutOption = None,
    home: HomeOption = None,
    output: OutputOption = Output.TABLE,
) -> int:
    """Go on from an earlier event of a run as a new run, with something changed. What both share costs nothing."""
    from crewlog.orchestrator.client import Client
    from crewlog.schemas.trial import CURRENT

    changes: ForkChanges = {
        "reason": reason,
        "task": task,
        "message": message,
        "results": dict(_named(text, "--result") for text in result or ()),
        "prompts": named_prompts(prompt or ()),
        "models": _models(model, provider),
        "agent_version": agent_version,
        "effects": "allow" if allow_effects else "stub",
        "reads": not fresh_reads,
        "changes": _changes(change or (), objective, budget, yes),
    }
    async with Client.connect(load_config(home)) as client:
        run_id = await client.find_run(run)
        forked = await client.forks.fork(run_id, await _index(client, run_id, at), **changes)
        if not wait:
            if output is Output.JSON:
                print_json(plain(forked))
            else:
                typer.echo(forked.run_id)
                goes_on = f"goes on with {', '.join(forked.tasks)}" if forked.tasks else "nothing was under way"
                say(f"shares events 1 to {forked.at} of {str(run_id)[:8]}, {goes_on}; follow it with: crewlog watch {str(forked.run_id)[:8]}")
                if agent_version not in ("", CURRENT):
                    say(f"only agents {agent_version} take its tasks; whether one is there: crewlog why {str(forked.run_id)[:8]}")
                say(f"compare them with: crewlog diff {str(run_id)[:8]} {str(forked.run_id)[:8]}")
            return Exit.OK
        return await follow_run(client, forked.run_id, home, output, timeout=timeout, fail_on_approval=False)


async def _index(client: Client, run_id: RunId, at: str) -> int:
    """Return the index of the event that `--at` names."""
    if at.isascii() and at.isdigit():
        return int(at)
    from crewlog.orchestrator.run_history import event_id_of, load_history, parse_place
    from crewlog.schemas.errors import ContractError, NotFound

    history = await load_history(await client.store(), run_id)
    if at.startswith("@") and at[1:].isdigit():
        return history.index_of(parse_place(f"{str(run_id)[:8]}{at}"))
    event_id = event_id_of(at)
    if event_id is None:
        raise ContractError(f"--at {at}: expected the index of an event such as 12, a position of the log such as @4711, or an event id")
    found = next((index for index, recorded in enumerate(history.events, 1) if recorded.event_id == event_id), None)
    if found is None:
        raise NotFound(f"event in run {run_id}", at)
    return found


def _named(text: str, option: str) -> tuple[str, str]:
    from crewlog.schemas.errors import ContractError

    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ContractError(f"{option} {text}: expected NAME=TEXT, or NAME=@FILE")
    return name, _text(value)


def named_prompts(texts: Iterable[str]) -> dict[str, str]:
    """Read `[KIND=]TEXT` and `[KIND=]@FILE`; what names no kind is for all."""
    return dict(map(_prompt, texts))


def _prompt(text: str) -> tuple[str, str]:
    from crewlog.schemas.errors import ContractError
    from crewlog.schemas.ids import TOKEN

    name, equals, value = text.partition("=")
    kind, value = (name, value) if equals and (TOKEN.fullmatch(name) or name == "*") else ("*", text)
    if not (told := _text(value)).strip():
        raise ContractError(f"--prompt {text!r} has no instructions in it")
    return kind, told


def _text(value: str) -> str:
    from crewlog.schemas.errors import ContractError

    try:
        return Path(value[1:]).read_text(encoding="utf-8") if value.startswith("@") and len(value) > 1 else value
    except UnicodeDecodeError as error:
        raise ContractError(f"{value[1:]} is not UTF-8 text: {error}") from None


def _models(model: str, provider: str) -> str:
    from crewlog.schemas.errors import ContractError

    if not provider:
        return model
    if not model or ":" in model or "=" in model:
        raise ContractError(f"--provider {provider} needs --model with the name of one of its models, and nothing else")
    return f"{provider}:{model}"


def _changes(fields: list[str] | tuple[()], objective: str | None, budget: str | None, yes: bool | None) -> dict[str, Any]:
    """Write what is different in the submitted task as a JSON Merge Patch."""
    from crewlog.orchestrator.cli_budget import read_budget
    from crewlog.schemas.errors import ContractError
    from crewlog.schemas.merge_patch import merged

    patch: dict[str, Any] = {}
    for text in fields:
        path, equals, value = text.partition("=")
        if not equals or not all(path.split(".")):
            raise ContractError(f"--set {text}: expected FIELD=JSON, such as limits.turns_max=80")
        try:
            given: Any = json.loads(value)
        except ValueError:
            given = value
        for name in reversed(path.split(".")):
            given = {name: given}
        patch = merged(patch, given)
    if objective is not None:
        patch["objective"] = objective
    if yes is not None:
        patch["auto_approve"] = yes
    if amounts := read_budget(budget, None):
        patch["budget"] = {"soft_micro_usd": None, **amounts}
    return patch
