"""The circuit breaker, given calls and times / then who may be asked."""

from __future__ import annotations

from typing import get_args

import pytest

from crewlog.agents.breaker import _EARLY_S, FAILURES_MAX, HANG_OPEN_S_MAX, HOLD_S_MAX, OPEN_S, REFUSED_OPEN_S, WINDOW_S, Admission, Breaker, Change, Closed
from crewlog.agents.model import ErrorKind


class Bench:
    """A breaker with a clock that the test turns."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.changes: list[Change] = []
        self.breaker = Breaker(self.changes.append)

    def admitted(self) -> Admission:
        admission = self.breaker.admit(self.now)
        assert isinstance(admission, Admission)
        return admission

    def refused(self) -> Closed:
        closed = self.breaker.admit(self.now)
        assert isinstance(closed, Closed)
        return closed

    def fail(self, kind: ErrorKind, *, times: int = 1, retry_after_s: float | None = None) -> None:
        for _ in range(times):
            self.admitted().failed(kind, self.now, retry_after_s=retry_after_s)


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.mark.parametrize("kind", ["rate_limit", "overloaded", "server", "timeout", "connection", "cut", "malformed"])
def test_failures_in_a_row_open_it(bench: Bench, kind: ErrorKind) -> None:
    bench.fail(kind, times=FAILURES_MAX - 1)
    bench.fail(kind)
    assert bench.refused() == Closed(OPEN_S, kind)
    assert bench.changes == [Change("open", OPEN_S, kind)]


def test_failures_far_apart_do_not(bench: Bench) -> None:
    for _ in range(FAILURES_MAX * 2):
        bench.fail("server")
        bench.now += WINDOW_S / (FAILURES_MAX - 1)
    bench.admitted()
    assert bench.changes == []


def test_an_answer_in_between_starts_the_count_anew(bench: Bench) -> None:
    bench.fail("server", times=FAILURES_MAX - 1)
    bench.admitted().succeeded()
    bench.fail("server", times=FAILURES_MAX - 1)
    bench.admitted()


@pytest.mark.parametrize(("timeout_s", "calls"), [(300.0, 1), (WINDOW_S, 1), (8.0, 4)])
def test_one_that_hangs_is_passed_over_although_it_cannot_fail_often(bench: Bench, timeout_s: float, calls: int) -> None:
    for _ in range(calls):
        hanging = bench.admitted()
        bench.now += timeout_s
        hanging.failed("timeout", bench.now)
    assert bench.refused() == Closed(max(OPEN_S, min(timeout_s * calls, HANG_OPEN_S_MAX)), "timeout")
    bench.now += HANG_OPEN_S_MAX
    bench.admitted().succeeded()
    bench.fail("timeout")
    bench.admitted()


def test_a_call_that_times_out_while_others_are_answered_is_one_failure(bench: Bench) -> None:
    long = bench.admitted()
    bench.admitted().succeeded()
    bench.now += WINDOW_S * 10
    long.failed("timeout", bench.now)
    bench.admitted()
    assert bench.changes == []


@pytest.mark.parametrize("kind", ["auth", "billing"])
def test_a_refused_key_opens_it_at_once_and_for_long(bench: Bench, kind: ErrorKind) -> None:
    bench.fail(kind)
    assert bench.refused() == Closed(REFUSED_OPEN_S, kind)


@pytest.mark.parametrize("kind", ["bad_request", "context_length", "content_filter", "not_found"])
def test_what_the_request_is_to_blame_for_never_opens_it(bench: Bench, kind: ErrorKind) -> None:
    bench.fail(kind, times=FAILURES_MAX * 3)
    bench.admitted()
    assert bench.changes == []


def test_every_kind_of_error_is_covered() -> None:
    assert len(get_args(ErrorKind)) == 13


def test_half_open_lets_exactly_one_call_through_and_an_answer_closes_it(bench: Bench) -> None:
    bench.fail("server", times=FAILURES_MAX)
    bench.now += OPEN_S
    probe = bench.admitted()
    assert "will tell" in bench.refused().reason
    probe.succeeded()
    bench.admitted()
    bench.admitted()
    assert [c.state for c in bench.changes] == ["open", "half_open", "closed"]


def test_a_probe_that_fails_opens_it_again(bench: Bench) -> None:
    bench.fail("server", times=FAILURES_MAX)
    bench.now += OPEN_S
    bench.admitted().failed("timeout", bench.now)
    assert bench.refused() == Closed(OPEN_S, "timeout")


def test_a_cancelled_probe_gives_its_place_back(bench: Bench) -> None:
    bench.fail("server", times=FAILURES_MAX)
    bench.now += OPEN_S
    bench.admitted().released()
    bench.admitted().succeeded()
    assert bench.changes[-1].state == "closed"


def test_calls_that_were_on_their_way_when_it_opened_neither_close_nor_prolong_it(bench: Bench) -> None:
    late, later = bench.admitted(), bench.admitted()
    bench.fail("server", times=FAILURES_MAX)
    bench.now += OPEN_S - 1
    late.succeeded()
    later.failed("server", bench.now)
    assert bench.refused().for_s == 1
    bench.now += 1
    probe = bench.admitted()
    bench.refused()
    probe.succeeded()
    bench.admitted()


def test_a_provider_that_names_a_time_is_held_for_so_long_and_then_asked_by_all(bench: Bench) -> None:
    bench.fail("rate_limit", retry_after_s=2)
    assert bench.refused() == Closed(2, "rate_limit")
    assert bench.changes == [], "a moment is everyday business"
    bench.now += 2
    bench.admitted()
    bench.admitted()


def test_a_long_hold_is_announced_and_has_an_end(bench: Bench) -> None:
    bench.fail("rate_limit", retry_after_s=53_267)
    assert bench.refused() == Closed(HOLD_S_MAX, "rate_limit")
    bench.now += HOLD_S_MAX
    bench.admitted().succeeded()
    assert [c.state for c in bench.changes] == ["open", "closed"]


def test_a_sleep_that_ends_a_moment_too_early_is_good_enough(bench: Bench) -> None:
    bench.fail("rate_limit", retry_after_s=10.0)
    bench.now += 10.0 - 2 * _EARLY_S
    assert bench.refused().for_s == pytest.approx(2 * _EARLY_S)
    bench.now += 1.5 * _EARLY_S
    bench.fail("server", times=FAILURES_MAX - 1)
    bench.now += OPEN_S - 2 * _EARLY_S
    assert bench.refused().for_s == pytest.approx(2 * _EARLY_S)
    bench.now += 1.5 * _EARLY_S
    bench.admitted()
