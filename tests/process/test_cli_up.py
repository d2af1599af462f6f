"""`crewlog up` and what can go wrong with it: started twice, a port that is taken, a home that cannot be written, killed at any time."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from support.live_crew import CLI, DEMO, LiveCrew, a_crew, only
from support.reaper import descendants

from crewlog.orchestrator.client import Client
from crewlog.orchestrator.home import Home

PROCESSES = {"orchestrator", "projector", "planner", "research", "code", "data", "communicate"}


async def until(condition: Callable[[], bool], within_s: float = 90.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():  # noqa: ASYNC110 — processes of others give no signal
            await asyncio.sleep(0.02)


def of_home(crew: LiveCrew) -> dict[int, str]:
    """All living processes below the test that belong to this crew."""
    state = Home(crew.home).state()
    ports = {str(port) for port in (state.database_port, state.nats_port) if port} if state else set()
    pids = {p.pid for p in state.processes} if state else set()
    return {pid: command for pid, command in descendants(os.getpid()).items() if pid in pids or str(crew.home) in command or any(p in command for p in ports)}


def test_a_second_up_names_the_first_and_leaves_it_alone(crew: LiveCrew) -> None:
    assert crew.process is not None
    second = crew.run("up", code=5)
    assert f"pid {crew.process.pid}" in second.stderr
    assert "crewlog down" in second.stderr
    assert {p["name"] for p in crew.json("status")["processes"]} >= PROCESSES


def test_a_home_that_cannot_be_written_is_said_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for home in (tmp_path / "file" / "home", Path("/proc/crewlog")):
        done = subprocess.run([*CLI, "up", "--home", home], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 2
        assert "cannot be written" in done.stderr
        assert "--home" in done.stderr


@pytest.mark.parametrize("part", ["nats", "postgres"])
def test_a_server_that_cannot_have_its_folder_leaves_the_other_one_stopped(part: str) -> None:
    with a_crew(start=False) as crew:
        (crew.home / part).touch()
        said = crew.run("up", code=2).stderr
        assert f"cannot write to {crew.home / part}" in said
        assert "Traceback" not in said
        assert of_home(crew) == {}
        (crew.home / part).unlink()
        crew.start(*only())


def test_a_taken_port_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    with a_crew(*only()) as crew:
        crew.stop()
        state = Home(crew.home).state()
        assert state is not None
        assert state.phase == "stopped"
        for port in (state.nats_port, state.database_port):
            with socket.create_server(("127.0.0.1", port or 0)):
                assert f"port {port}" in crew.run("up", code=2).stderr
        assert of_home(crew) == {}
        crew.start(*only())  # and the ports are the same as before, so that clients find it again
        again = Home(crew.home).state()
        assert again is not None
        assert (again.nats_port, again.database_port) == (state.nats_port, state.database_port)


async def test_nothing_survives_a_killed_supervisor_and_the_next_up_goes_on() -> None:
    with a_crew() as crew:
        run_id = crew.json("submit", "How many rows are there?", "--type", "data", "--attach", DEMO / "penguins.csv", "--wait")["run_id"]
        assert crew.process is not None
        assert len(of_home(crew)) >= len(PROCESSES) + 2
        crew.process.kill()
        crew.process.wait()
        crew.process = None
        await until(lambda: of_home(crew) == {})
        assert "no crew runs" in crew.run("runs", code=4).stderr
        crew.start(*only())
        assert crew.json("show", run_id)["status"] == "completed"
        assert crew.json("replay", run_id, "--verify")["divergence"] is None


async def test_ctrl_c_stops_in_order_and_a_second_one_at_once() -> None:
    with a_crew(*only("data")) as crew:
        assert crew.process is not None
        crew.process.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(crew.process.wait, 60) == 0
        log = crew.log()
        assert log.index("stopping: agents first") > log.index("ready: home")
        assert "Traceback" not in log
        assert of_home(crew) == {}
        crew.start(*only("data"))
        crew.process.send_signal(signal.SIGINT)
        crew.process.send_signal(signal.SIGINT)
        await asyncio.to_thread(crew.process.wait, 60)
        await until(lambda: of_home(crew) == {})
        crew.process = None


async def test_ctrl_c_while_it_starts_leaves_nothing() -> None:
    with a_crew(start=False) as crew:
        process = await asyncio.create_subprocess_exec(*CLI, "up", env=crew.env, stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE)
        assert process.stderr is not None
        assert b"first start" in await process.stderr.readline()
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(60):
            await process.communicate()
        assert process.returncode == 0
        await until(lambda: of_home(crew) == {})


async def test_a_killed_process_is_started_again_and_work_goes_on(crew: LiveCrew, client: Client) -> None:
    async def pid_of(name: str) -> int:
        return next(process.pid for process in await client.processes() if process.name == name) or 0

    async with asyncio.timeout(200):
        for name in ("data", "orchestrator", "projector"):
            before = await pid_of(name)
            os.kill(before, signal.SIGKILL)
            while await pid_of(name) in (0, before):  # noqa: ASYNC110 — the supervisor sends no signal
                await asyncio.sleep(0.02)
        while [worker.kind for worker in await client.workers()].count("data") != 1:  # noqa: ASYNC110 — the killed one could not say that it stops
            await asyncio.sleep(0.1)
    assert [agent["kind"] for agent in crew.json("status")["agents"]].count("data") == 1
    shown = crew.json("submit", "How many rows are there?", "--type", "data", "--attach", DEMO / "penguins.csv", "--wait", "--timeout", "90")
    assert shown["status"] == "completed"


async def test_agents_scale_while_it_runs_and_share_the_work(crew: LiveCrew) -> None:
    assert crew.json("scale", "research=3")["agents"]["research"] == 3
    try:
        async with crew.client() as client:
            runs = [await client.submit(f"What does the library say about topic {n}?", kind="research") for n in range(12)]
            for submitted in runs:
                await client.wait(submitted.run_id)
            starts = [r for s in runs async for r in client.events(s.run_id) if r.type == "TaskStarted"]
        assert len(starts) == len(runs), "each task is done once"
        assert len({json.loads(start.data)["worker"] for start in starts}) > 1
    finally:
        assert crew.json("scale", "research=1")["agents"]["research"] == 1
    assert [p["name"] for p in crew.json("status")["processes"] if p["kind"] == "research"] == ["research"]
    assert "cannot be" not in crew.run("scale", "nobody=2", code=2).stdout


def test_each_process_has_its_own_login_and_no_other_secret(crew: LiveCrew) -> None:
    for process in crew.json("status")["processes"]:
        environ = dict(item.partition("=")[::2] for item in Path(f"/proc/{process['pid']}/environ").read_text().split("\0"))
        assert environ["CREWLOG_DATABASE_URL"].startswith(f"postgresql://crewlog_{process['kind']}:")
        assert environ["CREWLOG_NATS_URL"].startswith(f"nats://{process['kind']}:")
        assert not [key for key in environ if key.endswith("_API_KEY") and process["kind"] in ("orchestrator", "projector")]


def test_in_the_background_it_returns_when_ready_and_down_waits_until_it_is_gone() -> None:
    with a_crew(start=False) as crew:
        crew.run("up", "--detach", "--agents", "research=2,code=0")
        processes = {p["name"]: p["state"] for p in crew.json("status")["processes"]}
        assert processes == dict.fromkeys((PROCESSES | {"research-2"}) - {"code"}, "ready")
        assert "stopped" in crew.run("down").stderr
        assert of_home(crew) == {}
        assert "nothing runs" in crew.run("down").stderr


@pytest.mark.parametrize("text", ["research", "nobody=3", "research=-1"])
def test_wrong_counts_are_refused_before_anything_starts(tmp_path: Path, text: str) -> None:
    done = subprocess.run([*CLI, "up", "--home", tmp_path / "home", "--agents", text], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert text.partition("=")[0] in done.stderr
    assert not (tmp_path / "home").exists()
