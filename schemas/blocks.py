"""The neutral conversation: what every provider adapter translates from and to.

A request is a value; its canonical bytes are hashed into the log, and a replay must rebuild them byte for byte.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from crewlog.schemas.ids import Hash
from crewlog.schemas.payload import content_hash
from crewlog.schemas.usage import Price, Usage


class Text(msgspec.Struct, frozen=True, tag="text"):
    """Plain text by the user or the model."""

    text: str


class ToolUse(msgspec.Struct, frozen=True, tag="tool_use"):
    """The model asks for one tool call. `arguments` is the JSON text as the model wrote it: it may be invalid."""

    call_id: str
    name: str
    arguments: str


class ToolResult(msgspec.Struct, frozen=True, tag="tool_result"):
    """What came back from one tool call, or why there is nothing."""

    call_id: str
    name: str
    content: str
    is_error: bool = False


Block = Text | ToolUse | ToolResult


class Native(msgspec.Struct, frozen=True):
    """An assistant message as its provider wrote it: `items` is the JSON list of the provider's own items, in order and unchanged.

    It holds what the neutral blocks cannot say (signatures, encrypted reasoning, item ids), and is sent back only to the same model
    over the same wire.
    """

    wire: str
    model: str
    items: msgspec.Raw


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One turn of the conversation. Tool results travel in user messages.

    Fields with a default are left out of the canonical bytes while they hold it, so that requests recorded before keep their hash.
    """

    role: Literal["user", "assistant"]
    content: tuple[Block, ...]
    native: Native | None = None
    """Of an assistant message: what the provider itself wrote, when the next call goes to the same model over the same wire."""


class ToolDef(msgspec.Struct, frozen=True):
    """A tool as the model sees it. `parameters` is a JSON Schema of an object."""

    name: str
    description: str
    parameters: dict[str, Any]


class OutputFormat(msgspec.Struct, frozen=True):
    """The answer must be one JSON value that satisfies `schema`, a JSON Schema of an object."""

    name: str
    schema: dict[str, Any]


class ModelRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """Everything a model sees in one call. Fields with a default are left out of the canonical bytes while they hold it."""

    model: str
    system: str
    tools: tuple[ToolDef, ...]
    messages: tuple[Message, ...]
    max_tokens: int
    output: OutputFormat | None = None
    """Set for a structured answer; no tool may be called then."""
    effort: str = ""
    """How hard to think, in the provider's words; empty leaves it to the provider."""

    def canonical(self) -> bytes:
        """Return the bytes whose hash names this request: JSON with sorted keys."""
        return msgspec.json.encode(self, order="deterministic")

    def request_hash(self) -> Hash:
        """Return the hash that `ModelCallStarted` records and a replay compares."""
        return content_hash(self.canonical())


StopReason = Literal["end_turn", "tool_use", "max_tokens", "refusal", "pause"]
"""`pause`: the provider wants to be called again with what it has said so far."""


class ModelReply(msgspec.Struct, frozen=True):
    """A model's answer: text and tool calls in order, why it stopped, and what was used."""

    content: tuple[Text | ToolUse, ...]
    stop: StopReason
    usage: Usage
    model: str
    """The model that really answered, as the provider names it."""
    raw: bytes = b""
    """The provider's own response body, for audits; empty for the offline provider."""
    native: Native | None = None
    """The assistant message as the provider wrote it, to be sent back unchanged; None for the offline provider."""
    thinking: str = ""
    """Readable reasoning, kept apart from the answer; empty when the provider shows none."""
    request_id: str = ""
    """The provider's name for this call, for its support."""
    price: Price | None = None
    """What the answer cost, where whoever gives it knows: a recording. None: it is looked up."""
