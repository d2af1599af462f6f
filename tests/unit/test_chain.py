"""The chain: given how calls of a turn ended / then which model is asked next. One test for every row of the table."""

from __future__ import annotations

from uuid import UUID

import pytest

from crewlog.agents.chain import TRIES_PER_LINK, WAIT_S_MAX, Ask, Exhausted, Tried, next_link
from crewlog.schemas.ids import TaskId
from crewlog.schemas.task_events import Link
from crewlog.schemas.values import Shortfall

TASK_ID = TaskId(UUID(int=1))
CHAIN = (Link("w", "a", "dear", window=100), Link("w", "b", "cheap", window=50), Link("w", "c", "wide", window=1000))


def tried(link: int, kind: str, *, wait_s: float = 0.0) -> Tried:
    return Tried(link, kind, "said so", wait_s, 500, f"req-{link}")


def then(*before: Tried, chain: tuple[Link, ...] = CHAIN, first: int = 0, refusals_fall_through: bool = False) -> Ask | Exhausted:
    return next_link(chain, before, task_id=TASK_ID, call_id=f"m1-{len(before) + 1}", first=first, refusals_fall_through=refusals_fall_through)


def test_the_first_model_is_asked_first() -> None:
    assert then() == Ask(0)
    assert then(first=1) == Ask(1)


@pytest.mark.parametrize("kind", ["rate_limit", "overloaded", "server", "timeout", "connection"])
def test_what_passes_is_tried_once_more_after_full_jitter_and_then_left_to_the_next_model(kind: str) -> None:
    again = then(tried(0, kind))
    assert isinstance(again, Ask)
    assert again.link == 0
    assert 0 <= again.wait_s <= 0.5
    assert again == then(tried(0, kind)), "the same ids give the same wait"
    assert then(tried(0, kind), tried(0, kind)) == Ask(1)


def test_a_short_retry_after_is_waited_for_and_a_long_one_is_not() -> None:
    assert then(tried(0, "rate_limit", wait_s=3)) == Ask(0, 3)
    assert then(tried(0, "rate_limit", wait_s=WAIT_S_MAX + 0.1)) == Ask(1)


def test_a_call_that_was_cut_goes_to_the_next_model_and_comes_back_when_nobody_else_is_left() -> None:
    assert then(tried(0, "cut")) == Ask(1)
    last = then(tried(0, "cut"), tried(1, "malformed"), tried(2, "malformed"))
    assert isinstance(last, Ask)
    assert (last.link, 0 <= last.wait_s <= 0.5) == (0, True)
    assert isinstance(then(tried(0, "cut"), tried(1, "malformed"), tried(2, "malformed"), tried(0, "cut")), Exhausted)


def test_a_call_whose_worker_died_is_made_again_at_once() -> None:
    assert then(tried(0, "interrupted")) == Ask(0, 0.0)
    assert then(tried(0, "interrupted"), tried(0, "interrupted")) == Ask(1)


@pytest.mark.parametrize("kind", ["malformed", "auth", "billing", "not_found", "over_budget"])
def test_what_would_be_the_same_again_goes_to_the_next_model(kind: str) -> None:
    assert then(tried(0, kind)) == Ask(1)


def test_a_conversation_that_is_too_long_goes_only_to_a_larger_window() -> None:
    assert then(tried(0, "context_length")) == Ask(2)
    assert then(tried(1, "context_length")) == Ask(0), "the wider one may stand before it"
    ended = then(tried(0, "context_length"), tried(2, "context_length"))
    assert isinstance(ended, Exhausted)
    assert ended.too_long
    assert ended.failure.code == "model_context_length"
    assert not ended.failure.retryable
    assert then(tried(1, "context_length"), first=1) == Ask(2), "where the soft limit moved the chain, what stands before is too dear"
    unknown = (Link("w", "a", "m"), Link("w", "b", "n"), Link("w", "c", "o", window=10))
    assert then(tried(0, "context_length"), chain=unknown) == Ask(2), "only one that is known to be larger"


def test_what_was_too_long_before_is_not_asked_in_later_turns() -> None:
    assert then(tried(0, "context_length"), tried(2, "overloaded"), tried(2, "overloaded")) == Exhausted(
        then(tried(0, "context_length"), tried(2, "overloaded"), tried(2, "overloaded")).failure,  # type: ignore[union-attr]
        too_long=True,
    )


def test_a_refusal_falls_through_only_if_the_worker_was_set_up_so() -> None:
    stopped = then(tried(0, "content_filter"))
    assert isinstance(stopped, Exhausted)
    assert stopped.failure.code == "model_content_filter"
    assert then(tried(0, "content_filter"), refusals_fall_through=True) == Ask(1)


def test_our_own_mistake_never_falls_through() -> None:
    stopped = then(tried(0, "bad_request"), refusals_fall_through=True)
    assert isinstance(stopped, Exhausted)
    assert stopped.failure.code == "model_bad_request"
    assert not stopped.failure.retryable


def test_an_open_breaker_is_passed_over_and_waited_for_only_when_nobody_else_is_left() -> None:
    assert then(tried(0, "breaker_open", wait_s=2)) == Ask(1)
    soon = then(tried(0, "breaker_open", wait_s=2), tried(1, "auth"), tried(2, "auth"))
    assert isinstance(soon, Ask)
    assert soon.link == 0
    assert 2 <= soon.wait_s <= 2.5
    late = then(tried(0, "breaker_open", wait_s=60), tried(1, "auth"), tried(2, "auth"))
    assert isinstance(late, Exhausted)
    assert late.failure.retryable
    assert late.failure.retry_after_s == 60


def test_a_chain_of_one_ends_with_the_time_its_provider_named() -> None:
    ended = then(tried(0, "rate_limit", wait_s=60), chain=CHAIN[:1])
    assert isinstance(ended, Exhausted)
    assert (ended.failure.code, ended.failure.retryable, ended.failure.retry_after_s) == ("model_rate_limit", True, 60)


def test_the_failure_lists_every_call_and_is_worth_another_attempt_if_one_may_be_back() -> None:
    ended = then(tried(0, "auth"), tried(1, "overloaded", wait_s=9), tried(2, "server"), tried(2, "server"))
    assert isinstance(ended, Exhausted)
    assert ended.failure.code == "model_unavailable"
    assert ended.failure.retryable
    for said in ("a/dear auth, HTTP 500, request req-0: said so", "b/cheap overloaded", "c/wide server, HTTP 500, request req-2"):
        assert said in ended.failure.message
    nobody = then(tried(0, "auth"), tried(1, "billing"), tried(2, "not_found"))
    assert isinstance(nobody, Exhausted)
    assert not nobody.failure.retryable


def test_a_budget_that_no_model_fits_into_is_named_as_such() -> None:
    short = [Shortfall("run/1", 100, 90, needed) for needed in (30, 11, 20)]
    ended = then(*(Tried(n, "over_budget", "budget run/1: …", shortfall=short[n]) for n in range(3)))
    assert isinstance(ended, Exhausted)
    assert ended.failure.code == "budget"
    assert "run/1" in ended.failure.message
    assert ended.shortfall == short[1], "what the cheapest needs"
    mixed = then(Tried(0, "over_budget", "", shortfall=short[0]), tried(1, "auth"), tried(2, "unpriced"))
    assert isinstance(mixed, Exhausted)
    assert mixed.shortfall == short[0], "more money would help"
    down = then(tried(0, "server"), tried(0, "server"), Tried(1, "over_budget", "", shortfall=short[0]), tried(2, "auth"))
    assert isinstance(down, Exhausted)
    assert (down.failure.retryable, down.shortfall) == (True, short[0]), "the affordable one may be back; if it is not, more money would help"


def test_no_model_is_asked_more_often_than_allowed() -> None:
    assert TRIES_PER_LINK == 2


def test_a_model_that_was_passed_over_is_waited_for_only_when_it_has_more_room_than_the_one_that_refused() -> None:
    ends = (tried(0, "breaker_open", wait_s=0.5), tried(1, "context_length"), tried(2, "auth"))
    wider = then(*ends)
    assert isinstance(wider, Ask)
    assert wider.link == 0
    assert isinstance(then(*ends, chain=(CHAIN[1], CHAIN[0], CHAIN[2])), Exhausted)
