"""The process of one worker: wire the ports, run until told to stop."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import lru_cache, partial
from typing import Final

from crewlog.agents.breaker import Breakers
from crewlog.agents.kinds import BUILT_IN, Services, load_agent, missing_extras
from crewlog.agents.knowledge_postgres import PostgresKnowledge
from crewlog.agents.live_text import LiveText
from crewlog.agents.memories_personal import PersonalMemories
from crewlog.agents.memories_postgres import PostgresMemories
from crewlog.agents.memory_tools import with_memory
from crewlog.agents.model import Closable, Model
from crewlog.agents.models import PLANNERS_TASKS, build_chain, chain_of, parse_models, trial_chain
from crewlog.agents.prices import load_prices
from crewlog.agents.provider_watch import ProviderWatch
from crewlog.agents.scratch import remove_left
from crewlog.agents.spec import AgentSpec, Requirement
from crewlog.agents.work import Workshop
from crewlog.agents.worker import Worker
from crewlog.events import faults
from crewlog.events.artifact_store import open_artifacts
from crewlog.events.clock import Clock, SystemClock
from crewlog.events.config import Config
from crewlog.events.memory import settle_memory
from crewlog.events.nats_bus import NatsBus
from crewlog.events.personal_store import PersonalStore, personal_log
from crewlog.events.poke import Poke
from crewlog.events.postgres_store import PostgresStore
from crewlog.events.readiness import announce_ready
from crewlog.events.stop_signal import stop_on_signals
from crewlog.events.store import EventStore
from crewlog.schemas.errors import ConfigError
from crewlog.schemas.subjects import LANES, SHADOW_LANE

GAVE_UP: Final = 70
"""Status of a worker that ended because calls of its tools did not: it is started again."""

log = logging.getLogger(__name__)


async def run_agent(config: Config, target: str, *, shadow: bool = False) -> None:
    """Run a worker of a built-in kind or of a user's `module:ATTRIBUTE` until SIGTERM or SIGINT.

    Args:
        shadow: it takes the work of shadows and no other.

    Raises:
        ConfigError: the agent cannot be loaded, or the servers' addresses are missing.
    """
    await run_worker(config, target if target in BUILT_IN else load_agent(target), lanes=(SHADOW_LANE,) if shadow else LANES)


async def run_worker(config: Config, agent: str | AgentSpec, *, model: Model | None = None, lanes: Sequence[str] = LANES) -> None:
    """Run a worker of a built-in kind or of the given agent until SIGTERM or SIGINT.

    Args:
        model: the one model to use, which is closed at the end; by default those that `config.models` names for the kind.
        lanes: which it takes work from.
    """
    if config.database_url is None or config.nats_url is None:
        raise ConfigError("an agent needs CREWLOG_DATABASE_URL and CREWLOG_NATS_URL", hint="`crewlog up` passes them")
    faults.install_from_environment()
    clock = SystemClock()
    kind = agent if isinstance(agent, str) else agent.kind
    worker_id = f"{kind if lanes == LANES else '-'.join((kind, *lanes))}-{clock.random_id().hex[:8]}"
    database_url = config.database_url.get_secret_value()
    async with AsyncExitStack() as closing:
        bus = await NatsBus.connect(config.nats_url.get_secret_value(), name=worker_id, provision=config.provision)
        closing.push_async_callback(bus.close)
        poke = Poke(bus)
        closing.push_async_callback(poke.close)
        knowledge = PostgresKnowledge(database_url)
        closing.push_async_callback(knowledge.close)
        log_store = await PostgresStore.open(database_url, actor=f"agent@{worker_id}", clock=clock, on_commit=poke.notify)
        closing.push_async_callback(log_store.close)
        store = await personal_log(log_store, config, clock, works=True)
        watch = ProviderWatch(store, clock, worker_id)
        closing.push_async_callback(watch.stop)
        chain, roles = ((model,), {}) if model is not None else _chains(kind, config)
        for link in {id(m): m for models in (chain, *roles.values()) for m in models}.values():
            if isinstance(link, Closable):
                closing.push_async_callback(link.close)
        load_prices(link for models in (chain, *roles.values()) for link in models)
        spec = BUILT_IN[agent](Services(config, store, knowledge)) if isinstance(agent, str) else agent
        spec = await _with_mcp(spec, config, store, clock, closing)
        spec = _with_memory(spec, config, store, clock, closing)
        shop = Workshop(
            worker=worker_id,
            spec=spec,
            chain=chain,
            roles=roles,
            breakers=Breakers(watch.changed),
            live=LiveText(bus.publish) if config.live_text else None,
            artifacts=await open_artifacts(config.artifacts_url or config.home / "artifacts"),
            clock=clock,
            workspaces=config.home / "workspaces",
            prices=config.prices,
            refusals_fall_through=config.refusals_fall_through,
            hedge_after_s=config.hedge_after_s,
            allow_unpriced=config.unpriced == "allow",
            saves_money=config.downgrade_on_soft_limit,
            moves_tasks=config.agent_change == "move",
            model_timeout_s=config.model_timeout_s,
            approval_ttl_s=config.approval_ttl_s,
            hold_fresh_s=min(config.ack_wait_s, config.dispatch_lease_s) / 2,
            context=config.context,
            context_window=config.context_window,
            trial_chain=_trial_chains(config, closing),
        )
        await asyncio.to_thread(remove_left, shop.workspaces)
        worker = Worker(shop, store, bus, slots=config.slots, unavailable=missing_extras(spec), lanes=lanes)
        shop.health.runaways.end_process = partial(os._exit, GAVE_UP)
        await _run(worker, config.shutdown_grace_s)
    if shop.health.runaways.left:
        os._exit(GAVE_UP if shop.health.runaways.gave_up else 0)  # the loop would wait for them


def _chains(kind: str, config: Config) -> tuple[tuple[Model, ...], dict[str, tuple[Model, ...]]]:
    """Build the chain of a kind, and of those of its tasks that have one of their own."""
    choices = parse_models(config.models)
    own = [role for role in PLANNERS_TASKS if kind == "planner" and chain_of(role, choices) != chain_of(kind, choices)]
    return build_chain(kind, config), {role: build_chain(role, config) for role in own}


def _trial_chains(config: Config, closing: AsyncExitStack) -> Callable[[str, str], tuple[Model, ...] | None]:
    """Make the chains that trials name when they are first needed; their connections are closed with the worker."""

    @lru_cache(maxsize=64)
    def chain_for(models: str, role: str) -> tuple[Model, ...] | None:
        chain = trial_chain(models, role, config)
        for link in chain or ():
            if isinstance(link, Closable):
                closing.push_async_callback(link.close)
        return chain

    return chain_for


def _with_memory(spec: AgentSpec, config: Config, store: EventStore, clock: Clock, closing: AsyncExitStack) -> AgentSpec:
    if not config.memory or config.database_url is None:
        return spec
    indexed = PostgresMemories(config.database_url.get_secret_value())
    closing.push_async_callback(indexed.close)
    return with_memory(spec, store, PersonalMemories(indexed, store) if isinstance(store, PersonalStore) else indexed, clock)


async def _with_mcp(spec: AgentSpec, config: Config, store: EventStore, clock: Clock, closing: AsyncExitStack) -> AgentSpec:
    """Let the tools of the MCP servers that are configured for this kind join it; without the library it is unavailable, and says so."""
    servers = {name: server for name, server in config.mcp.items() if spec.kind in server.kinds}
    if not servers:
        return spec
    needed = Requirement("mcp", "mcp")
    if importlib.util.find_spec(needed.module) is None:
        return replace(spec, requires=(*spec.requires, needed))
    from crewlog.agents.mcp_hub import McpHub

    hub = McpHub(servers, store, clock)
    closing.push_async_callback(hub.stop)
    await hub.start()
    return replace(spec, more_tools=hub.tools, lacking=hub.lacking)


async def _run(worker: Worker, grace_s: float) -> None:
    stop = stop_on_signals()
    starting = asyncio.create_task(worker.start())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    if starting.done():
        starting.result()
        settle_memory()
        announce_ready()
        log.info("ready")
        drained = asyncio.create_task(worker.drained.wait())
        await asyncio.wait({stopping, drained}, return_when=asyncio.FIRST_COMPLETED)
        drained.cancel()
    for task in (starting, stopping):
        task.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    await worker.stop(grace_s=grace_s)
