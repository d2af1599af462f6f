"""Processes of the product without the start of an interpreter for each: forked from one that has imported everything.

    with a_nursery() as nursery:
        agent = await nursery.start("gated", env)

What is forked runs the same functions as the command line, in a process of its own that can be killed and stopped.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from support.plants import PLANTED, plant

TESTS = Path(__file__).parents[1]
READY_WITHIN_S = 120.0
PR_SET_PDEATHSIG = 1


class Forked:
    """One process, to be used like a `Popen`."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self.pid, self.returncode = pid, None
        self._nursery, self._fd = nursery, os.pidfd_open(pid)
        weakref.finalize(self, os.close, self._fd)  # not before: somebody else may still wait on it
        self._collecting = threading.Lock()

    returncode: int | None

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended; returns its code, negative for a signal."""
        if self.returncode is None:
            if not select.select([self._fd], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(f"pid {self.pid}", timeout or 0)
            with self._collecting:  # two may wait for one process, and it can be collected only once
                if self.returncode is None:
                    self.returncode = self._nursery.reap(self.pid)
        return self.returncode

    def send_signal(self, number: int) -> None:
        with suppress(ProcessLookupError):  # it has ended, and somebody who waited has collected it
            signal.pidfd_send_signal(self._fd, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    @property
    def is_stopped(self) -> bool:
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


class Nursery:
    """The process that forks; commands go to it one at a time."""

    def __init__(self, control: socket.socket) -> None:
        self._control, self._turn = control, threading.Lock()  # whoever waits for an end does so in a thread

    async def start(self, role: str, env: Mapping[str, str], *, marker: Path | None = None) -> Forked:
        """Start a process and wait until it says that it is ready.

        Args:
            role: `gated` for an agent of `support.gated_agent`, `orchestrator` or `projector`.
            env: its whole environment.
            marker: a file that appears when it is struck, which may be before it is ready.
        """
        ready, child = os.pipe()
        try:
            with self._turn:
                socket.send_fds(self._control, [json.dumps({"role": role, "env": dict(env)}).encode()], [child])
                process = Forked(self, int(self._control.recv(64)))
        finally:
            os.close(child)
        try:
            async with asyncio.timeout(READY_WITHIN_S):
                # looked at, not waited for: a thread that reads from a process which is stopped would never come back
                while not (spoke := select.select([ready], [], [], 0)[0]) and not (marker is not None and marker.exists()):  # noqa: ASYNC110, ASYNC240
                    await asyncio.sleep(0.01)
            assert not spoke or os.read(ready, 1) or marker is not None, f"{role} ended with {process.wait(10)} before it was ready"
        finally:
            os.close(ready)
        return process

    def reap(self, pid: int) -> int:
        """Collect a process that has ended, and return its code."""
        with self._turn:
            self._control.send(json.dumps({"reap": pid}).encode())
            return int(self._control.recv(64))


@contextmanager
def a_nursery() -> Iterator[Nursery]:
    """Run a nursery; all its processes end with it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    env = {**{k: v for k, v in os.environ.items() if not k.startswith("CREWLOG_")}, "PYTHONPATH": str(TESTS)}
    process = subprocess.Popen([sys.executable, "-P", "-m", "support.nursery", str(theirs.fileno())], env=env, pass_fds=(theirs.fileno(),))
    theirs.close()
    try:
        yield Nursery(ours)
    finally:
        ours.close()
        assert process.wait(30) == 0


# ── inside the process that forks ──


def run(role: str) -> None:
    """Be a process of the product, until it ends."""
    from support.gated_agent import run_gated

    from crewlog.events.config import load
    from crewlog.events.event_loop import new_event_loop
    from crewlog.orchestrator.endpoints import with_login
    from crewlog.orchestrator.service import run_orchestrator
    from crewlog.projections.process import run_projector

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        match role:
            case "orchestrator":
                runner.run(run_orchestrator(with_login(load(), "orchestrator")))
            case "projector":
                runner.run(run_projector(with_login(load(), "projector")))
            case _:
                runner.run(run_gated())


def main() -> None:
    """Fork what is asked for until the other end is closed."""
    import support.gated_agent  # noqa: F401

    control = socket.socket(fileno=int(sys.argv[1]))
    while True:
        data, fds, *_ = socket.recv_fds(control, 1 << 20, 1)
        if not data:
            return
        asked = json.loads(data)
        if "reap" in asked:
            control.send(str(os.waitstatus_to_exitcode(os.waitpid(asked["reap"], 0)[1])).encode())
            continue
        pid = os.fork()
        if pid == 0:
            _be(asked["role"], asked["env"], control, fds[0])
        os.close(fds[0])
        control.send(str(pid).encode())


def _be(role: str, env: Mapping[str, str], control: socket.socket, ready: int) -> None:
    code = 1
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        control.close()
        os.environ.clear()
        os.environ.update(env, CREWLOG_READY_FD=str(ready))
        plant(os.environ.get(PLANTED, ""))
        run(role)
        code = 0
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        os._exit(code)


if __name__ == "__main__":
    main()
