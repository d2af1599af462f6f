"""The command about money: what calls to models cost, by whatever one asks, and what they would have cost with other prices."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from crewlog.orchestrator.cli_options import HomeOption, OutputOption
from crewlog.orchestrator.cli_output import Output, load_config, plain, print_json, run_async

if TYPE_CHECKING:
    from datetime import date

    from crewlog.orchestrator.client import Client
    from crewlog.projections.queries import CostColumn, CostFilter
    from crewlog.schemas.price_table import PriceTable

_COLUMNS: Final[dict[str, CostColumn]] = {
    "agent": "kind",
    "model": "model",
    "provider": "provider",
    "run": "run_id",
    "task": "task_id",
    "step": "key",
    "user": "user_name",
    "tenant": "tenant",
    "day": "day",
}
LISTED: Final = "genai-prices"
"""Names the price list that comes with crewlog, where a file is expected."""


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(run_async(costs))


async def costs(
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="Only this run (@last for the newest); without it, all runs.")] = None,
    by: Annotated[str, typer.Option("--by", help=f"What to sum up by: {', '.join(_COLUMNS)}; several with commas.")] = "agent,model",
    since: Annotated[str | None, typer.Option("--since", help="From this day (UTC) on: 2026-11-01, or 7d for the last seven days.")] = None,
    until: Annotated[str | None, typer.Option("--until", help="Up to and with this day (UTC).")] = None,
    user: Annotated[str | None, typer.Option("--user", help="Only runs of this user.")] = None,
    tenant: Annotated[str | None, typer.Option("--tenant", help="Another tenant than the configured one.")] = None,
    all_tenants: Annotated[bool, typer.Option("--all-tenants", help="Runs of every tenant.")] = False,
    reprice: Annotated[
        str | None,
        typer.Option("--reprice", metavar="TABLE|genai-prices", help="Say what the same calls would have cost: by a JSON price table, or today's list."),
    ] = None,
    home: HomeOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show tokens and money."""
    from crewlog.events.clock import SystemClock
    from crewlog.orchestrator.client import Client
    from crewlog.projections.queries import CostFilter

    columns, config = _columns(by), load_config(home)
    today_us = SystemClock().now_us()
    table = None if reprice is None or reprice == LISTED else _read_table(Path(reprice))
    async with Client.connect(config) as client:
        of = CostFilter(
            run_id=await client.find_run(run) if run else None,
            tenant=tenant if all_tenants or run else tenant or config.tenant,  # a run names its tenant itself
            user=user,
            since=_day("--since", since, today_us),
            until=_day("--until", until, today_us),
        )
        if reprice is None:
            await _show_costs(client, columns, of, output)
        else:
            await _show_repriced(client, columns, of, table, output)


async def _show_costs(client: Client, columns: list[CostColumn], of: CostFilter, output: Output) -> None:
    from crewlog.orchestrator.cost_text import print_costs

    found = await client.queries().costs(columns, of)
    if output is Output.JSON:
        print_json([plain(cost) for cost in found])
    else:
        print_costs(found)


async def _show_repriced(client: Client, columns: list[CostColumn], of: CostFilter, table: PriceTable | None, output: Output) -> None:
    from crewlog.orchestrator.cost_text import print_repriced
    from crewlog.orchestrator.reprice import reprice

    found = await reprice(client.queries().calls(columns, of), table)
    if output is Output.JSON:
        print_json([plain(group) for group in found])
    else:
        print_repriced(found)


def _columns(by: str) -> list[CostColumn]:
    from crewlog.schemas.errors import ContractError

    names = by.split(",")
    unknown = [name for name in names if name not in _COLUMNS]
    if unknown:
        raise ContractError(f"--by {by}: costs can be summed up by {', '.join(_COLUMNS)}")
    return [_COLUMNS[name] for name in dict.fromkeys(names)]


def _day(option: str, text: str | None, now_us: int) -> date | None:
    from datetime import UTC, date, datetime, timedelta

    from crewlog.schemas.errors import ContractError

    if text is None:
        return None
    if days := re.fullmatch(r"(\d{1,5})d", text):
        return datetime.fromtimestamp(now_us / 1e6, UTC).date() - timedelta(days=int(days[1]))
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ContractError(f"{option} {text}: write a day like 2026-11-01, or a number of days back like 7d") from None


def _read_table(path: Path) -> PriceTable:
    from crewlog.schemas.errors import ContractError
    from crewlog.schemas.price_table import parse_price_table

    try:
        return parse_price_table(path.read_bytes())
    except OSError as error:
        raise ContractError(f"--reprice {path}: the table cannot be read: {error.strerror}; give a JSON file, or {LISTED}") from None
