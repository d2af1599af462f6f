"""What the README shows works as it stands: a specialist of one's own, plain NATS clients, requests with their verdict."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from support.live_crew import LiveCrew, own_agent

from crewlog.orchestrator.client import Client

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(crew: LiveCrew, name: str, *login: str) -> str:
    url = crew.run("nats", "url", *login).stdout.strip()
    return subprocess.run([sys.executable, EXAMPLES / name, url], env=crew.env, capture_output=True, text=True, timeout=60, check=True).stdout


def test_a_client_that_knows_only_json_gets_its_outcome(crew: LiveCrew) -> None:
    lines = example(crew, "publish_task.py", "--client").splitlines()
    assert lines[lines.index("RunCompleted") - 1] == "TaskReviewed"
    assert "answer" in json.loads("\n".join(lines[lines.index("RunCompleted") + 1 :]))


@pytest.mark.parametrize("login", [(), ("--client",)])
def test_a_request_is_answered_with_the_verdict(crew: LiveCrew, login: tuple[str, ...]) -> None:
    decoder, text, replies = json.JSONDecoder(), example(crew, "request_reply.py", *login), []
    while text.strip():
        reply, end = decoder.raw_decode(text.lstrip())
        replies.append(reply)
        text = text.lstrip()[end:]
    good, bad = replies
    assert (good["ok"], good["status"]) == (True, "accepted")
    assert bad["ok"] is False
    assert {p["pointer"] for p in bad["error"]["problems"]} >= {"/task_id", "/objective"}
    crew.run("watch", good["run_id"])


def test_a_specialist_of_ones_own_gets_tasks_and_steps_of_plans(crew: LiveCrew, tmp_path: Path) -> None:
    with own_agent(crew, "shouter:AGENT", EXAMPLES):
        assert len(crew.agents("shouter")) == 1
        alone: dict[str, Any] = crew.json("submit", 'Shout "hello crew"', "--type", "shouter", "--wait", "--timeout", "60")
        assert "HELLO CREW!" in alone["answer"]
        plan = tmp_path / "plan.json"
        plan.write_text(json.dumps({"steps": [{"key": "loud", "type": "shouter", "objective": 'Shout "in a plan"'}]}))
        assert "IN A PLAN!" in crew.json("submit", "--file", plan, "--wait", "--timeout", "60")["answer"]


async def test_an_effect_is_listed_until_a_rollback_takes_it_back(crew: LiveCrew, client: Client, tmp_path: Path) -> None:
    rooms = tmp_path / "rooms.sqlite"

    def booked() -> list[tuple[int, str]]:
        with closing(sqlite3.connect(rooms)) as connection:
            return connection.execute("SELECT id, room FROM bookings").fetchall()

    with own_agent(crew, "rooms:AGENT", EXAMPLES, ROOMS_DB=str(rooms)):
        first, again = (crew.json("submit", 'Book "Blue room"', "--type", "rooms", "--wait", "--timeout", "60") for _ in range(2))
        assert booked() == [(1, "Blue room")]
        (done,) = crew.json("effects", first["run_id"])
        assert (done["tool"], done["status"], done["resource"], done["is_open"]) == ("book_room", "ok", "booking 1", True)
        assert crew.json("effects", again["run_id"]) == [], "it got the outcome of the first"
        task = await client.prepare('Book "Red room"', kind="rooms")
        came_of_it = await client.submit(replace(task, parent_task_id=UUID(first["run_id"])))
        assert (await client.wait(came_of_it.run_id)).status == "completed"
        assert booked() == [(1, "Blue room"), (2, "Red room")]
        rolled = crew.json("rollback", first["run_id"], "--reason", "the meeting is off", "--as", "maria")
        undone = [(effect["run_id"], effect["resource"]) for effect in rolled["undone"]]
        assert undone == [(str(came_of_it.run_id), "booking 2"), (first["run_id"], "booking 1")]
        assert booked() == []
        (gone,) = crew.json("effects", first["run_id"])
        assert (gone["is_open"], gone["undone_in"]) == (False, rolled["rollback_id"])
        assert crew.json("effects", first["run_id"], "--open") == []
        report: dict[str, Any] = crew.json("replay", rolled["rollback_id"], "--verify")
        assert report["divergence"] is None


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("nowhere:AGENT", "cannot import 'nowhere'"),
        ("mine:ABSENT", "ABSENT is not there"),
        ("mine:NUMBER", "NUMBER is of type int"),
        ("nokind", "neither a built-in kind nor module:ATTRIBUTE"),
    ],
)
def test_a_specialist_that_cannot_be_loaded_says_why(crew: LiveCrew, tmp_path: Path, target: str, says: str) -> None:
    (tmp_path / "mine.py").write_text("NUMBER = 1\n")
    assert says in crew.run("agent", target, cwd=tmp_path, code=2).stderr
