"""Prices agree with the list they come from, and the worst case is an upper bound of every call that fits its request."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import ROUND_CEILING, Decimal

import genai_prices
from hypothesis import given
from hypothesis import strategies as st

from crewlog.agents.prices import price, worst_case
from crewlog.agents.rates import Rates, Step, bound, charge
from crewlog.agents.tokens import estimate_request
from crewlog.schemas.blocks import Message, ModelRequest, Text
from crewlog.schemas.usage import Usage

NOW_US = 1_790_000_000_000_000
MODELS = [
    ("anthropic", "claude-sonnet-5-5"),
    ("anthropic", "claude-sonnet-4-5"),
    ("anthropic", "claude-opus-4-8"),
    ("openai", "gpt-6.1-terra"),
    ("openai", "gpt-5.2"),
    ("google", "gemini-2.5-pro"),
    ("google", "gemini-3.8-flash"),
    ("perplexity", "sonar"),
    ("deepseek", "deepseek-chat"),
]


@st.composite
def usages(draw: st.DrawFn, input_max: int = 1_500_000, output_max: int = 200_000) -> Usage:
    whole = draw(st.integers(0, input_max))
    read = draw(st.integers(0, whole))
    return Usage(whole, draw(st.integers(0, output_max)), read, draw(st.integers(0, whole - read)))


@given(st.sampled_from(MODELS), usages())
def test_a_price_is_that_of_the_list_rounded_up(model: tuple[str, str], usage: Usage) -> None:
    tokens = genai_prices.Usage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cache_read_tokens=usage.cache_read_tokens,
        cache_write_tokens=usage.cache_write_tokens,
    )
    at = datetime.fromtimestamp(NOW_US / 1e6, UTC)
    listed = genai_prices.calc_price(tokens, model[1], provider_id=model[0], genai_request_timestamp=at).total_price
    assert price(*model, usage, at_us=NOW_US).cost_micro_usd == (listed * 1_000_000).to_integral_value(ROUND_CEILING)


amounts = st.decimals(0, 100, places=3)
rates = st.lists(st.builds(Step, st.integers(1, 5_000), amounts, amounts, amounts, amounts, amounts), max_size=3, unique_by=lambda s: s.above).flatmap(
    lambda more: st.builds(Step, st.just(-1), amounts, amounts, amounts, amounts, amounts).map(
        lambda first: Rates("test", (first, *sorted(more, key=lambda s: s.above)))
    )
)


@given(rates, usages(10_000, 10_000), st.integers(0, 1_000), st.integers(0, 1_000))
def test_no_call_within_its_counts_costs_more_than_the_bound(own: Rates, usage: Usage, more_in: int, more_out: int) -> None:
    most = bound(own, input_tokens=usage.input_tokens + more_in, output_tokens=usage.output_tokens + more_out).cost_micro_usd
    cost = charge(own, usage).cost_micro_usd
    assert most is not None
    assert cost is not None
    assert cost <= most


@given(st.sampled_from(MODELS), st.text(max_size=500), st.integers(0, 100_000), st.data())
def test_no_call_that_fits_its_request_costs_more_than_the_worst_case(model: tuple[str, str], text: str, max_tokens: int, data: st.DataObject) -> None:
    request = ModelRequest(model[1], "Be exact.", (), (Message("user", (Text(text),)),), max_tokens)
    usage = data.draw(usages(estimate_request(request, provider=model[0]), max_tokens))
    cost = price(*model, usage, at_us=NOW_US).cost_micro_usd
    worst = worst_case(*model, request, at_us=NOW_US).cost_micro_usd
    assert cost is not None
    assert worst is not None
    assert cost <= worst


@given(rates, usages(10_000, 10_000))
def test_a_whole_micro_usd_is_charged_for_every_fraction(own: Rates, usage: Usage) -> None:
    found = charge(own, usage)
    assert found.cost_micro_usd is not None
    assert isinstance(found.cost_micro_usd, int)
    assert found.cost_micro_usd >= Decimal(0)
