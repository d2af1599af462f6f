"""What the README shows works as it stands: a specialist of one's own, plain NATS clients, requests with their verdict."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.live_crew import LiveCrew, own_agent

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(crew: LiveCrew, name: str) -> str:
    url = crew.run("nats", "url").stdout.strip()
    return subprocess.run([sys.executable, EXAMPLES / name, url], env=crew.env, capture_output=True, text=True, timeout=60, check=True).stdout


def test_a_client_that_knows_only_json_gets_its_outcome(crew: LiveCrew) -> None:
    lines = example(crew, "publish_task.py").splitlines()
    assert lines[lines.index("RunCompleted") - 1] == "TaskReviewed"
    assert "answer" in json.loads("\n".join(lines[lines.index("RunCompleted") + 1 :]))


def test_a_request_is_answered_with_the_verdict(crew: LiveCrew) -> None:
    decoder, text, replies = json.JSONDecoder(), example(crew, "request_reply.py"), []
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
        assert "shouter" in [agent["kind"] for agent in crew.json("status")["agents"]]
        alone: dict[str, Any] = crew.json("submit", 'Shout "hello crew"', "--type", "shouter", "--wait", "--timeout", "60")
        assert "HELLO CREW!" in alone["answer"]
        plan = tmp_path / "plan.json"
        plan.write_text(json.dumps({"steps": [{"key": "loud", "type": "shouter", "objective": 'Shout "in a plan"'}]}))
        assert "IN A PLAN!" in crew.json("submit", "--file", plan, "--wait", "--timeout", "60")["answer"]


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("nowhere:AGENT", "cannot import 'nowhere'"),
        ("mine:ABSENT", "ABSENT is not there"),
        ("mine:NUMBER", "NUMBER is a int"),
        ("nokind", "neither a built-in kind nor module:ATTRIBUTE"),
    ],
)
def test_a_specialist_that_cannot_be_loaded_says_why(crew: LiveCrew, tmp_path: Path, target: str, says: str) -> None:
    (tmp_path / "mine.py").write_text("NUMBER = 1\n")
    assert says in crew.run("agent", target, cwd=tmp_path, code=2).stderr
