"""Goals that recur, on the command line of a real crew: added, listed, run now, paused, resumed, removed; and one that comes due by itself."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from support.live_crew import DEMO, LiveCrew

from crewlog.events.bus import Message
from crewlog.events.nats_bus import NatsBus
from crewlog.orchestrator.client import Client
from crewlog.schemas.ids import RunId

SHAPE = ["name", "status", "cron", "zone", "catch_up", "goal", "next_us", "last"]
GOAL = "How many rows has penguins.csv?"
HALF_A_YEAR_AWAY = f"0 7 1 {(datetime.now(UTC).month + 5) % 12 + 1} *"
"""Not due while a test looks, at whatever hour of whatever day that is."""


@pytest.fixture
def name() -> str:
    return f"t-{uuid4().hex[:8]}"


def add(crew: LiveCrew, name: str, *more: str | Path, code: int = 0) -> Any:
    arguments = ("schedule", "add", name, GOAL, "--type", "data", *more)
    return crew.json(*arguments) if code == 0 else crew.run(*arguments, code=code).stderr


def the(crew: LiveCrew, name: str) -> Any:
    return next((schedule for schedule in crew.json("schedule", "list") if schedule["name"] == name), None)


async def test_a_schedule_is_kept_run_and_removed(crew: LiveCrew, client: Client, name: str) -> None:
    terms = ("--cron", HALF_A_YEAR_AWAY, "--tz", "Europe/Berlin", "--attach", DEMO / "penguins.csv")
    added = add(crew, name, *terms)
    assert list(added) == SHAPE
    assert (added["status"], added["zone"], added["catch_up"], added["last"]) == ("active", "Europe/Berlin", "one", None)
    assert added == add(crew, name, *terms), "the same again is no news"
    assert f"another schedule {name}" in add(crew, name, "--cron", "0 8 * * *", code=5)
    table = crew.run("schedule", "list").stdout
    assert "07:00 CE" in next(line for line in table.splitlines() if line.startswith(name))

    run_id = RunId(crew.json("schedule", "run-now", name)["run_id"])
    run = await client.wait(run_id)
    assert run.status == "completed"
    assert the(crew, name)["last"]["run_id"] == str(run_id)

    assert crew.json("schedule", "pause", name, "--reason", "holidays")["status"] == "paused"
    assert the(crew, name)["next_us"] is None
    assert crew.json("schedule", "resume", name)["status"] == "active"
    assert crew.json("schedule", "remove", name)["status"] == "removed"
    assert the(crew, name) is None
    assert "matches nothing" in crew.run("schedule", "pause", name, code=3).stderr


def test_what_is_not_understood_is_refused(crew: LiveCrew, name: str) -> None:
    assert "five fields" in add(crew, name, "--cron", "daily", code=2)
    assert "no time zone" in add(crew, name, "--cron", "0 7 * * *", "--tz", "Europe/Atlantis", code=2)
    assert the(crew, name) is None


@pytest.mark.long  # it waits for the next minute
async def test_a_goal_that_is_due_is_worked_on_by_itself(crew: LiveCrew, client: Client, name: str) -> None:
    ended: asyncio.Queue[Message] = asyncio.Queue()
    bus = await NatsBus.connect(crew.run("nats", "url").stdout.strip(), name="test")
    try:
        await bus.subscribe("outcomes.default.*", ended.put)
        add(crew, name, "--cron", "* * * * *", "--attach", DEMO / "penguins.csv")
        async with asyncio.timeout(120):
            outcome = await ended.get()
        last = the(crew, name)["last"]
    finally:
        crew.run("schedule", "remove", name)
        await bus.close()
    assert (outcome.subject, last["error"]) == (f"outcomes.default.{last['run_id']}", "")
    assert (await client.wait(RunId(last["run_id"]))).status == "completed"
