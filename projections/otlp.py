"""OTLP over HTTP: spans and metrics as protobuf, sent to a collector. The only module that knows OpenTelemetry's formats.

Written with the generated classes, without the SDK: spans are finished when they come here, so there is nothing left for it to do but to
copy them twice. Most attributes recur, so each is encoded once; that halves the time.
"""

from __future__ import annotations

import gzip
import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from importlib.metadata import version
from typing import Final
from urllib.parse import unquote, urlsplit

import httpx2
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, InstrumentationScope, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality, Histogram, HistogramDataPoint, Metric
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Status
from opentelemetry.proto.trace.v1.trace_pb2 import Span as OtlpSpan

from crewlog.projections.meters import Instrument, Labels, Meters, Series
from crewlog.projections.span import Span, Value
from crewlog.schemas.errors import ConfigError, ContractError, OrchestrationError, Unavailable

log = logging.getLogger(__name__)

TIMEOUT_S: Final = 10.0
"""Longest wait for a collector's answer, in seconds: OTLP's own default."""
GZIP_ABOVE_BYTES: Final = 64 * 1024
"""Smaller bodies are not worth the time."""
SCOPE: Final = InstrumentationScope(name="crewlog", version=version("crewlog"))
_FAILED: Final = Status(code=Status.STATUS_CODE_ERROR)
_SAMPLED: Final = 0x01


def parse_pairs(text: str, *, what: str) -> dict[str, str]:
    """Read `name=value,name=value`, values percent-encoded, as OpenTelemetry's environment variables have it.

    Raises:
        ConfigError: it is not that. Values are not repeated: they may be secrets.
    """
    pairs = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = part.partition("=")
        if not equals or not name.strip() or not unquote(value).isprintable():
            raise ConfigError(f"{what} must be name=value, separated by commas", hint="values are percent-encoded: %2C is a comma")
        pairs[name.strip()] = unquote(value.strip())
    return pairs


class NotHere(Unavailable):
    """The collector takes nothing of this kind at this address."""


class Otlp:
    """A connection to one collector."""

    def __init__(self, endpoint: str, *, headers: Mapping[str, str], resource: Mapping[str, str]) -> None:
        """Prepare; nothing is sent yet.

        Args:
            endpoint: base address; `/v1/traces` and `/v1/metrics` are added.
            headers: sent with every request, a collector's key among them.
            resource: what all spans and metrics say of where they come from; `service.name` is `crewlog` unless it says otherwise.
        """
        self._endpoint = endpoint.rstrip("/")
        self._shown = urlsplit(endpoint).netloc.rpartition("@")[2]
        self._resource = {"service.name": "crewlog", "service.version": SCOPE.version, **resource}
        encoded = {name.encode(): value.encode() for name, value in {**headers, "content-type": "application/x-protobuf"}.items()}
        self._client = httpx2.AsyncClient(headers=encoded, timeout=TIMEOUT_S, follow_redirects=False)

    async def close(self) -> None:
        """Let go of the connection."""
        await self._client.aclose()

    def encode_spans(self, spans: Iterable[Span]) -> bytes:
        """Write spans as one request; each process is a resource of its own."""
        by_process: dict[str, list[bytes]] = {}
        for span in spans:
            try:
                by_process.setdefault(span.actor, []).append(_field(ScopeSpans.SPANS_FIELD_NUMBER, _span(span)))
            except (ValueError, OverflowError) as error:  # what a provider counted may fit no 64 bits
                log.warning("span %s of run %s is left out: %s", span.name, span.trace_id.hex(), error)
        return b"".join(self._of_process(actor, encoded) for actor, encoded in by_process.items())

    def _of_process(self, actor: str, spans: Sequence[bytes]) -> bytes:
        scope = bytes(ScopeSpans(scope=SCOPE).SerializeToString()) + b"".join(spans)
        resource = bytes(ResourceSpans(resource=self._resource_of(actor)).SerializeToString())
        return _field(ExportTraceServiceRequest.RESOURCE_SPANS_FIELD_NUMBER, resource + _field(ResourceSpans.SCOPE_SPANS_FIELD_NUMBER, scope))

    def encode_metrics(self, meters: Meters, now_us: int) -> bytes:
        """Write all histograms, cumulative since the meters began."""
        request = ExportMetricsServiceRequest()
        scope = request.resource_metrics.add(resource=self._resource_of("")).scope_metrics.add(scope=SCOPE)
        for instrument, series in meters.series.items():
            points = [_point(instrument, labels, one, meters.begin_us, now_us) for labels, one in series.items()]
            histogram = Histogram(data_points=points, aggregation_temporality=AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE)
            scope.metrics.append(Metric(name=instrument.name, unit=instrument.unit, histogram=histogram))
        return bytes(request.SerializeToString())

    async def send_spans(self, body: bytes) -> str:
        """Send a request with spans; returns what the collector has to say about it, empty when all is well.

        Raises:
            Unavailable: it was not taken, and may be later.
            ContractError: it will not be taken: sending it again would end the same way.
        """
        answer = ExportTraceServiceResponse()
        try:
            answer.ParseFromString(await self._post("traces", body))
        except DecodeError:
            return ""  # taken all the same; some answer in JSON
        partial = answer.partial_success
        return f"{partial.rejected_spans} spans were rejected: {partial.error_message}" if partial.rejected_spans else partial.error_message

    async def send_metrics(self, body: bytes) -> bool:
        """Send a request with metrics; False when this collector takes none at all.

        Raises:
            Unavailable, ContractError: as for spans.
        """
        try:
            await self._post("metrics", body)
        except NotHere:
            return False
        return True

    async def _post(self, what: str, body: bytes) -> bytes:
        headers = {}
        if len(body) > GZIP_ABOVE_BYTES:
            body, headers = gzip.compress(body, 1), {"content-encoding": "gzip"}
        try:
            answer = await self._client.post(f"{self._endpoint}/v1/{what}", content=body, headers=headers)
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            raise Unavailable(f"send {what} to the collector at {self._shown}: {str(error) or type(error).__name__}") from None
        if answer.is_success:
            return answer.content
        raise _refusal(f"the collector at {self._shown} answered {answer.status_code} to {what}", answer.status_code)

    def _resource_of(self, actor: str) -> Resource:
        return _resource(tuple(self._resource.items()), actor)


def open_collector(endpoint: str, headers: str, resource: str) -> Otlp:
    """Prepare the connection that the configuration describes; see `Config` for the meaning.

    Raises:
        ConfigError: headers or resource cannot be read.
    """
    pairs = parse_pairs(headers, what="CREWLOG_OTLP_HEADERS"), parse_pairs(resource, what="CREWLOG_OTLP_RESOURCE")
    return Otlp(endpoint, headers=pairs[0], resource=pairs[1])


def _refusal(said: str, status: int) -> OrchestrationError:
    """Tell what lies in the request from what an operator or time will mend."""
    if status in (404, 405, 415, 501):
        return NotHere(f"{said}: it takes no such thing there; is the address that of OTLP over HTTP?")
    return ContractError(said) if status in (400, 413, 422) else Unavailable(said)


@lru_cache(maxsize=256)
def _resource(given: tuple[tuple[str, str], ...], actor: str) -> Resource:
    attributes = dict(given)
    if actor:
        attributes["service.instance.id"] = actor
    return Resource(attributes=[_attribute(key, value) for key, value in attributes.items()])


def _field(number: int, body: bytes) -> bytes:
    """Write one field that holds a message: its number, its length in base 128, its bytes."""
    length, size = bytearray(), len(body)
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    length.append(size)
    return bytes((number << 3 | 2, *length)) + body


def _attribute(key: str, value: Value) -> KeyValue:
    match value:
        case str():
            return KeyValue(key=key, value=AnyValue(string_value=value))
        case bool():
            return KeyValue(key=key, value=AnyValue(bool_value=value))
        case int():
            return KeyValue(key=key, value=AnyValue(int_value=value))
        case float():
            return KeyValue(key=key, value=AnyValue(double_value=value))
        case _:
            return KeyValue(key=key, value=AnyValue(array_value=ArrayValue(values=[AnyValue(string_value=one) for one in value])))


@lru_cache(maxsize=16_384, typed=True)  # 1, 1.0 and True are equal, and not the same attribute
def _known(key: str, value: Value) -> bytes:
    return _field(OtlpSpan.ATTRIBUTES_FIELD_NUMBER, bytes(_attribute(key, value).SerializeToString()))


def _span(span: Span) -> bytes:
    """Write a span. Protobuf messages that stand one behind the other are merged, so what recurs is written once and kept: attributes."""
    own = OtlpSpan(
        trace_id=span.trace_id,
        span_id=span.span_id,
        parent_span_id=span.parent_id,
        flags=_SAMPLED,
        name=span.name,
        kind=int(span.kind),  # type: ignore[arg-type]  # both number kinds as OTLP does
        start_time_unix_nano=span.begin_us * 1000,
        end_time_unix_nano=span.end_us * 1000,
    )
    if span.links:
        own.links.extend([OtlpSpan.Link(trace_id=link.trace_id, span_id=link.span_id, flags=_SAMPLED) for link in span.links])
    if span.error:
        own.status.CopyFrom(_FAILED)
    return bytes(own.SerializeToString()) + b"".join([_known(key, value) for key, value in span.attributes.items()])


def _point(instrument: Instrument, labels: Labels, series: Series, begin_us: int, now_us: int) -> HistogramDataPoint:
    return HistogramDataPoint(
        attributes=[_attribute(key, value) for key, value in labels],
        start_time_unix_nano=begin_us * 1000,
        time_unix_nano=now_us * 1000,
        count=series.count,
        sum=series.total,
        bucket_counts=series.buckets,
        explicit_bounds=instrument.bounds,
        min=series.lowest,
        max=series.highest,
    )
