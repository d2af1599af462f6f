"""Approvals on the command line: asked, answered once, refused the second time; and what Ctrl-C leaves behind."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from support.live_crew import CLI, LiveCrew, a_crew, only
from support.ports import reserved_port

from crewlog.agents.smtp_sink import SmtpSink
from crewlog.orchestrator.client import Client

TO = "ann@example.org"
GOAL = f"Send a mail to {TO} with the subject 'Tea' that says: tea is ready."

SHAPE = "approval_id run_id task_id key kind call_id tool arguments reason status requested_at expires_at decided_at actor note question"


@pytest.fixture(scope="module")
def smtp_port() -> Iterator[int]:
    with reserved_port() as port:
        yield port


@pytest.fixture(scope="module")
def mailing(smtp_port: int) -> Iterator[LiveCrew]:
    with a_crew(*only("communicate"), CREWLOG_SMTP_PORT=str(smtp_port), CREWLOG_USER="tester") as crew:
        yield crew


@pytest.fixture
async def sink(smtp_port: int, tmp_path: Path) -> AsyncIterator[SmtpSink]:
    sink = SmtpSink(tmp_path / "mail", port=smtp_port)
    await sink.start()
    yield sink
    await sink.stop()


def mail_task() -> str:
    return json.dumps({"task_id": str(uuid4()), "type": "communicate", "objective": GOAL})


async def run(crew: LiveCrew, *arguments: str, stdin: str = "", code: int = 0) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(crew.run, *arguments, stdin=stdin, code=code)


async def asked(crew: LiveCrew) -> dict[str, Any]:
    """Submit a mail and return the question it leads to."""
    waiting = await run(crew, "submit", "--file", "-", "--wait", "--fail-on-approval", stdin=mail_task(), code=6)
    assert "waits for a person" in waiting.stderr
    (approval,) = await asyncio.to_thread(crew.json, "approvals")
    assert set(approval) == set(SHAPE.split())
    assert approval["arguments"]["to"] == [TO]
    found: dict[str, Any] = approval
    return found


def to_come_back(said: str) -> str:
    """Return the run that whoever was told to go on without waiting is told to watch."""
    found = re.search(r"crewlog watch ([0-9a-f]{8})", said)
    assert found, said
    return found[1]


async def questions(crew: LiveCrew, name: str) -> int:
    """Wait until a run asks a person and the views know of it, and return how many questions they list."""
    async with Client.connect(crew.home) as client, asyncio.timeout(60):
        run_id = await client.find_run(name)
        async for recorded in client.events(run_id, follow=True):
            if recorded.type == "TaskSuspended":
                break
        return len(await client.asked(run_id))


async def test_an_approved_mail_is_sent_once_and_the_answer_counts_once(mailing: LiveCrew, sink: SmtpSink) -> None:
    approval = await asked(mailing)
    assert TO in (await run(mailing, "approvals")).stdout
    assert "approval of send_email by a person" in (await run(mailing, "why", approval["run_id"])).stdout
    await run(mailing, "approve", approval["approval_id"][:8], "--note", "fine")
    await run(mailing, "watch", approval["run_id"])
    assert len(sink.received) == 1
    assert "completed" in (await run(mailing, "cancel", approval["run_id"], code=5)).stderr
    again = await run(mailing, "deny", approval["approval_id"], code=5)
    assert "already" in again.stderr or "decided" in again.stderr
    decided = [a for a in await asyncio.to_thread(mailing.json, "approvals", "--all") if a["approval_id"] == approval["approval_id"]]
    assert [(a["status"], a["actor"], a["note"]) for a in decided] == [("approved", "tester", "fine")]


async def test_a_denied_mail_is_not_sent(mailing: LiveCrew, sink: SmtpSink) -> None:
    approval = await asked(mailing)
    await run(mailing, "approve", code=2)  # an empty variable of a shell names nothing
    await run(mailing, "deny", "-", "--note", "not today", "--as", "ben")
    await run(mailing, "watch", approval["run_id"])
    assert sink.received == []


async def test_yes_sends_without_asking(mailing: LiveCrew, sink: SmtpSink) -> None:
    await run(mailing, "submit", GOAL, "--type", "communicate", "--yes", "--wait")
    assert len(sink.received) == 1


async def test_a_cancelled_run_ends_and_asks_nobody_any_more(mailing: LiveCrew, sink: SmtpSink) -> None:
    approval = await asked(mailing)
    await run(mailing, "cancel", approval["run_id"], "--reason", "no longer needed")
    shown = await run(mailing, "watch", approval["run_id"], code=1)
    assert "no longer needed" in shown.stderr
    await run(mailing, "approve", approval["approval_id"], code=5)
    assert await asyncio.to_thread(mailing.json, "approvals") == []


async def test_ctrl_c_leaves_the_run_at_work_and_says_how_to_come_back(mailing: LiveCrew, sink: SmtpSink) -> None:
    process = await asyncio.create_subprocess_exec(
        *CLI,
        "submit",
        GOAL,
        "--type",
        "communicate",
        "--wait",
        env=mailing.env,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    async with asyncio.timeout(60):
        while b"TaskSuspended" not in (await process.stderr.readline()):
            pass
        process.send_signal(signal.SIGINT)
        _, rest = await process.communicate()
    assert process.returncode == 130
    name = to_come_back(rest.decode())
    assert await questions(mailing, name) == 1
    await run(mailing, "approve", "-")
    await run(mailing, "watch", name)
    assert len(sink.received) == 1


async def test_waiting_no_longer_than_said(mailing: LiveCrew, sink: SmtpSink) -> None:
    late = await run(mailing, "submit", GOAL, "--type", "communicate", "--wait", "--timeout", "1", code=124)
    assert "it goes on" in late.stderr
    assert await questions(mailing, to_come_back(late.stderr)) == 1
    await run(mailing, "deny", "-")


async def test_the_client_waits_until_the_run_has_ended(mailing: LiveCrew, sink: SmtpSink) -> None:
    async with Client.connect(mailing.home) as client, asyncio.timeout(60):
        submitted = await client.submit(GOAL, kind="communicate", auto_approve=True)
        run_view = await client.wait(submitted.run_id)
        assert run_view.status == "completed"
        assert "sent" in (await client.answer(run_view)).lower()
        assert [task.kind for task in await client.tasks(submitted.run_id)] == ["communicate"]
    assert os.environ.get("CREWLOG_HOME") != str(mailing.home)
