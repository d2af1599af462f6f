"""The command line against a real crew: fork, golden, eval. Shapes of `-o json` are a contract."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from support.live_crew import LiveCrew


@pytest.fixture(scope="module")
def run(crew: LiveCrew, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run of one task that has ended: there is no table to count."""
    notes = tmp_path_factory.mktemp("notes") / "notes.txt"
    notes.write_text(f"Nothing but words: {uuid4()}.\n")
    shown: dict[str, Any] = crew.json("submit", "Count the rows", "--type", "data", "--attach", notes, "--wait", "--timeout", "90")
    return shown


def test_a_fork_goes_on_from_an_event_and_is_listed_with_its_parent(crew: LiveCrew, run: dict[str, Any]) -> None:
    forked = crew.json("fork", run["run_id"], "--at", "7", "--reason", "to see")
    assert set(forked) == {"run_id", "parent", "at", "tasks"}
    assert (forked["parent"], forked["at"], forked["tasks"]) == (run["run_id"], 7, ["task"])
    shown = crew.json("watch", forked["run_id"])
    assert (shown["status"], shown["answer"]) == ("completed", run["answer"])
    assert crew.json("replay", forked["run_id"], "--verify")["divergence"] is None
    refused = crew.run("fork", run["run_id"], "--at", "999", code=3)
    assert "has events 1 to" in refused.stderr


def test_a_run_is_kept_as_a_golden_task_and_played(crew: LiveCrew, run: dict[str, Any], tmp_path: Path) -> None:
    kept = crew.json("golden", "record", run["run_id"], "--to", tmp_path / "count.golden.json")
    assert set(kept) == {"run_id", "name", "files"}
    (verdict,) = crew.json("golden", "run", tmp_path, "--strict")
    assert (verdict["name"], verdict["passed"], verdict["differences"], verdict["drift"]) == ("count", True, [], [])
    (lived,) = crew.json("golden", "run", tmp_path, "--live")
    assert lived["passed"], lived


def test_finished_runs_are_tried_again_and_their_budget_is_listed(crew: LiveCrew, run: dict[str, Any]) -> None:
    found = crew.json("eval", "--last", "1", "--type", "data", "--model", "offline", "--max-usd", "0.25", "--check", "false", code=1)
    assert set(found) == {"name", "summary", "pairs", "skipped"}
    assert [(pair["run_id"], pair["diverges"], pair["check"], pair["is_worse"]) for pair in found["pairs"]] == [(run["run_id"], False, "failed", True)]
    assert found["summary"]["diverging"]["high"] > 0.5  # one pair says little
    (budget,) = [row for row in crew.json("budget", "list", "--all") if row["scope"] == f"trial/default/{found['name']}"]
    assert (budget["kind"], budget["hard_micro_usd"]) == ("trial", 250_000)
    assert "what is to be different?" in crew.run("eval", code=2).stderr
