"""The whole crew by rules, in one process: real orchestrator, workers and tools on the memory log, from a goal to a mail that arrived."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
from support.crew import Crew

from crewlog.agents.knowledge_memory import MemoryKnowledge
from crewlog.agents.offline import OfflineModel
from crewlog.agents.smtp_sink import SmtpSink
from crewlog.agents.spec import AgentSpec
from crewlog.agents.specialist_code import code_agent
from crewlog.agents.specialist_communicate import MailSettings, communicate_agent
from crewlog.agents.specialist_data import data_agent
from crewlog.agents.specialist_planner import planner_agent
from crewlog.agents.specialist_research import research_agent
from crewlog.agents.work import Workshop
from crewlog.agents.worker import Worker
from crewlog.events.artifact_store import open_artifacts
from crewlog.events.clock import SystemClock
from crewlog.events.memory_bus import MemoryBus
from crewlog.schemas.run_events import RunCompleted

DEMO = Path(__file__).parents[2] / "orchestrator" / "demo"
GOAL = (
    "Prepare the open-data release note for the Palmer penguins table: check our loader, summarise the measurements with a chart, "
    "say which playbook rules apply, and mail it to the team at team@example.org."
)


WITHIN_S = 90.0


@contextmanager
def a_home() -> Iterator[Path]:
    """Make a folder that sandboxed children may enter."""
    with tempfile.TemporaryDirectory(prefix="crewlog-test-", dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


class Working(Crew):
    """A crew whose workers are the real ones, each with the rules as its model."""

    def __init__(self, folder: Path, mail: MailSettings) -> None:
        super().__init__()
        self.folder, self.mail = folder, mail

    @asynccontextmanager
    async def workers(self) -> AsyncIterator[None]:
        """Run one worker of each kind."""
        store = self.store()
        specs: list[AgentSpec] = [
            planner_agent(),
            research_agent(store, MemoryKnowledge(store)),
            data_agent(),
            code_agent(),
            communicate_agent(self.mail, ()),
        ]
        artifacts = await open_artifacts(self.folder / "artifacts")
        shops = [Workshop(f"{spec.kind}-1", spec, (OfflineModel(),), artifacts, SystemClock(), self.folder / "work") for spec in specs]
        workers = [Worker(shop, store, MemoryBus(self.broker), slots=2) for shop in shops]
        for worker in workers:
            await worker.start()
        try:
            yield
        finally:
            for worker in workers:
                await worker.stop(grace_s=2)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until the log fulfils a condition; real tools take longer than the base class allows."""
        async with asyncio.timeout(WITHIN_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def run(self, goal: str, files: Mapping[str, bytes]) -> tuple[RunCompleted, str]:
        """Carry out a goal and return its end and its answer."""
        artifacts = await open_artifacts(self.folder / "artifacts")
        refs = [await artifacts.put(name, data) for name, data in files.items()]
        attachments: list[dict[str, Any]] = [{"name": r.name, "hash": r.hash, "size": r.size, "media_type": r.media_type} for r in refs]
        end = await self.ended(await self.submit(objective=goal, attachments=attachments, auto_approve=True))
        assert end.type == "RunCompleted", end.data
        completed = msgspec.json.decode(end.data, type=RunCompleted)
        blobs = await self.store().get_blobs([completed.answer.ref]) if completed.answer.ref else {}
        return completed, completed.answer.inline or "" if completed.answer.ref is None else blobs[completed.answer.ref].decode()


async def test_the_demo_goal_ends_with_an_answer_and_one_mail() -> None:
    files = {str(path.relative_to(DEMO)): path.read_bytes() for path in sorted(DEMO.rglob("*")) if path.suffix in (".py", ".md", ".csv")}
    with a_home() as folder:
        sink = SmtpSink(folder / "mail")
        crew = Working(folder, MailSettings(port=await sink.start()))
        async with crew.orchestrator(), crew.workers():
            completed, answer = await crew.run(GOAL, files)
        await sink.stop()
        assert len(sink.received) == 1
        mail = sink.received[0].read_text()
    assert "Subject: Open-data release note" in mail
    assert "team@example.org" in mail
    assert "5 passed, 0 failed" in answer
    assert "344 rows" in answer
    assert "[playbook/" in answer
    assert "Sent to team@example.org" in answer
    assert "simulated" in completed.flags
    assert "## Open points" not in answer


async def test_another_goal_on_other_files() -> None:
    files = {
        "fruit.csv": b"fruit,kg\napple,3\npear,5\napple,4\n",
        "storage.md": b"# Storage\n\nApples are stored at four degrees. Pears are stored at two degrees.\n",
    }
    with a_home() as folder:
        crew = Working(folder, MailSettings())
        async with crew.orchestrator(), crew.workers():
            _, answer = await crew.run("What is the total kg per fruit? At how many degrees are apples stored?", files)
    assert "| apple | 7 |" in answer
    assert "“Apples are stored at four degrees.” [storage.md:3]" in answer


async def test_without_a_mail_server_nobody_is_asked_to_agree_to_a_mail() -> None:
    with a_home() as folder:
        crew = Working(folder, MailSettings())
        async with crew.orchestrator(), crew.workers():
            completed, answer = await crew.run("Mail 'tea is ready' to ann@example.org", {})
    assert "It cannot be sent from here: no mail server is configured" in answer
    assert "nothing_sent:communicate" in completed.flags
