"""The offline provider: a deterministic, rule-based model behind the same port as the real ones, so that a whole crew works without a key.

It reads only the request and keeps no state, no clock and no randomness: the same request gives a byte-equal reply. It answers only from
what tools returned, and everything it says is recorded as simulated.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, Final, Literal, get_args

from crewlog.agents.model import OnText
from crewlog.agents.offline_answer import synthesise
from crewlog.agents.offline_code import repair
from crewlog.agents.offline_communicate import communicate
from crewlog.agents.offline_conversation import Conversation, Turn, Want, read_conversation
from crewlog.agents.offline_data import analyse
from crewlog.agents.offline_output import write_output
from crewlog.agents.offline_plan import plan
from crewlog.agents.offline_research import research
from crewlog.agents.offline_roles import choose_specialist, judge
from crewlog.agents.offline_tools import use_tools
from crewlog.agents.tokens import estimate_usage
from crewlog.schemas.blocks import ModelReply, ModelRequest, Text, ToolUse
from crewlog.schemas.errors import ConfigError
from crewlog.schemas.text import clean

Fault = Literal["bad_arguments", "malformed", "refuse", "loop"]
"""Misbehaviour for demonstrations and tests: invalid arguments in the first turn; JSON that does not parse in the first turn;
a refusal of the first turn; the first call again and again."""

RULES: Final = "rules-1"
REPEATS_MAX: Final = 3
"""The same call that often in one conversation means the rules are going round in circles."""

Role = Callable[[Conversation], Turn]
_ROLES: Final[Mapping[str, Role]] = {
    "submit_findings": research,
    "submit_analysis": analyse,
    "submit_patch": repair,
    "submit_report": communicate,
    "submit_route": choose_specialist,
    "submit_verdict": judge,
}


class OfflineModel:
    """The rules as a model.

    Args:
        fault: a misbehaviour, by configuration only; empty for none.
    """

    wire = "offline"
    provider = "offline"
    simulated = True

    def __init__(self, *, fault: Fault | Literal[""] = "") -> None:
        self.name = f"{RULES}:{fault}" if fault else RULES
        self._fault = fault

    async def complete(self, request: ModelRequest, *, timeout_s: float, on_text: OnText | None = None) -> ModelReply:  # noqa: ARG002  (the port's; nothing is waited for here)
        """Answer by rules."""
        talk = read_conversation(request)
        if self._fault == "refuse" and talk.turns == 0:
            return _reply(self.name, request, (Text("I will not answer this."),), refused=True)
        if request.output is not None:
            return _reply(self.name, request, (Text(clean(write_output(talk, request))),))
        if talk.unread:
            return _reply(self.name, request, self._blocks(request, Turn("", talk.unread), first=False))
        turn = _offered(choose_role(talk)(talk), talk)
        if self._fault == "loop" and talk.calls:
            turn = Turn("", (Want(talk.calls[0].tool, talk.calls[0].arguments),))
        elif _goes_round(talk, turn):
            turn = Turn(f"I stop here: {turn.calls[0].tool} was called {REPEATS_MAX} times with the same arguments and the task is not done.")
        return _reply(self.name, request, self._blocks(request, turn, first=talk.turns == 0))

    def _blocks(self, request: ModelRequest, turn: Turn, *, first: bool) -> tuple[Text | ToolUse, ...]:
        seed = hashlib.sha256(request.canonical())
        blocks: list[Text | ToolUse] = [Text(clean(turn.text))] if turn.text else []
        for at, want in enumerate(turn.calls):
            arguments: Mapping[str, Any] = want.arguments
            if self._fault == "bad_arguments" and first:
                arguments = {**arguments, "unexpected": True}
            text = clean(json.dumps(arguments, ensure_ascii=False, sort_keys=True))
            if self._fault == "malformed" and first:
                text = text[:-1] + ", "
            call = seed.copy()
            call.update(f"/{at}".encode())
            blocks.append(ToolUse(f"call_{call.hexdigest()[:24]}", want.tool, text))
        return tuple(blocks) or (Text("There is nothing to do."),)


def parse_fault(text: str) -> Fault | Literal[""]:
    """Check the name of a misbehaviour.

    Raises:
        ConfigError: there is none of that name.
    """
    for known in get_args(Fault):
        if text == known:
            fault: Fault = known
            return fault
    if text:
        raise ConfigError(f"the offline provider has no fault {text!r}", hint=f"known faults: {', '.join(get_args(Fault))}")
    return ""


def choose_role(talk: Conversation) -> Role:
    """Pick the rules by the tools that are offered: a role is known by the tool that ends it."""
    if talk.offers("submit_plan") and not (talk.offers("submit_answer") and talk.key.startswith("@synthesis")):
        return plan
    if talk.offers("submit_answer"):
        return synthesise
    return next((role for tool, role in _ROLES.items() if tool in talk.tools), use_tools)


def _offered(turn: Turn, talk: Conversation) -> Turn:
    """Keep the calls of tools that are there. A kind that only shares its last tool with a built-in one is served by the general rules."""
    calls = tuple(want for want in turn.calls if want.tool in talk.tools)
    return Turn(turn.text, calls) if calls or not turn.calls else use_tools(talk)


def _goes_round(talk: Conversation, turn: Turn) -> bool:
    """Say whether a call was made too often already without anything new coming of it: tests run again after each repair tell something else."""
    calls = [[call.result for call in talk.calls if call.tool == want.tool and call.arguments == want.arguments] for want in turn.calls]
    return any(results.count(results[-1]) >= REPEATS_MAX for results in calls if results)


def _reply(name: str, request: ModelRequest, blocks: tuple[Text | ToolUse, ...], *, refused: bool = False) -> ModelReply:
    usage = estimate_usage(request, blocks)
    has_calls = any(isinstance(block, ToolUse) for block in blocks)
    return ModelReply(blocks, "refusal" if refused else "tool_use" if has_calls else "end_turn", usage, name)
