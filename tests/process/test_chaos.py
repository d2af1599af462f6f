"""`crewlog chaos` in its short mode: a real crew is struck, keeps its promises, and the report says what that is worth."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from support.live_crew import CLI


def chaos(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the command in an environment that names another crew's servers, which it must leave alone."""
    env = {**os.environ, "CREWLOG_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nowhere", "CREWLOG_NATS_URL": "nats://nobody@127.0.0.1:1"}
    done = subprocess.run([*CLI, "chaos", *arguments], capture_output=True, text=True, env=env, timeout=250, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_a_crew_that_is_struck_keeps_its_promises() -> None:
    done = chaos("--seed", "7", "--kills", "16", "--seconds", "30", "--runs", "10", "-o", "json")
    report = json.loads(done.stdout)
    assert report["violations"] == []
    assert report["home"] is None
    assert sum(report["kills"].values()) + sum(report["stops"].values()) >= 4, "it was struck"
    assert report["accepted"] == sum(report["ended"].values()) == report["audit"]["replays"] > 5
    assert report["effects"] > 10
    assert report["audit"]["charged_micro_usd"] > 0
    assert "seed 7" in done.stderr


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    assert "is not empty" in chaos("--home", str(tmp_path), code=2).stderr
    assert "there are agents, orchestrators" in chaos("--target", "nobody", code=2).stderr
