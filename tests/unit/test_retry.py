"""Waits between tries: they double, stay bounded, and can be worked out however long something is away."""

from __future__ import annotations

from crewlog.schemas.retry import RetryPolicy, doubled_s


def test_a_wait_doubles_up_to_the_longest_one_however_often_it_is_doubled() -> None:
    assert [doubled_s(0.2, times, longest_s=5.0) for times in (0, 1, 2, 5)] == [0.2, 0.4, 0.8, 5.0]
    assert doubled_s(0.2, 5_000, longest_s=5.0) == 5.0  # a child that ended early every five seconds, for a night
    assert RetryPolicy(cap_s=60.0).delay_s(5_000, 0.5) == 30.0
