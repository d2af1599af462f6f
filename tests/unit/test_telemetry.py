"""Sending the log to a collector: nothing is lost while it is away, nothing is sent twice under another name, and nobody waits for it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import Any
from uuid import UUID

import pytest
from support.collector import Collector, collecting, tree
from support.histories import BEGIN_US, recorded_history, write_history

from crewlog.events.clock import SystemClock
from crewlog.events.config import load
from crewlog.events.memory_bus import MemoryBus
from crewlog.events.memory_store import MemoryStore
from crewlog.projections import span_names as names
from crewlog.projections import telemetry as module
from crewlog.projections.meters import SECONDS, Meters
from crewlog.projections.otlp import Otlp, open_collector, parse_pairs
from crewlog.projections.span import Content, Span, SpanKind
from crewlog.projections.span_content import with_content
from crewlog.projections.telemetry import Telemetry, trace_of
from crewlog.projections.trace import END_TYPES
from crewlog.schemas.errors import ConfigError, TerminalError, Unavailable
from crewlog.schemas.ids import Hash
from crewlog.schemas.payload import Payload
from crewlog.schemas.trace_context import SpanRef, is_traced, parse_traceparent, span_id, traceparent

pytestmark = pytest.mark.hand_written("traces are tried on histories of every shape")

RUN = UUID("00000000-0000-4000-8000-00000000000a")
BAD = Hash("b" * 64)


class HistoryClock(SystemClock):
    """Now is when the histories are."""

    def now_us(self) -> int:
        return BEGIN_US


class Kept:
    """A position in memory."""

    def __init__(self, position: int = 0) -> None:
        self.position = position
        self.moved = asyncio.Event()

    async def read(self, begin_us: int) -> int:
        return self.position

    async def save(self, position: int) -> None:
        assert position > self.position
        self.position = position
        self.moved.set()

    async def reached(self, position: int) -> None:
        async with asyncio.timeout(30):
            while self.position < position:
                self.moved.clear()
                await self.moved.wait()


@asynccontextmanager
async def a_sender(store: MemoryStore, collector: Collector, progress: Kept, **settings: Any) -> AsyncIterator[Telemetry]:
    otlp = Otlp(collector.url, headers={"x-key": "k"}, resource={"deployment.environment.name": "test"})
    yield Telemetry(store, store, MemoryBus(), HistoryClock(), otlp, progress, **{"gather_s": 0.0, "send_every_s": 0.0, "retry_first_s": 0.01, **settings})
    await otlp.close()


@asynccontextmanager
async def telemetry(store: MemoryStore, collector: Collector, progress: Kept, **settings: Any) -> AsyncIterator[None]:
    """Send a log until the block ends."""
    async with a_sender(store, collector, progress, **settings) as sender:
        running = asyncio.create_task(sender.run())
        try:
            yield
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)


async def a_history(seed: int = 3, *, runs: int = 4, moves: int = 400) -> tuple[MemoryStore, set[UUID], int]:
    """Return a log, its runs that have ended, and how many spans all of its runs have."""
    store, events = await recorded_history(write_history(Random(seed), runs=runs, moves=moves))
    ended = {r.run_id for r in events if r.run_id is not None and r.type in END_TYPES}
    spans = sum(len(trace_of(run_id, [r for r in events if r.run_id == run_id])) for run_id in {r.run_id for r in events if r.run_id is not None})
    return store, set(ended), spans


async def test_a_log_becomes_one_tree_per_run() -> None:
    store, ended, spans = await a_history()
    async with collecting() as collector:
        async with telemetry(store, collector, Kept()):
            await collector.until(lambda: len(collector.spans) == spans)
        assert len(ended) == 4
        for run_id in ended:
            assert tree(collector.of(run_id))[0].startswith("invoke_workflow ")
        assert collector.headers[0]["x-key"] == "k"
        counted = {name: sum(count for _, count, _ in points) for name, points in collector.metrics.items()}
        seen = [span.attributes.get("gen_ai.operation.name") for span in collector.spans.values()]
        assert counted["gen_ai.client.operation.duration"] == seen.count("chat")
        assert counted["gen_ai.execute_tool.duration"] == seen.count("execute_tool")
        assert counted["gen_ai.invoke_agent.duration"] == seen.count("invoke_agent")
        labels = {value for points in collector.metrics.values() for attributes, _, _ in points for value in attributes.values()}
        assert not labels & {str(run_id) for run_id in ended}


async def test_while_the_collector_is_away_the_log_keeps_everything() -> None:
    store, ended, spans = await a_history()
    progress = Kept()
    async with collecting(status=503) as collector:
        async with telemetry(store, collector, progress):
            await collector.until(lambda: collector.received > 3)
            assert progress.position == 0
            collector.status = 200
            await collector.until(lambda: len(collector.spans) == spans)
        assert all(tree(collector.of(run_id)) for run_id in ended)
    assert progress.position == (await store.read_all(0, 1_000_000)).events[-1].position


async def test_a_process_that_goes_on_sends_the_rest_and_the_same_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGE_EVENTS_MAX", 7)
    store, _, spans = await a_history()
    last = (await store.read_all(0, 1_000_000)).events[-1].position
    async with collecting() as collector:
        for position in (0, last // 3, last // 2):  # as if what was sent behind it had not been noted
            async with telemetry(store, collector, progress := Kept(position)):
                await progress.reached(last)
        assert len(collector.spans) == spans
        assert len({span.span for span in collector.spans.values()}) == spans


async def test_what_a_collector_refuses_for_good_is_dropped_and_said(caplog: pytest.LogCaptureFixture) -> None:
    store, _, _ = await a_history(moves=30)
    progress = Kept()
    async with collecting(status=400) as collector, telemetry(store, collector, progress):
        await collector.until(lambda: collector.received > 0)
    assert progress.position > 0
    assert "spans are lost" in caplog.text
    assert "answered 400" in caplog.text


async def test_a_collector_without_metrics_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "METRICS_EVERY_S", 0.0)
    store, _, spans = await a_history()
    async with collecting(metrics_status=404) as collector, a_sender(store, collector, Kept()) as sender:
        for _ in range(3):
            await sender.catch_up()
        assert len(collector.spans) == spans
        assert collector.received - len(collector.bodies) == 1


async def test_a_stop_is_bounded_while_the_collector_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STOP_S", 0.1)
    store, _, _ = await a_history(moves=30)
    asked = asyncio.Event()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await reader.read()  # says nothing until the other side goes away
        writer.close()

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    async with server:
        collector = Collector(port=server.sockets[0].getsockname()[1])
        async with telemetry(store, collector, progress := Kept()):
            await asked.wait()
            began = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - began < 2
    assert progress.position == 0


async def test_only_the_chosen_share_of_runs_is_sent() -> None:
    store, ended, _ = await a_history()
    async with collecting() as collector:
        async with telemetry(store, collector, progress := Kept(), share=0.5):
            last = (await store.read_all(0, 1_000_000)).events[-1].position
            await progress.reached(last)
        assert {span.trace for span in collector.spans.values()} >= {run_id.hex for run_id in ended if is_traced(run_id, 0.5)}
        assert not {span.trace for span in collector.spans.values()} & {run_id.hex for run_id in ended if not is_traced(run_id, 0.5)}


def test_the_share_is_a_share() -> None:
    ids = [UUID(int=n) for n in range(2_000)]
    assert sum(is_traced(run_id, 0.25) for run_id in ids) == pytest.approx(500, abs=80)
    assert all(is_traced(run_id, 1.0) for run_id in ids)
    assert not any(is_traced(run_id, 0.0) for run_id in ids)


@pytest.mark.parametrize(
    "header",
    [
        *("", "00-0-0-01", "x" * 10_000),
        *(f"00-{'0' * 32}-{'1' * 16}-01", f"00-{'1' * 32}-{'0' * 16}-01", f"01-{'1' * 32}-{'1' * 16}-01", f"00-{'A' * 32}-{'1' * 16}-01"),
    ],
)
def test_what_is_no_traceparent_is_none(header: str) -> None:
    assert parse_traceparent(header) is None


def test_a_traceparent_names_a_span_of_the_run() -> None:
    own = span_id(RUN, "send/1")
    assert parse_traceparent(traceparent(RUN, own)) == SpanRef(RUN.bytes, own)
    assert traceparent(RUN, own, is_sampled=False).endswith("-00")


def test_buckets_include_their_upper_bound() -> None:
    meters = Meters(0)
    for span in trace_with(begin_us=0, end_us=10_000), trace_with(begin_us=0, end_us=10_001), trace_with(begin_us=0, end_us=1_000_000_000):
        meters.measure(span)
    (series,) = next(iter(meters.series.values())).values()
    assert (series.buckets[0], series.buckets[1], series.buckets[len(SECONDS)]) == (1, 1, 1)
    assert (series.count, series.lowest, series.highest) == (3, 0.01, 1000.0)


def trace_with(*, begin_us: int, end_us: int) -> Any:
    from crewlog.projections.span import Span, SpanKind

    attributes: dict[str, Any] = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "look"}
    return Span(b"", b"", b"", "", SpanKind.INTERNAL, begin_us, end_us, attributes, "")


def test_settings_of_opentelemetry_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20secret,x=1")
    assert load().otlp_endpoint == "http://127.0.0.1:4318"
    assert "secret" not in repr(load())
    assert parse_pairs(load().otlp_headers.get_secret_value(), what="headers") == {"authorization": "Bearer secret", "x": "1"}
    monkeypatch.setenv("CREWLOG_OTLP_ENDPOINT", "http://127.0.0.1:6006")
    assert load().otlp_endpoint == "http://127.0.0.1:6006"
    monkeypatch.delenv("CREWLOG_OTLP_ENDPOINT")
    assert not load().trace_content
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "EVENT_ONLY")
    assert not load().trace_content
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "SPAN_AND_EVENT")
    assert load().trace_content
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert load().otlp_endpoint is None


def test_wrong_settings_are_refused_without_repeating_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for wrong in ("127.0.0.1:4317", "grpc://127.0.0.1:4317", "http://", "http://[secret"):
        with pytest.raises(ConfigError, match="otlp_endpoint") as refused:
            load(otlp_endpoint=wrong)
        assert "secret" not in str(refused.value)
    for wrong in ("secret-without-a-name", "=secret", "a=secret%0Aline"):
        with pytest.raises(ConfigError) as refused:
            parse_pairs(wrong, what="CREWLOG_OTLP_HEADERS")
        assert "secret" not in str(refused.value)
    assert load(otlp_endpoint="").otlp_endpoint is None


def test_a_count_that_no_model_can_have_is_not_counted() -> None:
    meters = Meters(0)
    labels = {names.OPERATION: "chat", names.INPUT_TOKENS: 10**400, names.OUTPUT_TOKENS: 7}
    meters.measure(Span(RUN.bytes, b"12345678", b"", "chat a", SpanKind.CLIENT, 1, 2, labels, "research@w"))
    counted = [series.total for instrument, of in meters.series.items() if instrument.unit == "{token}" for series in of.values()]
    assert counted == [7.0]


async def test_a_text_with_other_bytes_costs_its_span_the_content_and_no_other(caplog: pytest.LogCaptureFixture) -> None:
    class Spoiled(MemoryStore):
        async def get_blobs(self, hashes: Sequence[Hash]) -> Mapping[Hash, bytes]:
            if BAD in hashes:
                raise TerminalError(f"blob {BAD} is stored with other bytes")
            return await super().get_blobs(hashes)

    def told(ref: Hash, number: int) -> Span:
        return Span(
            *(RUN.bytes, bytes([number] * 8), b"", f"tool {number}", SpanKind.INTERNAL, 1, 2, {}, "research@w"), content=Content(result=Payload(5, ref=ref))
        )

    store = Spoiled()
    (good,) = await store.put_blobs([b"words"])
    spans = await with_content([told(good, 1), told(BAD, 2), told(good, 3)], store)
    assert [span.attributes.get(names.TOOL_RESULT) for span in spans] == ["words", None, "words"]
    assert "tool 2" in caplog.text


async def test_an_address_with_a_password_is_not_repeated_where_the_collector_is_named() -> None:
    async with collecting(status=503) as collector:
        otlp = open_collector(f"http://ann:secret@127.0.0.1:{collector.port}", "x=grün", "")
        with pytest.raises(Unavailable) as refused:
            await otlp.send_spans(b"")
        await otlp.close()
    assert f"127.0.0.1:{collector.port}" in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_span_that_fits_no_protobuf_is_left_out_alone(caplog: pytest.LogCaptureFixture) -> None:
    good, bad = trace_with(begin_us=0, end_us=1), trace_with(begin_us=0, end_us=1)._replace(attributes={"gen_ai.usage.input_tokens": 2**70})
    body = open_collector("http://127.0.0.1:1", "", "").encode_spans([bad, good])
    collector = Collector()
    collector.take(body)
    assert len(collector.spans) == 1
    assert "is left out" in caplog.text


def test_without_an_endpoint_nothing_of_it_is_imported() -> None:
    code = "import sys, crewlog.projections.process, crewlog.orchestrator.service; sys.exit(any(m.startswith('opentelemetry') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0
