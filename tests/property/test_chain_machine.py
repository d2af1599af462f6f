"""For any chain and any way in which calls may end: a turn terminates within its bounds, and no model is asked that must not be."""

from __future__ import annotations

from collections import Counter
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from crewlog.agents.chain import TRIES_PER_LINK, WAIT_S_MAX, Ask, Tried, next_link
from crewlog.schemas.ids import TaskId
from crewlog.schemas.task_events import Link

ONCE = {"malformed", "auth", "billing", "not_found", "context_length", "over_budget"}
PASSES = {"rate_limit", "overloaded", "server", "timeout", "connection", "cut", "interrupted", "malformed", "breaker_open"}
STOPS = {"bad_request", "content_filter"}
KINDS = sorted(ONCE | PASSES | STOPS)
links = st.lists(st.integers(0, 4).map(lambda n: n * 1000), min_size=1, max_size=6)
endings = st.lists(st.tuples(st.sampled_from(KINDS), st.sampled_from([0.0, 0.5, 4.0, 60.0])), min_size=20, max_size=20)


@given(windows=links, ends=endings, first=st.integers(0, 5), refusals=st.booleans(), task=st.uuids())
def test_a_turn_ends_within_its_bounds(windows: list[int], ends: list[tuple[str, float]], first: int, refusals: bool, task: UUID) -> None:
    chain = tuple(Link("w", "p", f"m{n}", window=window) for n, window in enumerate(windows))
    first = min(first, len(chain) - 1)
    tried: list[Tried] = []
    asked: Counter[int] = Counter()
    while True:
        step = next_link(chain, tried, task_id=TaskId(task), call_id=f"m1-{len(tried) + 1}", first=first, refusals_fall_through=refusals)
        if not isinstance(step, Ask):
            break
        assert first <= step.link < len(chain)
        assert 0 <= step.wait_s <= WAIT_S_MAX + 0.5
        of_link = [t.kind for t in tried if t.link == step.link]
        assert not ONCE.intersection(of_link), "what would be the same again is not asked again"
        assert "bad_request" not in [t.kind for t in tried]
        assert refusals or "content_filter" not in [t.kind for t in tried]
        assert all(chain[step.link].window > chain[t.link].window for t in tried if t.kind == "context_length")
        asked[step.link] += 1
        assert asked[step.link] <= TRIES_PER_LINK
        kind, wait_s = ends[len(tried)]
        tried.append(Tried(step.link, kind, "", wait_s))
    assert len(tried) <= TRIES_PER_LINK * len(chain)
    assert all(chain[t.link].model in step.failure.message for t in tried), "every call is listed"
    stopped = tried[-1].kind == "bad_request" or (tried[-1].kind == "content_filter" and not refusals)
    last_kinds = {t.link: t.kind for t in tried}.values()
    assert step.failure.retryable == (not stopped and not PASSES.isdisjoint(last_kinds))
