"""Send what a replay folded to the tracing tool: a trace of its own, with the times of the original and linked to it."""

from __future__ import annotations

from uuid import UUID

from crewlog.events.clock import Clock
from crewlog.events.config import Config
from crewlog.events.store import EventStore
from crewlog.schemas.errors import ConfigError, NotFound
from crewlog.schemas.ids import RunId


async def send_replay(config: Config, store: EventStore, run_id: RunId, clock: Clock) -> UUID:
    """Send the trace of a recorded run under a new id, and return that.

    Raises:
        ConfigError: no collector is configured.
        NotFound: the log has no such run.
        Unavailable, ContractError: the collector did not take it.
    """
    if config.otlp_endpoint is None:
        raise ConfigError("no collector is configured that the trace could be sent to", hint="set CREWLOG_OTLP_ENDPOINT, such as http://127.0.0.1:4318")
    from crewlog.projections.otlp import open_collector
    from crewlog.projections.span_content import with_content
    from crewlog.projections.telemetry import trace_of

    events = await store.read_run(run_id)
    if not events:
        raise NotFound("run", str(run_id))
    replay = clock.random_id()
    spans = trace_of(run_id, events, replay=replay, with_content=config.trace_content)
    collector = open_collector(config.otlp_endpoint, config.otlp_headers.get_secret_value(), config.otlp_resource)
    try:
        await collector.send_spans(collector.encode_spans(await with_content(spans, store)))
    finally:
        await collector.close()
    return replay
