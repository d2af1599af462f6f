"""Operators steer a real crew from the command line: what is paused or in quarantine is so everywhere, and says by whom."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime

from support.live_crew import DEMO, LiveCrew

from crewlog.events.bus import Message
from crewlog.events.clock import SystemClock
from crewlog.events.controls import tenant_scope
from crewlog.events.credentials import load_credentials
from crewlog.events.nats_bus import NatsBus
from crewlog.events.poke import Poke
from crewlog.events.postgres_store import PostgresStore
from crewlog.events.store import AppendRequest, Write
from crewlog.orchestrator.home import Home
from crewlog.schemas.ids import CONTROL_STREAM
from crewlog.schemas.system_events import ScopeResumed

GOAL = ("submit", "Count the rows of the table", "--type", "data", "--attach", str(DEMO / "penguins.csv"))
WHO = ("--as", "ada", "--reason", "incident 7")


def state_of(crew: LiveCrew, name: str) -> str:
    return next(str(process["state"]) for process in crew.json("status")["processes"] if process["name"] == name)


def test_a_run_waits_with_its_tenant_and_its_results_wait_for_their_release(crew: LiveCrew) -> None:
    assert crew.json("pause", "--tenant", "default", *WHO) == {"scope": "tenant/default", "changed": True}
    try:
        run_id = crew.run(*GOAL).stdout.strip()
        assert "tenant default is paused by ada since " in crew.run("why", run_id).stdout
        assert "crewlog resume --tenant default" in crew.run("resume", run_id, code=5).stderr
        assert "add --yes to terminate them" in crew.run("terminate", "--status", "paused", code=2).stderr
        [kept] = crew.json("quarantine", run_id, *WHO)
        assert (kept["status"], kept["changed"], kept["error"]) == ("paused", True, "")
    finally:
        crew.run("resume", "--tenant", "default")

    held = crew.run("watch", run_id, "--timeout", "60", code=6)
    assert f"crewlog release {run_id[:8]}" in held.stderr
    assert "344" not in held.stdout
    assert crew.json("release", run_id)[0]["status"] == "completed"
    assert "344" in crew.run("watch", run_id, "--timeout", "60").stdout
    assert f"run {run_id} is over: it is completed" in crew.run("terminate", run_id, code=5).stderr


async def test_a_drained_worker_leaves_and_stays_away_until_it_is_wanted_again(crew: LiveCrew) -> None:
    [drained] = crew.json("drain", "--kind", "communicate", "--wait", *WHO)

    assert drained["changed"] is True
    assert drained["worker"] not in {agent["worker"] for agent in crew.json("status")["agents"]}
    try:
        async with asyncio.timeout(90):  # from its last word to the end of its process
            while (state := state_of(crew, "communicate")) != "left":
                assert state in ("ready", "stopping"), "a process that starts again would never be seen as gone for good"
                await asyncio.sleep(0.1)
    finally:
        crew.run("scale", "communicate=1")
    assert len(crew.agents("communicate")) == 1


async def test_a_command_that_nobody_told_of_takes_effect_at_once_by_what_the_relay_tells(crew: LiveCrew) -> None:
    crew.run("pause", "--tenant", "default", *WHO)
    state = Home(crew.home).state()
    assert state is not None
    logins, clock = load_credentials(crew.home), SystemClock()
    url = logins.postgres_url("crewlog_orchestrator", state.database_port or 0)
    told: asyncio.Queue[Message] = asyncio.Queue()
    ear = await NatsBus.connect(logins.nats_url("operator", state.nats_port or 0), name="ear")
    await ear.subscribe("events.default.*.RunPaused", told.put)
    try:
        run_id = crew.run(*GOAL).stdout.strip()
        async with asyncio.timeout(60):
            while run_id not in (await told.get()).subject:  # the relay has just looked: unless it is poked, it looks again five seconds later
                pass
        bus = await NatsBus.connect(logins.nats_url("orchestrator", state.nats_port or 0), name="test")
        poke = Poke(bus)
        store = await PostgresStore.open(url, actor="nobody@test", clock=clock, on_commit=poke.notify)  # an orchestrator whose word of it is lost
        resumed_us = clock.now_us()
        await store.append(AppendRequest((Write(CONTROL_STREAM, (ScopeResumed(tenant_scope("default"), "ada"),)),), (clock.new_id(),), resumed_us))
        await store.close()
        await poke.close()
        await bus.close()
        crew.run("watch", run_id, "--timeout", "60")
    finally:
        crew.run("resume", "--tenant", "default")
        await ear.close()
    noted = next(event for event in map(json.loads, crew.run("events", run_id, "-o", "json").stdout.splitlines()) if event["type"] == "RunResumed")
    took_s = datetime.fromisoformat(noted["occurred_at"]).timestamp() - resumed_us / 1e6
    assert took_s < 4.5, "a sweep comes every ten seconds, a relay that is not poked looks every five"
