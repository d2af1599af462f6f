"""A whole crew under a real `crewlog up`, for process tests: one per session, or one of a test's own."""

from __future__ import annotations

import asyncio
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from support.replayed import Replayed, is_hand_written

from crewlog.events.clock import SystemClock
from crewlog.events.credentials import load_credentials
from crewlog.events.grants import BUILT_IN_KINDS
from crewlog.events.readiness import READY_FD
from crewlog.orchestrator.client import Client
from crewlog.orchestrator.home import Home

CLI = (sys.executable, "-P", "-m", "crewlog.orchestrator")
READY_WITHIN_S = 120.0
DEMO = Path(__file__).parents[2] / "orchestrator" / "demo"


def only(*kinds: str) -> tuple[str, str]:
    """Return the arguments of `crewlog up` that start agents of these kinds alone: each takes a second of a core to begin."""
    return "--agents", ",".join(f"{kind}={int(kind in kinds)}" for kind in BUILT_IN_KINDS)


class LiveCrew:
    """A running crew. `run` is the command line, `client` the public client, both with the crew's own logins."""

    def __init__(self, home: Path, env: Mapping[str, str]) -> None:
        self.home = home
        self.env = {**{k: v for k, v in os.environ.items() if not k.startswith("CREWLOG_")}, "CREWLOG_HOME": str(home), "NO_COLOR": "1", **env}
        self.process: subprocess.Popen[bytes] | None = None
        self._replayed = Replayed()

    def start(self, *arguments: str) -> None:
        """Start `crewlog up` and wait until it says that it is ready."""
        ready, child = os.pipe()
        with (self.home / "up.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*CLI, "up", *arguments], env={**self.env, READY_FD: str(child)}, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(child,)
            )
        os.close(child)
        try:
            said = select.select([ready], [], [], READY_WITHIN_S)[0] and os.read(ready, 1)
        finally:
            os.close(ready)
        assert said, f"crewlog up did not become ready:\n{self.log()}"

    def stop(self) -> None:
        """Stop it in good order; safe to call twice."""
        if self.process is not None:
            self.process.terminate()
            assert self.process.wait(120) == 0, self.log()
            self.process = None

    def replay_violations(self) -> list[str]:
        """Replay every run in which anything happened since the last look; nothing of a crew that is down."""
        state = Home(self.home).state() if self.process is not None and self.process.poll() is None else None
        if state is None or state.database_port is None:
            return []
        url = load_credentials(self.home).postgres_url("crewlog_operator", state.database_port)
        with ThreadPoolExecutor(1) as apart:  # the test may have a loop of its own
            return apart.submit(asyncio.run, self._replayed.violations(url, self.home)).result()

    def log(self) -> str:
        """Return what the supervisor and all processes said."""
        return (self.home / "up.log").read_text(errors="replace")

    def run(self, *arguments: str | Path, stdin: str = "", code: int = 0, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command and check how it ends."""
        done = subprocess.run([*CLI, *map(str, arguments)], env=self.env, input=stdin, capture_output=True, text=True, timeout=200, cwd=cwd, check=False)
        assert done.returncode == code, f"crewlog {' '.join(map(str, arguments))} ended with {done.returncode}, not {code}\n{done.stdout}{done.stderr}"
        return done

    def json(self, *arguments: str | Path, code: int = 0, cwd: Path | None = None) -> Any:
        """Run a command with `-o json` and decode what it prints."""
        return msgspec.json.decode(self.run(*arguments, "-o", "json", code=code, cwd=cwd).stdout)

    def agents(self, kind: str) -> list[Any]:
        """Return what `status` says of the agents of a kind, as soon as it says anything: views learn of one a moment after it is ready."""
        give_up = time.monotonic() + READY_WITHIN_S
        while not (found := [agent for agent in self.json("status")["agents"] if agent["kind"] == kind]):
            assert time.monotonic() < give_up, f"no agent of kind {kind} is shown"
        return found

    def client(self) -> AbstractAsyncContextManager[Client]:
        """Connect the public client."""
        return Client.connect(self.home, clock=SystemClock())


@contextmanager
def a_crew(*arguments: str, start: bool = True, **env: str) -> Iterator[LiveCrew]:
    """Run a crew of one's own in a fresh home; nothing of it is left afterwards."""
    home = Path(tempfile.mkdtemp(prefix="crewlog-test-"))
    home.chmod(0o755)  # root's Postgres runs as another user, who must be able to enter
    crew = LiveCrew(home, env)
    try:
        if start:
            crew.start(*arguments)
        yield crew
        found = crew.replay_violations()
        assert not found, "\n".join(found)
    finally:
        try:
            crew.stop()
        finally:
            if crew.process is not None:
                crew.process.kill()
                crew.process.wait()
            shutil.rmtree(home, ignore_errors=True)


@contextmanager
def own_agent(crew: LiveCrew, target: str, folder: Path, **env: str) -> Iterator[None]:
    """Run `crewlog agent module:ATTR` in a folder until the test is over; `env` goes to its environment."""
    ready, child = os.pipe()
    process = subprocess.Popen([*CLI, "agent", target], cwd=folder, env={**crew.env, **env, READY_FD: str(child)}, pass_fds=(child,))
    os.close(child)
    try:
        assert os.read(ready, 1) == b"1"
        yield
    finally:
        os.close(ready)
        process.terminate()
        assert process.wait(120) == 0


@pytest.fixture(autouse=True)
def runs_of_live_crews_replay(request: pytest.FixtureRequest) -> Iterator[None]:
    """Replay what a test did with a crew that it shares with others."""
    values = request.node.funcargs  # filled while the test is set up
    yield
    if is_hand_written(request):
        return
    crews = [value for value in values.values() if isinstance(value, LiveCrew)]
    found = [violation for crew in crews for violation in crew.replay_violations()]
    assert not found, "\n".join(found)


@pytest.fixture(scope="session")
def crew() -> Iterator[LiveCrew]:
    """The crew that all tests share: leave it as you found it, and look only at your own runs."""
    with a_crew() as started:
        yield started


@pytest.fixture
async def client(crew: LiveCrew) -> AsyncIterator[Client]:
    """The public client, connected to the shared crew."""
    async with crew.client() as connected:
        yield connected
