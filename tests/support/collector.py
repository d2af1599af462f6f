"""A collector of OTLP over HTTP on loopback that keeps what it is sent, decoded, and answers what the test says."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

WITHIN_S = 30.0


@dataclass(frozen=True)
class Seen:
    """A span as it came, with its process."""

    trace: str
    span: str
    parent: str
    name: str
    kind: str
    begin_ns: int
    end_ns: int
    attributes: dict[str, Any]
    links: tuple[str, ...]
    failed: bool
    process: str


@dataclass
class Collector:
    """Speaks just enough HTTP/1.1. `status` is what it answers; anything but 200 takes nothing."""

    status: int = 200
    metrics_status: int = 200
    spans: dict[tuple[str, str], Seen] = field(default_factory=dict)
    """By trace and span: what comes twice is one."""
    received: int = 0
    bodies: list[bytes] = field(default_factory=list)
    """Requests with spans, as they came, unpacked."""
    headers: list[dict[str, str]] = field(default_factory=list)
    metrics: dict[str, list[tuple[dict[str, Any], int, float]]] = field(default_factory=dict)
    """Name -> (attributes, count, sum) of its points, as they came last."""
    port: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    writers: set[asyncio.StreamWriter] = field(default_factory=set)
    serving: set[asyncio.Task[Any]] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def of(self, run_id: object) -> list[Seen]:
        """Return the spans of one run."""
        return [span for span in self.spans.values() if span.trace == str(run_id).replace("-", "")]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until what has come fulfils a condition."""
        async with asyncio.timeout(WITHIN_S):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.serving.add(task)
        self.writers.add(writer)
        try:
            while True:
                status = await self._one(reader)
                writer.write(f"HTTP/1.1 {status} Status\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n".encode())
                await writer.drain()
                self.changed.set()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.writers.discard(writer)
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def _one(self, reader: asyncio.StreamReader) -> int:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        body = gzip.decompress(body) if headers.get("content-encoding") == "gzip" else body
        self.headers.append(headers)
        self.received += 1
        assert headers["content-type"] == "application/x-protobuf"
        if head[0].startswith("POST /v1/traces "):
            if self.status == 200:
                self.take(body)
            return self.status
        assert head[0].startswith("POST /v1/metrics "), head[0]
        if self.metrics_status == 200:
            self.take_metrics(body)
        return self.metrics_status

    def take(self, body: bytes) -> None:
        self.bodies.append(body)
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
            process = _values(resource.resource.attributes).get("service.instance.id", "")
            for span in (span for scope in resource.scope_spans for span in scope.spans):
                seen = _seen(span, process)
                self.spans[seen.trace, seen.span] = seen

    def take_metrics(self, body: bytes) -> None:
        for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
            for metric in (metric for scope in resource.scope_metrics for metric in scope.metrics):
                self.metrics[metric.name] = [(_values(p.attributes), p.count, p.sum) for p in metric.histogram.data_points]


def _seen(span: Span, process: str) -> Seen:
    return Seen(
        trace=span.trace_id.hex(),
        span=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        name=span.name,
        kind=Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_"),
        begin_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        attributes=_values(span.attributes),
        links=tuple(f"{link.trace_id.hex()}/{link.span_id.hex()}" for link in span.links),
        failed=span.status.code == Status.STATUS_CODE_ERROR,
        process=process,
    )


def _values(attributes: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in attributes if isinstance(pair, KeyValue)}


def _value(value: AnyValue) -> Any:
    which = value.WhichOneof("value")
    return [_value(one) for one in value.array_value.values] if which == "array_value" else getattr(value, which)


def tree(spans: list[Seen]) -> list[str]:
    """Draw the one tree that spans of a trace form: names, indented, in the order in which they began. Fails when there is more than one root."""
    (root,) = [span for span in spans if not span.parent]
    known = {span.span for span in spans}
    assert all(span.parent in known for span in spans if span is not root), "a span's parent is missing"
    drawn: list[str] = []

    def draw(span: Seen, depth: int) -> None:
        drawn.append("  " * depth + span.name)
        for child in sorted((s for s in spans if s.parent == span.span), key=lambda s: (s.begin_ns, s.name)):
            assert child.trace == span.trace
            draw(child, depth + 1)

    draw(root, 0)
    assert len(drawn) == len(spans), "spans form a circle"
    return drawn


@asynccontextmanager
async def collecting(**settings: Any) -> AsyncIterator[Collector]:
    """Run a collector."""
    collector = Collector(**settings)
    server = await asyncio.start_server(collector.handle, "127.0.0.1", collector.port)
    collector.port = server.sockets[0].getsockname()[1]
    async with server:
        yield collector
        for writer in list(collector.writers):
            writer.close()
        await asyncio.gather(*collector.serving)
