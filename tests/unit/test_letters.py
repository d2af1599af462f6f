"""Dead letters as text: fingerprints that gather the same error, and headers that an agent may have made up."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from crewlog.events.letters import dead_letters, fingerprint, read_letter
from crewlog.orchestrator.dead_letters import bury_command
from crewlog.orchestrator.publisher import serial_of
from crewlog.schemas.ids import TaskId

TASK = UUID("00000000-0000-4000-8000-00000000000b")
RUN = UUID("00000000-0000-4000-8000-00000000000a")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("TimeoutError: no answer within 3.5 s", "TimeoutError: no answer within 60 s"),
        (f"ContractError: run {RUN} is closed", f"ContractError: run {TASK} is closed"),
        ("TypeError: <object at 0x7f3A91> is no task", "TypeError: <object at 0x10> is no task"),
        ("blob 9f86d081884c7d659a2f is missing", "blob 60303ae22b998861bce3 is missing"),
    ],
)
def test_the_same_error_about_other_things_has_the_same_fingerprint(one: str, other: str) -> None:
    assert fingerprint(one) == fingerprint(other)


def test_another_error_has_another_fingerprint() -> None:
    texts = ["TypeError: no task", "ValueError: no task", "ValueError: no 3 tasks", "ValueError: no facade", ""]
    assert len({fingerprint(text) for text in texts}) == len(texts)


def test_a_fingerprint_never_changes_between_versions() -> None:
    assert fingerprint("ValueError: cannot digest 12 of these") == fingerprint("ValueError: cannot digest 3 of these") == "d91caf9b2673"


async def test_a_letter_says_what_its_delivery_was() -> None:
    kept: dict[str, Any] = {}

    async def enqueue(subject: str, data: bytes, *, message_id: str, headers: Any = None) -> int:
        kept.update(subject=subject, data=data, message_id=message_id, headers=headers)
        return 1

    headers = {"Run-Id": str(RUN), "Task-Id": str(TASK), "Attempt": "2", "Nats-Msg-Id": f"{TASK}:2:3", "Dead-Cause": "handed_back"}
    delivery: Any = SimpleNamespace(subject="work.data.high", data=b"body", headers=headers, deliveries=5, sequence=7)
    await dead_letters(SimpleNamespace(enqueue=enqueue), "WORK")(delivery, "failed", "ValueError:\r\n Evil: header")
    letter = read_letter(9, kept["subject"], kept["headers"])

    assert (kept["data"], kept["message_id"]) == (b"body", f"dead-{TASK}:2:3")
    assert (letter.sequence, letter.kind, letter.cause, letter.reason, letter.deliveries) == (9, "data", "failed", "ValueError: Evil: header", 5)
    assert (letter.subject, letter.run_id, letter.task_id, letter.attempt) == ("work.data.high", RUN, TASK, 2)
    command = bury_command(letter)
    assert command is not None
    assert (command.task_id, command.kind, command.attempt, command.serial) == (TaskId(TASK), "data", 2, 3)
    assert command.history == "its message was handed out 5 times; the last of it: ValueError: Evil: header"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Task-Id": "t1", "Run-Id": "../../x", "Attempt": "-1", "Dead-Deliveries": "many", "Dead-Cause": "magic", "Dead-Message-Id": "a:b:c"},
        {"Task-Id": str(TASK), "Attempt": "9" * 5000, "Dead-Deliveries": "²", "Dead-Message-Id": "1:2:" + "9" * 5000},
    ],
)
def test_headers_that_cannot_be_true_lead_to_nothing(headers: dict[str, str]) -> None:
    letter = read_letter(1, "dlq.data", headers)

    assert (letter.cause, letter.deliveries, letter.attempt, letter.run_id) == ("failed", 0, 0, None)
    assert bury_command(letter) is None


@pytest.mark.parametrize(("message_id", "serial"), [(f"{TASK}:1:4", 4), (f"{TASK}:1:4-abcd", 4), ("", None), ("1:2", None), (f"{TASK}:1:x", None)])
def test_a_message_id_says_which_dispatch_it_was(message_id: str, serial: int | None) -> None:
    assert serial_of(message_id) == serial
