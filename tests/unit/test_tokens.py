"""The estimate of tokens: its weights, and that nothing a request sends is left out of it."""

from __future__ import annotations

import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crewlog.agents.tokens import estimate_request, estimate_tokens
from crewlog.schemas.blocks import Message, ModelRequest, Native, OutputFormat, Text, ToolDef, ToolResult, ToolUse

ASKED = ModelRequest("m", "Be exact.", (), (Message("user", (Text("How many?"),)),), 100)
TOOL = ToolDef("look", "Looks something up", {"type": "object", "properties": {"name": {"type": "string"}}})


@given(st.text(alphabet=st.characters(), max_size=200))
def test_the_weights_are_those_of_the_classes_of_characters(text: str) -> None:
    weights = [
        0.28 * len(re.findall(r"[A-Za-z]", text)) + 0.06 * text.count(" ") + 0.5 * text.count("\n"),
        0.87 * len(re.findall(r"[^A-Za-z \n\u0080-\U0010ffff]", text)),
        0.6 * len(re.findall(r"[\u0080-\u07ff]", text)) + 1.25 * len(re.findall(r"[\u0800-\uffff]", text)),
        3.2 * len(re.findall(r"[\U00010000-\U0010ffff]", text)),
    ]
    assert estimate_tokens(text) == pytest.approx(int(sum(weights)) + 1, abs=1)


@pytest.mark.parametrize(
    "more",
    [
        msgspec.structs.replace(ASKED, system="Be exact, and write down where each of your numbers comes from."),
        msgspec.structs.replace(ASKED, tools=(TOOL,)),
        msgspec.structs.replace(ASKED, output=OutputFormat("plan", {"type": "object"})),
        msgspec.structs.replace(ASKED, messages=(*ASKED.messages, Message("assistant", (ToolUse("t1", "look", '{"name":"x"}'),)))),
        msgspec.structs.replace(ASKED, messages=(*ASKED.messages, Message("user", (ToolResult("t1", "look", "42"),)))),
        msgspec.structs.replace(ASKED, messages=(Message("user", (Text("How many?"),), Native("w", "m", msgspec.Raw(b'["' + b"signature" * 20 + b'"]'))),)),
    ],
)
def test_everything_a_request_sends_counts(more: ModelRequest) -> None:
    assert estimate_request(more, provider="openai") > estimate_request(ASKED, provider="openai")


def test_a_provider_nobody_has_measured_counts_above_the_one_that_was() -> None:
    assert estimate_request(ASKED, provider="somewhere") > estimate_request(ASKED, provider="openai")


def test_what_was_counted_before_raises_the_estimate_and_never_lowers_it() -> None:
    plain = estimate_request(ASKED, provider="openai")
    assert estimate_request(ASKED, provider="openai", calibration=2.0) == 2 * plain
    assert estimate_request(ASKED, provider="openai", calibration=0.5) == plain
