"""Dead letters on the command line, with the operator's own login: listed, shown, refused when their task has ended, dropped one by one and in bulk."""

from __future__ import annotations

from collections.abc import AsyncIterator
from uuid import UUID, uuid4

import pytest
from support.live_crew import LiveCrew

from crewlog.events.credentials import load_credentials
from crewlog.events.nats_bus import NatsBus
from crewlog.orchestrator.home import Home

SHAPE = ["sequence", "kind", "run_id", "task_id", "attempt", "cause", "reason", "fingerprint", "deliveries", "kept_at"]
FOREIGN = UUID(int=77)


@pytest.fixture
async def research(crew: LiveCrew) -> AsyncIterator[NatsBus]:
    """The bus as an agent of kind research sees it: the one that writes such letters."""
    state = Home(crew.home).state()
    assert state is not None
    bus = await NatsBus.connect(load_credentials(crew.home).nats_url("research", state.nats_port or 0), name="test")
    yield bus
    await bus.close()


async def bury(bus: NatsBus, reason: str, **ids: str) -> int:
    headers = {**ids, "Attempt": "1", "Dead-Cause": "failed", "Dead-Reason": reason, "Dead-Deliveries": "5", "Dead-Subject": "work.research.normal"}
    return await bus.enqueue("dlq.research", b'{"objective": "\x1b[31mred"}', message_id=str(uuid4()), headers=headers)


async def test_a_letter_is_listed_shown_refused_and_dropped(crew: LiveCrew, research: NatsBus) -> None:
    task_id = uuid4()
    sequence = await bury(research, "ValueError: 12 of these", **{"Run-Id": str(FOREIGN), "Task-Id": str(task_id)})

    [letter] = [row for row in crew.json("dlq", "list", "--kind", "research") if row["sequence"] == sequence]
    assert list(letter) == SHAPE
    assert (letter["reason"], letter["deliveries"], letter["run_id"]) == ("ValueError: 12 of these", 5, str(FOREIGN))
    table = crew.run("dlq", "list").stdout
    assert letter["fingerprint"] in table
    assert "ValueError: 12 of these" in table

    shown = crew.json("dlq", "show", str(sequence))
    assert set(shown) == {*SHAPE, "subject", "headers", "body"}
    assert (shown["subject"], shown["headers"]["Dead-Cause"]) == ("work.research.normal", "failed")
    assert "\x1b" not in crew.run("dlq", "show", str(sequence)).stdout

    [redriven] = crew.json("dlq", "redrive", str(sequence), code=5)
    assert redriven == {"sequence": sequence, "status": "unknown", "detail": "it names no run of this tenant"}
    assert crew.json("dlq", "drop", str(sequence)) == {"dropped": [sequence]}
    assert "matches nothing" in crew.run("dlq", "drop", str(sequence), code=3).stderr
    assert "matches nothing" in crew.run("dlq", "show", str(sequence), code=3).stderr
    assert "matches nothing" in crew.run("dlq", "redrive", str(sequence), code=3).stderr


async def test_letters_with_the_same_error_are_treated_together(crew: LiveCrew, research: NatsBus) -> None:
    same = [await bury(research, f"TypeError: no {n} tables", **{"Run-Id": str(FOREIGN), "Task-Id": str(uuid4())}) for n in range(60)]
    other = await bury(research, "TypeError: no chairs")
    fingerprint = crew.json("dlq", "show", str(same[0]))["fingerprint"]

    assert [row["sequence"] for row in crew.json("dlq", "list", "--fingerprint", fingerprint)] == same
    redriven = crew.run("dlq", "redrive", "--fingerprint", fingerprint, code=5)
    assert redriven.stderr.splitlines()[-1] == "60 unknown"
    assert "50 of 60" in redriven.stderr.splitlines()
    refused = crew.run("dlq", "drop", "--fingerprint", fingerprint, code=2)
    assert "--yes" in refused.stderr
    assert crew.json("dlq", "drop", "--fingerprint", fingerprint, "--yes") == {"dropped": same}
    assert crew.json("dlq", "list", "--fingerprint", fingerprint) == []
    assert crew.json("dlq", "show", str(other))["reason"] == "TypeError: no chairs"
    crew.run("dlq", "drop", str(other))


def test_all_letters_at_once_are_not_what_an_empty_choice_means(crew: LiveCrew) -> None:
    assert "--kind or --fingerprint" in crew.run("dlq", "drop", "--yes", code=2).stderr
    assert "--kind or --fingerprint" in crew.run("dlq", "redrive", "1", "--kind", "data", code=2).stderr
