"""Runs move between homes as files: exported, imported into another database, archived, and back to be taken back; the log verifies all along."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from support.audit import ended_well
from support.gate import a_gate, gated_agents
from support.gated_agent import KIND
from support.live_crew import DEMO, LiveCrew
from support.played import histories, quiet_log

from crewlog.events.memory_store import MemoryStore
from crewlog.orchestrator.bundle import collect, pack_bundle
from crewlog.orchestrator.client import Client
from crewlog.orchestrator.replay import replay
from crewlog.schemas.ids import RunId
from crewlog.schemas.payload import content_hash


def test_a_run_is_archived_and_read_by_another_crew(crew: LiveCrew, tmp_path: Path) -> None:
    run = crew.json("submit", "Summarise the mean body mass by species.", "--attach", DEMO / "penguins.csv", "--wait", "--timeout", "90")["run_id"]
    before = crew.json("replay", run, "--verify")
    assert "say so beforehand" in crew.run("archive", "--older-than", "0s", "--out", tmp_path, "--limit", "1", code=2).stderr
    done = crew.json("archive", "--older-than", "0s", "--out", tmp_path, "--limit", "1", "--yes")
    (archived,) = done["archived"]
    assert (archived["run_id"], archived["events"], done["stayed"]) == (run, before["events"], [])

    checked = crew.json("verify")
    assert checked["faults"] == []
    assert (run, before["events"]) in [(found["run_id"], found["events"]) for found in checked["archived"]]
    assert crew.json("replay", archived["file"], "--verify") == before

    table = content_hash((DEMO / "penguins.csv").read_bytes())
    assert (tmp_path / "files" / table).is_file()
    kept = crew.home / "artifacts" / table[:2] / table
    kept.unlink()
    back = crew.json("import", archived["file"])
    assert (back["state_hash"], back["files"], back["files_missing"]) == (before["state_hash"], archived["files"], 0)
    assert kept.read_bytes() == (DEMO / "penguins.csv").read_bytes()
    assert crew.json("replay", run, "--verify") == before
    crew.run("export", run, "--out", tmp_path / "whole.crewlog")
    kept.unlink()
    assert crew.json("import", tmp_path / "whole.crewlog")["events"] == 0, "only its files were missing"
    assert kept.read_bytes() == (DEMO / "penguins.csv").read_bytes()


def test_a_run_of_another_crew_is_read_in_and_replays_here(crew: LiveCrew, tmp_path: Path) -> None:
    log = quiet_log()
    bundle = max((asyncio.run(collect(MemoryStore(log), history.run_id)) for history in histories(log)), key=lambda b: len(b.events))
    there = asyncio.run(replay(bundle.store(), bundle.run_id))
    file, run = tmp_path / "run.crewlog", str(bundle.run_id)
    file.write_bytes(pack_bundle(bundle))
    imported = crew.json("import", file)
    assert (imported["run_id"], imported["events"], imported["state_hash"]) == (run, there.events, there.state_hash)
    assert crew.json("replay", run, "--verify")["divergence"] is None
    assert "is in this log already" in crew.run("import", file, code=2).stderr
    told = crew.run("export", "--as", "cloudevents", "--tenant", "default", "--out", "-").stdout.splitlines()
    assert sum(f'"runid":"{run}"' in line for line in told) == there.events


async def test_a_run_is_rolled_back_once_the_archived_run_that_came_from_it_is_back(crew: LiveCrew, client: Client, tmp_path: Path) -> None:
    async def rented(parent: RunId | None = None) -> RunId:
        task = replace(await client.prepare("rent finish", kind=KIND), parent_task_id=parent)
        run_id = (await client.submit(task)).run_id
        await ended_well(client, [run_id])
        return run_id

    async with a_gate() as gate, gated_agents(crew, gate) as agents:
        gate.open()
        await agents.start()
        first = await rented()
        second = await rented(first)
        (archived,) = (await asyncio.to_thread(crew.json, "archive", "--older-than", "0s", "--out", tmp_path, "--limit", "1", "--yes"))["archived"]
        assert archived["run_id"] == str(second)
        third = await rented(first)
        begin = ("rollback", str(first), "--reason", "wrong venue")
        refused = (await asyncio.to_thread(crew.run, *begin, code=2)).stderr
        assert f"run {first} cannot be rolled back as long as a run of its family is archived" in refused
        assert f"crewlog import FOLDER/{second}.crewlog  brings back run {second}" in refused
        assert f"run {second} cannot be rolled back" in (await asyncio.to_thread(crew.run, "rollback", str(second), "--reason", "x", code=2)).stderr
        assert [call.tool for call in gate.seen] == ["rent"] * 3, "nothing was taken back"
        await asyncio.to_thread(crew.json, "import", archived["file"])
        done = await asyncio.to_thread(crew.json, *begin)
        assert [item["run_id"] for item in done["undone"]] == [str(third), str(second), str(first)], "the last one first, wherever it was meanwhile"
        assert [call.tool for call in gate.seen] == ["rent"] * 3 + ["leave"] * 3
