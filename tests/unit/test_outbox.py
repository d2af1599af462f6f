"""Publishing into a folder: one publication for each key, found by its probe, withdrawn without touching another."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.toolbox import Bench, bench

from crewlog.agents.mail import MailSettings
from crewlog.agents.outbox import Outbox, PublishFile, WithdrawFile
from crewlog.agents.spec import ToolContext, ToolFailed
from crewlog.agents.specialist_communicate import communicate_agent

KEYS = (f"{1:032x}", f"{2:032x}")


@pytest.fixture
async def task() -> Bench:
    return await bench(kind="communicate", attachments={"notes/report.md": b"# Report\n", "report.md": b"another"}, tenant="acme")


def under(task: Bench, key: str) -> ToolContext:
    return replace(task.context(), idempotency_key=key)


def files(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}


async def test_each_call_publishes_for_itself_and_a_second_try_changes_nothing(task: Bench, tmp_path: Path) -> None:
    outbox, args = Outbox(tmp_path / "out"), PublishFile(name="notes/report.md")
    for key in (*KEYS, KEYS[0]):
        output = await outbox.publish(under(task, key), args)
        assert output.content == f"Published as acme/{key}/report.md."
    assert files(tmp_path / "out") == {f"acme/{key}/report.md" for key in KEYS}
    assert (tmp_path / "out" / "acme" / KEYS[0] / "report.md").read_bytes() == b"# Report\n"


async def test_what_was_published_is_found_and_withdrawn_and_nothing_else(task: Bench, tmp_path: Path) -> None:
    outbox, args = Outbox(tmp_path), PublishFile(name="notes/report.md")
    publish, withdraw = outbox.tools()
    assert publish.undo is not None
    undo = publish.undo(args, KEYS[0])
    assert (undo.tool, undo.resource) == (withdraw.name, f"{KEYS[0]}/report.md")
    assert (await outbox.probe(under(task, KEYS[0]), args)).verdict == "did_not_happen"
    for key in KEYS:
        await outbox.publish(under(task, key), args)
    found = await outbox.probe(under(task, KEYS[0]), args)
    assert (found.verdict, found.content) == ("happened", f"Published as acme/{KEYS[0]}/report.md.")
    for _ in range(2):
        await outbox.withdraw(task.context(), WithdrawFile.model_validate(undo.arguments))
        assert files(tmp_path) == {f"acme/{KEYS[1]}/report.md"}


async def test_a_file_that_is_not_finished_did_not_happen_and_goes_with_the_rest(task: Bench, tmp_path: Path) -> None:
    outbox, args = Outbox(tmp_path), PublishFile(name="report.md")
    folder = tmp_path / "acme" / KEYS[0]
    folder.mkdir(parents=True)
    (folder / ".unfinished").write_bytes(b"ano")
    assert (await outbox.probe(under(task, KEYS[0]), args)).verdict == "did_not_happen"
    await outbox.withdraw(task.context(), WithdrawFile(key=KEYS[0], name="report.md"))
    assert files(tmp_path) == set()


@pytest.mark.parametrize("name", ["..", ".hidden", "a\\b", "x" * 130])
async def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    task = await bench(kind="communicate", attachments={"a.md": b""})
    with pytest.raises(ToolFailed, match="is no name to publish under"):
        await Outbox(tmp_path).publish(under(task, KEYS[0]), PublishFile(name=name))
    with pytest.raises(ToolFailed, match="is no name to publish under"):
        await Outbox(tmp_path).withdraw(task.context(), WithdrawFile(key=KEYS[0], name=name))
    assert files(tmp_path) == set()


async def test_the_agent_has_it_when_there_is_a_folder(task: Bench, tmp_path: Path) -> None:
    without = communicate_agent(MailSettings(), ())
    with_it = communicate_agent(MailSettings(), (), outbox=tmp_path)
    names = [{tool.name for tool in agent.tools_for(task.task)} for agent in (without, with_it)]
    assert names[1] - names[0] == {"publish_file", "withdraw_file"}
