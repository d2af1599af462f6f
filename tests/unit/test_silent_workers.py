"""Who is taken to be silent, or back: what follows from the facts of the log and from who was heard, without processes."""

from __future__ import annotations

from uuid import UUID

import msgspec
import pytest

from crewlog.events.store import Recorded
from crewlog.orchestrator.silent_workers import GONE_MAX, Registrations, Worker
from crewlog.schemas.codec import encode, type_name
from crewlog.schemas.ids import agent_stream
from crewlog.schemas.system_events import AgentRegistered, AgentStopped

pytestmark = pytest.mark.hand_written("facts of workers that never were")

W1, W2 = Worker("data", "w1"), Worker("data", "w2")


class Facts:
    """An agent stream, and who was heard; each step is a second later than the one before."""

    def __init__(self) -> None:
        self.known = Registrations()
        self.now_s = 0.0

    def registered(self, worker: Worker) -> None:
        self._fold(AgentRegistered(worker.kind, worker.name, "Counts.", "1", 4, "acme/a", simulated=False, tools=()))

    def stopped(self, worker: Worker) -> None:
        self._fold(AgentStopped(*worker))

    def died(self, worker: Worker, heard_us: int) -> None:
        self._fold(AgentStopped(*worker, heard_us=heard_us))

    def heard(self, worker: Worker) -> None:
        self.now_s += 1
        self.known.heard(worker, self.now_s, self.now_us)

    @property
    def now_us(self) -> int:
        return round(self.now_s * 1e6)

    def _fold(self, event: AgentRegistered | AgentStopped) -> None:
        self.now_s += 1
        number = round(self.now_s)
        recorded = Recorded(number, agent_stream(event.kind), number, UUID(int=number), type_name(event), 1, encode(event), self.now_us)
        self.known.fold(recorded, event, self.now_s)


def test_who_was_not_heard_for_long_is_silent() -> None:
    facts = Facts()
    facts.registered(W1)  # at 1 s
    facts.registered(W2)  # at 2 s
    assert facts.known.silent(0.9) == []
    assert facts.known.silent(2) == [W1, W2], "a process that starts begins to be patient when it reads of a worker"
    facts.heard(W1)  # at 3 s
    assert facts.known.silent(2) == [W2]
    assert facts.known.there[W1].heard_us == 3_000_000
    assert facts.known.there[W2].heard_us == 2_000_000, "of whom nothing was heard, the log said something"


def test_nobody_who_left_is_silent() -> None:
    facts = Facts()
    facts.registered(W1)
    facts.stopped(W1)
    facts.heard(W1)
    assert facts.known.silent(99) == facts.known.back() == []


def test_who_is_recorded_as_gone_is_back_once_it_is_heard_and_until_somebody_has_recorded_that() -> None:
    facts = Facts()
    facts.registered(W1)
    facts.died(W1, 1_000_000)
    assert facts.known.silent(99) == facts.known.back() == []
    facts.heard(W1)
    assert facts.known.back() == [W1]
    back = facts.known.otherwise(W1, answers=True)
    assert back is not None
    assert (back.registered.worker, back.event_id) == ("w1", UUID(int=2)), "it is registered behind its end"
    facts.registered(W1)
    assert facts.known.back() == []
    assert facts.known.otherwise(W1, answers=True) is None


def test_a_late_word_of_who_is_gone_is_no_sign_when_it_does_not_answer() -> None:
    facts = Facts()
    facts.registered(W1)
    facts.died(W1, 1_000_000)
    facts.heard(W1)
    assert facts.known.otherwise(W1, answers=False) is None
    assert facts.known.back() == []


def test_who_was_taken_for_dead_may_leave_in_good_order() -> None:
    facts = Facts()
    facts.registered(W1)
    facts.died(W1, 1_000_000)
    facts.stopped(W1)
    facts.heard(W1)
    assert facts.known.there == facts.known.gone == {}


def test_a_process_that_was_cut_off_is_patient_anew() -> None:
    facts = Facts()
    facts.registered(W1)
    facts.known.listen_anew(7.0)
    assert facts.known.silent(6) == []
    assert facts.known.there[W1].heard_us == 1_000_000, "which is no word of the worker"


def test_workers_that_die_for_months_are_not_all_remembered() -> None:
    facts = Facts()
    for number in range(GONE_MAX + 5):
        facts.registered(worker := Worker("data", f"w{number}"))
        facts.died(worker, 1)
    assert len(facts.known.gone) == GONE_MAX
    assert Worker("data", "w4") not in facts.known.gone


def test_an_end_of_before_is_one_in_good_order() -> None:
    event = msgspec.json.decode(b'{"kind":"data","worker":"w1"}', type=AgentStopped)
    assert event.heard_us is msgspec.UNSET
    assert encode(event) == b'{"kind":"data","worker":"w1"}'
