"""The bus's small rules that need no server."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import nats.errors
import pytest

from crewlog.events import jetstream
from crewlog.events.credentials import NATS_USERS
from crewlog.events.memory_bus import matches
from crewlog.events.nats_client import OrderedClient
from crewlog.events.nats_permissions import permissions
from crewlog.events.puller import NatsDelivery
from crewlog.events.slots import NAK_DELAY_MAX_S, nak_delay_s
from crewlog.schemas.task import TASK_BYTES_MAX


@pytest.mark.parametrize(
    ("pattern", "subject", "fits"),
    [
        ("wake.*", "wake.a", True),
        ("wake.*", "wake.a.b", False),
        ("wake.>", "wake.a.b", True),
        ("wake.>", "wake", False),
        (">", "anything.at.all", True),
        ("events.*.r1.>", "events.t.r1.RunCompleted", True),
        ("events.*.r1.>", "events.t.r2.RunCompleted", False),
        ("a.b", "a.b", True),
        ("a.b", "a.c", False),
        ("a.b", "a", False),
    ],
)
def test_subject_patterns(pattern: str, subject: str, fits: bool) -> None:
    assert matches(pattern, subject) is fits


def test_a_failing_message_waits_longer_each_time() -> None:
    assert [nak_delay_s(n) for n in (1, 2, 3, 5)] == [1, 2, 4, 16]
    assert nak_delay_s(1000) == NAK_DELAY_MAX_S


@pytest.mark.parametrize(
    "reply", ["$JS.ACK.WORK.code-high.3.71.12.1700000000000000000.5", "$JS.ACK.hub.ACCHASH.WORK.code-high.3.71.12.1700000000000000000.5.token"]
)
def test_both_forms_of_the_acknowledgement_subject_are_read(reply: str) -> None:
    msg: Any = SimpleNamespace(reply=reply, subject="work.code.high", data=b"", headers=None)
    delivery = NatsDelivery(msg, msg)
    assert (delivery.consumer, delivery.deliveries, delivery.sequence, delivery.waiting) == ("code-high", 3, 71, 5)


def test_every_accepted_task_fits_into_the_streams() -> None:
    assert jetstream.TASKS.message_bytes_max >= TASK_BYTES_MAX
    assert jetstream.WORK.message_bytes_max > jetstream.TASKS.message_bytes_max


def test_only_the_workqueues_refuse_when_full() -> None:
    for spec in jetstream.STREAMS.values():
        assert (spec.discard == "new") == (spec.retention == "workqueue")


@pytest.mark.parametrize("user", NATS_USERS)
def test_nobody_hears_the_answers_of_another(user: str) -> None:
    allowed = permissions(user)["subscribe"]["allow"]
    inboxes = {subject for subject in allowed if subject.startswith("_INBOX")}
    assert inboxes == {f"_INBOX_{user}.>"} | ({"_INBOX.>"} if user == "operator" else set())
    assert ">" not in allowed


@pytest.mark.parametrize("user", [user for user in NATS_USERS if user not in {"orchestrator", "supervisor", "projector", "operator", "client"}])
def test_agents_may_not_touch_streams(user: str) -> None:
    allowed = permissions(user)["publish"]["allow"]
    assert all(subject.startswith("$JS.API.CONSUMER.MSG.NEXT.WORK.") for subject in allowed if subject.startswith("$JS.API"))
    assert not any(subject.startswith(("tasks", "work", "events", "supervisor", ">")) for subject in allowed)


def test_who_hands_in_work_steers_nothing() -> None:
    rules = permissions("client")
    assert rules["publish"] == {"allow": ["tasks.*.*", "api.*.tasks.submit", "api.*.runs.get"]}
    assert rules["subscribe"] == {"allow": ["events.>", "outcomes.>", "live.>", "rejected.>", "_INBOX_client.>"]}


@pytest.mark.parametrize("subject", ["a b", "", "a\r\nPING", "a\nb"])
async def test_nothing_in_a_message_can_become_a_command_to_the_server(subject: str) -> None:
    with pytest.raises(nats.errors.BadSubjectError):
        await OrderedClient().publish_behind(0, [(subject, b"")])
