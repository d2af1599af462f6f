"""Commands about money that may be spent: budget list, show, raise, set."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from crewlog.orchestrator.cli_options import HomeOption, OutputOption
from crewlog.orchestrator.cli_output import Output, load_config, plain, print_json, print_table, run_async, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from crewlog.orchestrator.client import Client
    from crewlog.projections.query_rows import BudgetView

ScopeArgument = Annotated[str, typer.Argument(metavar="SCOPE|RUN", help="A scope as `budget list` prints it; or a run: its id, the first characters, or -.")]
HardOption = Annotated[str, typer.Option("--hard", metavar="USD", help="The new hard limit, such as 2.50; higher than it is.")]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why; recorded with the change.")]
ActorOption = Annotated[str, typer.Option("--as", metavar="NAME", help="Who changes it; else CREWLOG_USER.")]
SoftOption = Annotated[str | None, typer.Option("--soft", metavar="USD", help="Warn from here on; without it, from 70 % of the hard limit.")]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    budget = typer.Typer(help="What may be spent, and what is spent: per run, tree of tasks, agent kind, user, tenant.", no_args_is_help=True)
    budget.command("list")(run_async(list_budgets))
    budget.command("show")(run_async(show_budget))
    budget.command("raise")(run_async(raise_budget))
    budget.command("set")(run_async(set_budget))
    app.add_typer(budget, name="budget")


async def list_budgets(
    every: Annotated[bool, typer.Option("--all", help="Also those without a limit, of runs that ended, and of past days.")] = False,
    home: HomeOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List budgets with their limits, what is spent and what is reserved for calls under way."""
    from crewlog.orchestrator.client import Client

    async with Client.connect(load_config(home)) as client:
        found = await client.budgets.scopes(every=every)
    _print(found, output)
    if not found and output is Output.TABLE:
        say("nothing is limited; set limits with CREWLOG_BUDGETS, or for one run: crewlog submit 'GOAL' --budget 0.50")


async def show_budget(what: ScopeArgument = "-", home: HomeOption = None, output: OutputOption = Output.TABLE) -> None:
    """Show one budget, or all budgets that a run is charged to."""
    from crewlog.orchestrator.cli_run import hold_text
    from crewlog.orchestrator.client import Client

    async with Client.connect(load_config(home)) as client:
        if "/" in what:
            found, hold = [await client.budgets.show(what)], None
        else:
            run = await client.run(await client.find_run(what))
            found, hold = await client.budgets.of_run(run.run_id), run.hold
    _print(found, output)
    if output is Output.TABLE:
        if hold is not None:
            say(hold_text(hold))
        for budget in found:
            if budget.changed_at is not None:
                say(f"{budget.scope} was changed {budget.changed_at:%Y-%m-%d %H:%M} by {budget.changed_by}: {budget.reason or 'no reason given'}")


async def raise_budget(
    what: ScopeArgument,
    hard: HardOption,
    soft: SoftOption = None,
    reason: ReasonOption = "",
    actor: ActorOption = "",
    home: HomeOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Raise the hard limit of a budget; runs that it held go on."""
    from crewlog.orchestrator.client import Client
    from crewlog.schemas.money import parse_usd

    hard_micro_usd, soft_micro_usd = parse_usd(hard), None if soft is None else parse_usd(soft)
    async with Client.connect(load_config(home)) as client:
        scope = what if "/" in what else await _scope_of_run(client, what)
        budget = await client.budgets.raise_limit(scope, hard_micro_usd=hard_micro_usd, soft_micro_usd=soft_micro_usd, reason=reason, actor=actor)
    _changed(budget, output)


async def set_budget(
    scope: Annotated[str, typer.Argument(metavar="SCOPE", help="A scope as `budget list --all` prints it.")],
    hard: Annotated[str, typer.Option("--hard", metavar="USD", help="The hard limit, such as 2.50; 0 lets nothing be spent; none is no limit.")],
    soft: SoftOption = None,
    reason: ReasonOption = "",
    actor: ActorOption = "",
    home: HomeOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Set the limits of a budget, upwards or downwards; calls under way are not stopped."""
    from crewlog.orchestrator.client import Client
    from crewlog.schemas.money import parse_usd

    hard_micro_usd, soft_micro_usd = None if hard == "none" else parse_usd(hard), None if soft is None else parse_usd(soft)
    async with Client.connect(load_config(home)) as client:
        budget = await client.budgets.set_limit(scope, hard_micro_usd=hard_micro_usd, soft_micro_usd=soft_micro_usd, reason=reason, actor=actor)
    _changed(budget, output)


def _changed(budget: BudgetView, output: Output) -> None:
    from crewlog.schemas.usage import format_usd

    if output is Output.JSON:
        print_json({**plain(budget), "is_over_soft": budget.is_over_soft})
        return
    limit = "not limited" if budget.hard_micro_usd is None else f"limited to {format_usd(budget.hard_micro_usd)}"
    used = format_usd(budget.spent_micro_usd + budget.reserved_micro_usd)
    say(f"{budget.scope} is {limit} now, {used} of it is used; runs that it held go on if that is enough")


async def _scope_of_run(client: Client, name: str) -> str:
    """Name the budget of a run; refuse when it is another one that holds the run, since raising this one would not help."""
    from crewlog.schemas.budget import run_scope
    from crewlog.schemas.errors import ContractError
    from crewlog.schemas.ids import RunId

    run = await client.run(await client.find_run(name))
    scope = run_scope(RunId(run.run_id))
    if run.hold is not None and run.hold.scope != scope:
        raise ContractError(f"run {run.run_id} is held by another budget than its own\nname it: crewlog budget raise {run.hold.scope} --hard USD")
    return scope


def read_budget(hard: str | None, soft: str | None) -> dict[str, int]:
    """Read the amounts of `submit --budget --soft`.

    Raises:
        ContractError: one is no amount, nothing could be spent, or the warning would come behind the limit.
    """
    from crewlog.schemas.errors import ContractError
    from crewlog.schemas.money import parse_usd

    given = {name: parse_usd(text) for name, text in (("hard_micro_usd", hard), ("soft_micro_usd", soft)) if text is not None}
    if given.get("hard_micro_usd") == 0:
        raise ContractError("a budget of 0 lets no model be asked that costs anything; give an amount such as 0.50, or leave --budget out")
    if hard is not None and given.get("soft_micro_usd", 0) > given["hard_micro_usd"]:
        raise ContractError(f"--soft {soft} is above --budget {hard}: it would never warn in time")
    return given


def _print(found: Sequence[BudgetView], output: Output) -> None:
    from crewlog.schemas.usage import format_usd

    if output is Output.JSON:
        print_json([{**plain(budget), "is_over_soft": budget.is_over_soft} for budget in found])
        return

    def limit(micro_usd: int | None) -> str:
        return "-" if micro_usd is None else format_usd(micro_usd)

    def remark(budget: BudgetView) -> str:
        held = f"holds {budget.runs_held} run{'s' if budget.runs_held > 1 else ''}" if budget.runs_held else ""
        return held or ("over its soft limit" if budget.is_over_soft else "")

    def row(b: BudgetView) -> list[str]:
        return [b.scope, limit(b.hard_micro_usd), limit(b.soft_micro_usd), format_usd(b.spent_micro_usd), format_usd(b.reserved_micro_usd), remark(b)]

    if found:
        print_table(["SCOPE", "LIMIT", "WARN AT", "SPENT", "RESERVED", ""], map(row, found), right=frozenset({"LIMIT", "WARN AT", "SPENT", "RESERVED"}))
