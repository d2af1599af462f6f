"""The view of providers: what running workers saw last of each model that failed them."""

from __future__ import annotations

from support.postgres import Database
from support.views import follow, log_of, model_of

from crewlog.events.clock import SystemClock
from crewlog.events.store import AppendRequest, Write
from crewlog.projections.queries import Queries
from crewlog.schemas.codec import Event
from crewlog.schemas.ids import Stream, agent_stream, provider_stream
from crewlog.schemas.system_events import AgentRegistered, AgentStopped, BreakerState, ProviderStateChanged

CLOCK = SystemClock()
UNTIL_US = 1_800_000_000_000_000


def registered(worker: str) -> AgentRegistered:
    return AgentRegistered("data", worker, "Counts.", "1", 4, "acme/a", simulated=False, tools=())


def changed(worker: str, model: str, state: BreakerState, *, until_us: int = 0) -> ProviderStateChanged:
    return ProviderStateChanged(worker, "test", "acme", model, state, until_us, "" if state == "closed" else "server")


async def test_the_last_state_of_each_model_of_each_running_worker(database: Database) -> None:
    history: list[tuple[Stream, Event]] = [
        (agent_stream("data"), registered("w1")),
        (agent_stream("data"), registered("w2")),
        (agent_stream("data"), registered("gone")),
        (provider_stream("acme"), changed("w1", "a", "open", until_us=UNTIL_US)),
        (provider_stream("acme"), changed("w1", "b", "open", until_us=UNTIL_US)),
        (provider_stream("acme"), changed("gone", "a", "open", until_us=UNTIL_US)),
        (provider_stream("acme"), changed("w2", "a", "half_open")),
        (provider_stream("acme"), changed("w1", "b", "closed")),
        (agent_stream("data"), AgentStopped("data", "gone")),
    ]
    async with log_of(database) as store, model_of(database, store) as model:
        for stream, event in history:
            await store.append(AppendRequest((Write(stream, (event,)),), (CLOCK.new_id(),), CLOCK.now_us()))
            await follow(model, store)
    async with Queries(database.url("crewlog_operator"), CLOCK) as queries:
        found = await queries.providers()
    assert [(p.worker, p.model, p.state, p.reason) for p in found] == [
        ("w1", "a", "open", "server"),
        ("w2", "a", "half_open", "server"),
        ("w1", "b", "closed", ""),
    ]
    assert found[0].until_at is not None
    assert found[0].until_at.timestamp() == UNTIL_US / 1e6
    assert found[1].until_at is None
