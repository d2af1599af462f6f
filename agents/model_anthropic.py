"""The Anthropic Messages API behind the model port: translates a request, asks once, translates the answer or the error.

Retries and tracing of the SDK are off: the worker owns both. Whatever cannot be understood in an answer is `malformed`, never a crash.
"""

from __future__ import annotations

import email.utils
import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from crewlog.agents.model import ErrorKind, ModelError, OnText
from crewlog.schemas.blocks import Message, ModelReply, ModelRequest, StopReason, Text, ToolResult, ToolUse
from crewlog.schemas.text import shorten
from crewlog.schemas.usage import Usage

if TYPE_CHECKING:
    import anthropic
    from anthropic.types import Message as Answer

_STOPS: Final[Mapping[str, StopReason]] = {
    "end_turn": "end_turn",
    "pause_turn": "pause",
    "stop_sequence": "end_turn",
    "tool_use": "tool_use",
    "max_tokens": "max_tokens",
    "refusal": "refusal",
}
_CONTEXT: Final = re.compile(r"context.{0,12}(?:length|window)|too many tokens|prompt is too long|maximum.{0,20}tokens", re.IGNORECASE)
_SPEND_LIMITS: Final = frozenset({"contract_spend_limit_reached", "enforced_spend_limit_reached"})
_BY_STATUS: Final[Mapping[int, ErrorKind]] = {
    401: "auth",
    402: "billing",
    403: "auth",
    404: "not_found",
    408: "timeout",
    413: "context_length",
    429: "rate_limit",
    503: "overloaded",
    504: "timeout",
    529: "overloaded",
}
_MESSAGE_CHARS_MAX: Final = 1_000


class AnthropicModel:
    """One model of Anthropic.

    Args:
        name: model id as the provider names it.
        api_key: sent to the provider, never logged.
        base_url: address of the API without `/v1`; None for the SDK's default (or `ANTHROPIC_BASE_URL`).
    """

    wire = "anthropic.messages"
    provider = "anthropic"
    simulated = False

    def __init__(self, name: str, *, api_key: str, base_url: str | None = None) -> None:
        self.name = name
        self._api_key, self._base_url = api_key, base_url
        self._client: anthropic.AsyncAnthropic | None = None

    async def complete(self, request: ModelRequest, *, timeout_s: float, on_text: OnText | None = None) -> ModelReply:  # noqa: ARG002
        """Ask once.

        Raises:
            ModelError: with the kind that decides between retry, fallback and failure.
        """
        # imported here: the SDK takes most of a second to load, and offline crews never need it
        import anthropic

        # built before the guard below: a mistake in here is ours, and must not look like a bad answer
        arguments = render(request)
        try:
            answer = await self._connected(anthropic).messages.create(**arguments, timeout=timeout_s)
        except anthropic.APITimeoutError as error:
            raise ModelError("timeout", f"no answer from {self.name} within {timeout_s:g} s") from error
        except anthropic.APIConnectionError as error:
            raise ModelError("connection", f"{self.name} cannot be reached: {error.__cause__ or error}") from error
        except anthropic.APIStatusError as error:
            text = shorten(error.api_message or str(error), _MESSAGE_CHARS_MAX)
            raise ModelError(kind_of(error.status_code, error.error_code or "", text), text, retry_after_s=retry_after_s(error.response.headers)) from error
        except (anthropic.APIError, ValueError) as error:
            raise ModelError("malformed", f"{self.name} sent what is no message: {shorten(str(error), _MESSAGE_CHARS_MAX)}") from error
        return understand(answer, self.name)

    async def close(self) -> None:
        """Let go of the connections. Safe to call twice."""
        if self._client is not None:
            client, self._client = self._client, None
            await client.close()

    def _connected(self, sdk: Any) -> anthropic.AsyncAnthropic:
        if self._client is None:
            self._client = sdk.AsyncAnthropic(
                api_key=self._api_key, base_url=self._base_url, max_retries=0, open_telemetry={"traces": False, "propagation": False}
            )
        return self._client


def render(request: ModelRequest) -> dict[str, Any]:
    """Translate a request into arguments of `messages.create`. The same request gives the same bytes, which is what a prompt cache wants."""
    arguments: dict[str, Any] = {
        "model": request.model,
        "max_tokens": request.max_tokens,
        "messages": [{"role": message.role, "content": content} for message in request.messages if (content := list(_blocks(message)))],
        "cache_control": {"type": "ephemeral"},
    }
    if request.system:
        arguments["system"] = [{"type": "text", "text": request.system}]
    if request.tools:
        arguments["tools"] = [{"name": tool.name, "description": tool.description, "input_schema": tool.parameters} for tool in request.tools]
    return arguments


def _blocks(message: Message) -> Iterator[dict[str, Any]]:
    """Translate blocks. Results come before text, as the API demands; empty text is left out, as it refuses it."""
    for block in sorted(message.content, key=lambda block: not isinstance(block, ToolResult)):
        match block:
            case Text():
                if block.text.strip():
                    yield {"type": "text", "text": block.text}
            case ToolUse():
                yield {"type": "tool_use", "id": block.call_id, "name": block.name, "input": _object(block.arguments)}
            case ToolResult():
                yield {"type": "tool_result", "tool_use_id": block.call_id, "content": block.content or "(nothing)", "is_error": block.is_error}


def _object(arguments: str) -> dict[str, Any]:
    """Return arguments as the object the API wants; what another model wrote that is none is passed on as text."""
    try:
        found = json.loads(arguments or "{}")
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {"invalid_json": arguments}


def understand(answer: Answer, asked: str) -> ModelReply:
    """Translate an answer.

    Raises:
        ModelError: it is no complete message, or the conversation no longer fits.
    """
    try:
        stop, content, usage, raw = answer.stop_reason, tuple(_said(answer)), _usage(answer), answer.to_json(indent=None).encode()
        model = answer.model or asked
    except (AttributeError, TypeError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError("malformed", f"{asked} sent what is no message: {type(error).__name__}: {error}") from error
    if stop is None:
        raise ModelError("malformed", f"{asked} sent an answer without a stop reason: it was cut off")
    if stop == "model_context_window_exceeded":
        raise ModelError("context_length", f"the conversation does not fit into the context window of {asked}")
    if stop not in _STOPS:
        raise ModelError("malformed", f"{asked} stopped for a reason this version does not know: {stop}")
    return ModelReply(content, _STOPS[stop], usage, model, raw)


def _said(answer: Answer) -> Iterator[Text | ToolUse]:
    for block in answer.content:
        if block.type == "text" and block.text:
            yield Text(block.text)
        elif block.type == "tool_use":
            yield ToolUse(block.id, block.name, json.dumps(block.input, ensure_ascii=False))
        # thinking is the provider's own: kept in `raw`, never shown as an answer


def _usage(answer: Answer) -> Usage:
    """Count input with cache reads and writes, and output with thinking."""
    used = answer.usage
    read, written = used.cache_read_input_tokens or 0, used.cache_creation_input_tokens or 0
    details = used.output_tokens_details
    return Usage(used.input_tokens + read + written, used.output_tokens, read, written, details.thinking_tokens if details else 0)


def kind_of(status: int, code: str, message: str) -> ErrorKind:
    """Say what an error answer means for whoever decides about another try.

    Args:
        code: the provider's stable machine code, or empty.
    """
    if status == 429 and code in _SPEND_LIMITS:
        return "billing"
    if found := _BY_STATUS.get(status):
        return found
    if status >= 500:
        return "server"
    return "context_length" if _CONTEXT.search(message) else "bad_request"


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return how long the provider asks to wait, in seconds, from a number of milliseconds or seconds; None when it does not.

    A date is measured against the provider's own `date` header, so no clock of ours is asked.
    """
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers[name]) / unit)
        except (KeyError, ValueError):
            continue
    until, now = (email.utils.parsedate_tz(headers.get(name, "")) for name in ("retry-after", "date"))
    return max(0.0, float(email.utils.mktime_tz(until) - email.utils.mktime_tz(now))) if until and now else None
