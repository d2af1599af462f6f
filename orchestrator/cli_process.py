"""Commands that are one process of the crew (agent, orchestrator, projector), and those for the servers (db, nats)."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from crewlog.orchestrator import cli_work
from crewlog.orchestrator.cli_options import HomeOption, OutputOption
from crewlog.orchestrator.cli_output import Output, load_config, print_json, run_async, say


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(run_async(agent, works=True))
    app.command()(run_async(orchestrator, works=True))
    app.command()(run_async(projector, works=True))
    db = typer.Typer(help="The database: its schema, its views, its address.", no_args_is_help=True)
    db.command()(run_async(migrate))
    db.command()(run_async(rebuild))
    db.command()(run_async(url))
    app.add_typer(db, name="db")
    nats = typer.Typer(help="The NATS server: its address.", no_args_is_help=True)
    nats.command("url")(run_async(nats_url))
    app.add_typer(nats, name="nats")


async def agent(
    kind: Annotated[str, typer.Argument(metavar="KIND|MODULE:ATTR", help="A built-in kind, or your own AgentSpec in a module here.")],
    *,
    shadow: Annotated[bool, typer.Option("--shadow", help="Take the work of shadows (CREWLOG_SHADOW), and no other.")] = False,
    home: HomeOption = None,
) -> None:
    """Run one agent process: planner, research, code, data, communicate, or your own kind."""
    await cli_work.agent(kind, home, shadow=shadow)


async def orchestrator(home: HomeOption = None) -> None:
    """Run one orchestrator process. Any number may run at once."""
    await cli_work.orchestrator(home)


async def projector(home: HomeOption = None) -> None:
    """Run one projector process: it keeps the views and relays the log to events.>."""
    await cli_work.projector(home)


async def migrate(home: HomeOption = None, output: OutputOption = Output.TABLE) -> None:
    """Bring the database to the shape this program needs, and set the logins of all roles.

    The address in CREWLOG_DATABASE_URL must be that of the owner; passwords of the roles come from CREWLOG_<ROLE>_PASSWORD. Without an
    address the database of a running `crewlog up` is meant.
    """
    from crewlog.events.grants import ROLES
    from crewlog.events.migrate import connect, open_to_public
    from crewlog.orchestrator.doctor import OPEN_TO_PUBLIC_HINT
    from crewlog.orchestrator.endpoints import owner_url
    from crewlog.orchestrator.servers import migrate_all

    config = load_config(home)
    given = {role: os.environ[f"{role.upper()}_PASSWORD"] for role in ROLES if os.environ.get(f"{role.upper()}_PASSWORD")}
    applied = await migrate_all(owner_url(config), given)
    connection = await connect(owner_url(config))
    try:
        public = await open_to_public(connection)
    finally:
        await connection.close()
    if output is Output.JSON:
        print_json({"applied": applied, "logins": sorted(given), "open_to_public": public})
    else:
        say("\n".join(f"applied {name}" for name in applied) or "nothing to apply")
        say(f"logins set: {', '.join(sorted(given)) or 'none'}")
        if public:
            say(f"any login of the server may {', '.join(public)}: {OPEN_TO_PUBLIC_HINT}")


async def rebuild(home: HomeOption = None, output: OutputOption = Output.TABLE) -> None:
    """Fold the whole log again, compare, and correct the views where they differ."""
    from crewlog.events.clock import SystemClock
    from crewlog.events.memory import settle_memory
    from crewlog.events.postgres_store import PostgresStore
    from crewlog.projections.rebuild import rebuild as rebuild_views

    address = cli_work.process_config(home, "projector").database_url
    assert address is not None
    store = await PostgresStore.open(address.get_secret_value(), actor="projector@rebuild", clock=SystemClock())
    settle_memory()
    try:
        done = await rebuild_views(address.get_secret_value(), store, progress=lambda at, of: say(f"position {at} of {of}"))
    finally:
        await store.close()
    if output is Output.JSON:
        print_json({"projections": list(done.projections), "events": done.events, "position": done.position, "corrected": done.corrected})
    else:
        say(f"folded {done.events} events again, up to position {done.position}, into {', '.join(done.projections)}")
        say("\n".join(f"corrected {rows} rows of {table}" for table, rows in done.corrected.items()) or "nothing had to be corrected")


async def url(
    reader: Annotated[bool, typer.Option("--reader", help="The login that reads the public views and nothing else, for notebooks and dashboards.")] = False,
    home: HomeOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Print the address for psql: a login that reads every view. Use it as: psql "$(crewlog db url)"."""
    from crewlog.orchestrator.endpoints import database_url

    address = database_url(load_config(home), "reader" if reader else "operator")
    if output is Output.JSON:
        print_json({"url": address})
    else:
        typer.echo(address)
        say("this login reads the public views, without a prefix" if reader else "this login reads everything; the public views are in schema crewlog")


async def nats_url(
    home: HomeOption = None,
    client: Annotated[bool, typer.Option("--client", help="A login that only submits, asks for runs and watches; answers come under _INBOX_client.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Print the address for NATS clients of any language: an operator's login, which may also decide, steer and raise limits."""
    from crewlog.orchestrator import endpoints

    address = endpoints.nats_url(load_config(home), "client" if client else "operator")
    if output is Output.JSON:
        print_json({"url": address.get_secret_value()})
    else:
        typer.echo(address.get_secret_value())
        if client:
            say("connect with the inbox prefix _INBOX_client, or no answer to a request is heard")
