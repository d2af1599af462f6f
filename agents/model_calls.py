"""Tool calls as every wire can say them: ids, names and arguments; and which messages may be sent as their provider wrote them.

A conversation may go on with another provider. What is specific to one (signatures, item ids, encrypted reasoning) stays with that one;
everything else is rendered from the neutral blocks, and these rules make it acceptable everywhere.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable
from typing import Annotated, Any, Final

import msgspec

from crewlog.agents.model import ModelError
from crewlog.schemas.blocks import Message, ModelRequest, ToolUse

CALL_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,40}")
"""Call ids that all providers take."""
TOOL_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")
"""Tool names that all providers take: Gemini wants no digit in front, OpenAI at most 64 characters and no dots."""
_MADE: Final = "made_"
TokenCount = Annotated[int, msgspec.Meta(ge=0, le=2**40)]
"""Tokens that a provider says were used. Anything below zero would give money back to a budget, and nobody uses a million millions."""
_OTHER: Final = re.compile(r"[^A-Za-z0-9_-]")


def check_tools(request: ModelRequest) -> None:
    """Refuse tools that some provider would not take, before anybody is asked.

    Raises:
        ModelError: `bad_request`, naming the tool.
    """
    names = [tool.name for tool in request.tools]
    for name in names:
        if not TOOL_NAME.fullmatch(name):
            raise ModelError("bad_request", f"tool {name!r} has a name that not all providers take: use letters, digits, _ and -, at most 64, no digit first")
    if len(set(names)) < len(names):
        raise ModelError("bad_request", f"two tools have the same name: {', '.join(sorted(name for name in set(names) if names.count(name) > 1))}")


def call_ids(given: Iterable[str | None], request: ModelRequest) -> tuple[list[str], bool]:
    """Name the calls of an answer so that every provider takes the names and none occurs twice in the conversation.

    Args:
        given: ids by the provider, in order; None for a call without one.

    Returns:
        An id per call, and whether every id that the provider gave was kept. Ids are made from the request: each turn has another one.
    """
    taken = {block.call_id for message in request.messages for block in message.content if isinstance(block, ToolUse)}
    ids: list[str] = []
    kept = True
    seed = ""
    for at, call_id in enumerate(given):
        if call_id and call_id not in taken and CALL_ID.fullmatch(call_id):
            ids.append(call_id)
        else:
            kept = kept and not call_id
            seed = seed or request.request_hash()
            ids.append(_MADE + hashlib.sha256(f"{seed}/{at}".encode()).hexdigest()[:24])
        taken.add(ids[-1])
    return ids, kept


def is_made(call_id: str) -> bool:
    """Say whether an id was made here because the provider gave none that could be used."""
    return call_id.startswith(_MADE)


def as_object(arguments: str) -> dict[str, Any]:
    """Return a call's arguments as the object most wires want; text that is none is passed on under `invalid_json`."""
    try:
        found = json.loads(arguments or "{}", parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {"invalid_json": arguments}


def _finite(number: str) -> float:
    """Read a number of JSON; NaN, Infinity and 1e400 are none, and could not be written again."""
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number} is no number of JSON")
    return value


def as_json(arguments: str) -> str:
    """Return a call's arguments as the text of an object: servers parse what they are sent, and some fail on anything else."""
    found = as_object(arguments)
    return arguments if arguments and "invalid_json" not in found else json.dumps(found, ensure_ascii=False)


def tool_name(name: str) -> str:
    """Return a name that every provider takes, for a call in the history: models invent names, and one invention must not end a conversation."""
    if TOOL_NAME.fullmatch(name):
        return name
    cleaned = _OTHER.sub("_", name)[:60]
    return cleaned if TOOL_NAME.fullmatch(cleaned) else f"_{cleaned}"


def native_items(message: Message, wire: str, model: str) -> list[Any] | None:
    """Return the provider's own items of an assistant message when they may go back: to the same model over the same wire."""
    native = message.native
    if native is None or (native.wire, native.model) != (wire, model):
        return None
    items: list[Any] = json.loads(bytes(native.items))
    return items


def raw_list(items: Iterable[msgspec.Raw]) -> msgspec.Raw:
    """Put items into a JSON list, each byte for byte as it came."""
    return msgspec.Raw(b"[" + b",".join(map(bytes, items)) + b"]")


def compact(value: msgspec.Raw) -> str:
    """Return a JSON value as text without needless blanks, otherwise as it was written."""
    return msgspec.json.format(bytes(value), indent=-1).decode()
