"""Talk to a running `crewlog up` from another process: scale, status, down."""

from __future__ import annotations

import contextlib
import json
from typing import Any, Final, Literal

from crewlog.events.bus import Bus
from crewlog.orchestrator.home import Home, terminate, wait_gone
from crewlog.schemas.errors import ConfigError, ContractError, Unavailable

ANSWER_WITHIN_S: Final = 90.0
"""Scaling down waits until the copies that go have finished what they work on, which `CREWLOG_SHUTDOWN_GRACE_S` may let take longer."""
_STATUS_WITHIN_S: Final = 5.0


async def ask_supervisor(bus: Bus, verb: Literal["scale", "status"], body: Any = None) -> dict[str, Any]:
    """Send one command and return the answer.

    Raises:
        Unavailable: no supervisor listens, the processes may run under compose or another one; or it is not done yet.
        ContractError: the supervisor refused the command.
        ConfigError: it could not be carried out.
    """
    try:
        reply = await bus.request(f"supervisor.{verb}", json.dumps(body).encode(), timeout_s=ANSWER_WITHIN_S)
    except Unavailable:  # its own text would send people to `crewlog status`, which is where they are
        if verb != "status" and await _is_there(bus):
            raise Unavailable(
                f"`crewlog up` is not done after {ANSWER_WITHIN_S:g} s and goes on: copies that go finish what they work on first\nsee `crewlog status`"
            ) from None
        raise Unavailable(
            "no `crewlog up` runs the processes of this crew: when they run elsewhere, they are seen and scaled there, as with docker compose up --scale"
        ) from None
    answer: dict[str, Any] = json.loads(reply.data)
    if not answer.pop("ok"):
        fault = answer["error"]
        raise (ContractError if fault["code"] == "contract" else ConfigError)(fault["message"])
    return answer


async def _is_there(bus: Bus) -> bool:
    with contextlib.suppress(Unavailable):
        await bus.request("supervisor.status", b"null", timeout_s=_STATUS_WITHIN_S)
        return True
    return False


async def stop_crew(home: Home, *, within_s: float) -> int | None:
    """Stop the supervisor of a home and wait until it has gone; returns its process id, or None when none ran.

    By signal, not by message: it must work when NATS does not, and whoever may write the home may send it.

    Raises:
        Unavailable: it did not stop in time.
    """
    pid = home.holder()
    if pid is None:
        return None
    terminate(pid)
    if not await wait_gone(pid, timeout_s=within_s):
        raise Unavailable(f"the supervisor (pid {pid}) did not stop within {within_s:g} s\nend it with: kill -9 {pid}; no process of the crew outlives it")
    return pid
