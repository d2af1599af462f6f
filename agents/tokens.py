"""A stated approximation of token counts for when no tokenizer is at hand: weights by class of character, rather too high than too low.

Measured against a byte-pair tokenizer (cl100k) the weights give 1.0 to 1.7 times the true count, over English, Chinese, Russian, source
code, JSON, hexadecimal digits and emoji. Four characters per token, the usual rule, gives as little as a tenth of it. Pure functions.
A replay estimates again when a conversation was cut: other weights would decide otherwise about what is in the log.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from math import ceil
from typing import Final

import msgspec

from crewlog.schemas.blocks import Message, ModelReply, ModelRequest, Text, ToolDef, ToolResult, ToolUse
from crewlog.schemas.usage import Usage

PER_MESSAGE: Final = 10
"""What a message costs besides its text."""
PER_BLOCK: Final = 10
"""What a text, a tool call or a tool result costs besides its text."""
REMEMBERED_CHARS_MIN: Final = 200
TEXTS_REMEMBERED: Final = 1_024
"""Texts whose estimate is kept: a conversation is estimated again at every turn, and all but its last texts are the same then."""
TOOLS_REMEMBERED: Final = 512
"""Tools whose estimate is kept: a task offers the same ones at every turn, and writing out their schemas takes most of an estimate."""
PREAMBLE: Final = 600
"""Most that a provider puts in front of a request that has tools or asks for a structured answer."""
FACTORS: Final[Mapping[str, float]] = {"openai": 1.0, "google": 1.1, "anthropic": 1.4, "offline": 1.0}
"""How much finer a provider cuts text than the tokenizer the weights were measured with. Judged, not measured."""
FACTOR_UNKNOWN: Final = 1.3

_LETTERS: Final = bytes([*range(ord("A"), ord("Z") + 1), *range(ord("a"), ord("z") + 1)])
_NOT_ASCII: Final = bytes(range(0x80, 0x100))
# in UTF-8 the first byte of a character tells how many bytes it has
_WIDER: Final = ((0.6, bytes(range(0xC0, 0xE0))), (1.25, bytes(range(0xE0, 0xF0))), (3.2, bytes(range(0xF0, 0x100))))


def estimate_tokens(text: str) -> int:
    """Estimate the tokens of a text: per ASCII letter 0.28, space 0.06, newline 0.5, other ASCII 0.87; wider characters 0.6 to 3.2.

    >>> estimate_tokens("How many penguins live on Dream island?")
    11
    """
    return _weigh(text) if len(text) < REMEMBERED_CHARS_MIN else _weigh_once(text)


def _weigh(text: str) -> int:
    data = text.encode("utf-8", "surrogatepass")
    letters, spaces, newlines = _count(data, _LETTERS), data.count(b" "), data.count(b"\n")
    wider = 0.0
    others = len(data) - letters - spaces - newlines
    if not text.isascii():
        others -= _count(data, _NOT_ASCII)
        wider = sum(weight * _count(data, firsts) for weight, firsts in _WIDER)
    return int(0.28 * letters + 0.06 * spaces + 0.5 * newlines + 0.87 * others + wider) + 1


_tools: Final[dict[int, tuple[ToolDef, int]]] = {}
"""Address -> the tool, which stays there as long as it is in here, and its estimate."""
_weigh_once = lru_cache(maxsize=TEXTS_REMEMBERED)(_weigh)


def estimate_request(request: ModelRequest, *, provider: str, calibration: float = 1.0) -> int:
    """Estimate the input tokens of a request from above: everything it sends, times what the provider's tokenizer makes of it.

    Args:
        provider: as in `Model.provider`; one that is not in `FACTORS` counts with `FACTOR_UNKNOWN`.
        calibration: largest ratio of counted to estimated tokens seen with this model; what lies below 1 is ignored.
    """
    tokens = estimate_tokens(request.system) + _of_tools(request) + sum(map(_of_message, request.messages))
    if request.output is not None:
        tokens += _of_json(request.output)
    if request.tools or request.output is not None:
        tokens += PREAMBLE
    return ceil(tokens * FACTORS.get(provider, FACTOR_UNKNOWN) * max(calibration, 1.0))


def estimate_usage(request: ModelRequest, content: ModelReply | tuple[Text | ToolUse, ...]) -> Usage:
    """Estimate what a request and its answer would have used, for a model that counts nothing itself."""
    blocks = content.content if isinstance(content, ModelReply) else content
    texts = (_text(block) for message in request.messages for block in message.content)
    return Usage(
        input_tokens=estimate_tokens(request.system) + _of_tools(request) + _of_texts(texts) + PER_MESSAGE * len(request.messages),
        output_tokens=_of_texts(map(_text, blocks)),
    )


def _count(data: bytes, kinds: bytes) -> int:
    return len(data) - len(data.translate(None, kinds))


def _of_texts(texts: Iterable[str]) -> int:
    return sum(map(estimate_tokens, texts))


def _of_tools(request: ModelRequest) -> int:
    return sum(map(_of_tool, request.tools))


def _of_tool(tool: ToolDef) -> int:
    known = _tools.get(id(tool))  # by identity: a schema is a dict and has no hash
    if known is None or known[0] is not tool:
        if len(_tools) >= TOOLS_REMEMBERED:
            _tools.clear()
        known = _tools[id(tool)] = tool, estimate_tokens(f"{tool.name} {tool.description} {tool.parameters}")
    return known[1]


def _of_json(value: object) -> int:
    return estimate_tokens(msgspec.json.encode(value).decode())


def _of_message(message: Message) -> int:
    said = sum(_blocks(message))
    # what the provider itself wrote is sent in place of the blocks, and may hold more than they do
    if message.native is not None:
        said = max(said, estimate_tokens(bytes(message.native.items).decode()))
    return PER_MESSAGE + said


def _blocks(message: Message) -> Iterator[int]:
    for block in message.content:
        yield PER_BLOCK + estimate_tokens(_text(block))


def _text(block: Text | ToolUse | ToolResult) -> str:
    match block:
        case Text():
            return block.text
        case ToolUse():
            return f"{block.name} {block.arguments}"
        case ToolResult():
            return block.content
