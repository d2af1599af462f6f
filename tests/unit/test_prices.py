"""Prices: whose count, how they are rounded, what caching would have saved, and what becomes of a model nobody has a price for."""

from __future__ import annotations

import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Final

import pytest

from crewlog.agents.prices import FREE, NO_PRICE, price, refuse_unpriced, worst_case
from crewlog.events.config import load
from crewlog.schemas.blocks import Message, ModelRequest, Text
from crewlog.schemas.errors import ConfigError, ContractError
from crewlog.schemas.price_table import TokenPrices, find_prices, parse_price_table
from crewlog.schemas.usage import CONFIG, Price, Usage

NOW_US: Final = 1_790_000_000_000_000
"""In September 2026."""
OWN: Final = {
    "local:*": TokenPrices(input=Decimal("0.15"), output=Decimal("0.6")),
    "local:qwen*": TokenPrices(input=Decimal("0.2"), output=Decimal("0.8"), cache_read=Decimal("0.02"), cache_write=Decimal("0.25")),
}


def test_a_call_is_priced_by_the_list_and_its_fractions_are_rounded_up() -> None:
    found = price("anthropic", "claude-sonnet-5-5", Usage(1_000, 101), at_us=NOW_US)
    assert found.cost_micro_usd == 1_000 * 2 + 101 * 10
    assert found.source.startswith("genai-prices ")
    assert found.uncached_micro_usd is None
    assert price("local", "llama", Usage(1, 0), at_us=NOW_US, table=OWN).cost_micro_usd == 1


def test_what_the_call_would_have_cost_without_caching_is_recorded_with_it() -> None:
    found = price("anthropic", "claude-sonnet-5-5", Usage(10_000, 100, cache_read_tokens=8_000, cache_write_tokens=1_000), at_us=NOW_US)
    assert found.cost_micro_usd == 1_000 * 2 + 800 + 2_500 + 1_000
    assert found.uncached_micro_usd == 10_000 * 2 + 1_000


def test_a_long_input_makes_every_token_dearer() -> None:
    short, long = (price("anthropic", "claude-sonnet-4-5", Usage(tokens, 0), at_us=NOW_US) for tokens in (200_000, 200_001))
    assert short.cost_micro_usd == 200_000 * 3
    assert long.cost_micro_usd == 200_001 * 6


def test_a_price_that_changes_on_a_day_changes_on_that_day() -> None:
    new_year_2027_us = 1_798_761_600_000_000
    before, after = (price("google", "gemini-3.8-flash", Usage(1_000_000, 1_000_000), at_us=new_year_2027_us + shift) for shift in (-1, 0))
    assert before.cost_micro_usd != after.cost_micro_usd


def test_the_operators_prices_go_before_the_list_and_the_most_literal_pattern_counts() -> None:
    assert price("local", "qwen3", Usage(1_000, 1_000), at_us=NOW_US, table=OWN) == Price(1_000, CONFIG)
    assert price("local", "llama", Usage(1_000, 1_000), at_us=NOW_US, table=OWN) == Price(750, CONFIG)
    own = {"anthropic:claude-sonnet-5-5": TokenPrices(input=Decimal(1), output=Decimal(1))}
    assert price("anthropic", "claude-sonnet-5-5", Usage(1_000, 1_000), at_us=NOW_US, table=own) == Price(2_000, CONFIG)
    assert find_prices({"a:*": OWN["local:*"]}, "b", "m") is None


def test_a_dot_in_a_pattern_is_a_dot() -> None:
    assert find_prices({"a:m.1*": OWN["local:*"]}, "a", "mx1") is None


def test_a_server_of_ones_own_is_unpriced_not_free() -> None:
    assert price("local", "qwen3", Usage(1_000, 1_000), at_us=NOW_US) == NO_PRICE
    assert price("anthropic", "claude-of-tomorrow", Usage(1_000, 1_000), at_us=NOW_US) == NO_PRICE
    assert price("offline", "rules", Usage(1_000, 1_000), at_us=NOW_US) == FREE


def test_an_answer_under_a_name_nobody_knows_costs_what_the_model_asked_for_costs() -> None:
    found = price("local", "qwen3-q4_k_m.gguf", Usage(1_000, 0), asked="qwen3", at_us=NOW_US, table={"local:qwen3": OWN["local:qwen*"]})
    assert found == Price(200, CONFIG)


def test_counts_that_contradict_each_other_are_charged() -> None:
    assert price("local", "qwen3", Usage(10, 0, cache_read_tokens=100), at_us=NOW_US, table=OWN).cost_micro_usd == 2


def test_the_worst_case_takes_the_dearest_way_of_caching_and_the_whole_answer() -> None:
    request = ModelRequest("qwen3", "", (), (Message("user", (Text("x" * 10_000),)),), 1_000)
    worst = worst_case("local", "qwen3", request, at_us=NOW_US, table=OWN).cost_micro_usd
    assert worst is not None
    assert worst > price("local", "qwen3", Usage(2_801, 1_000, cache_write_tokens=2_801), at_us=NOW_US, table=OWN).cost_micro_usd  # type: ignore[operator]  # both are priced


def test_a_call_without_a_price_is_refused_under_a_limit_and_says_what_to_do() -> None:
    failure = refuse_unpriced("local", "qwen3", NO_PRICE, is_allowed=False)
    assert failure is not None
    assert not failure.retryable
    assert "local:qwen3" in failure.message
    assert "CREWLOG_PRICES" in failure.message
    assert refuse_unpriced("local", "qwen3", NO_PRICE, is_allowed=True) is None
    assert refuse_unpriced("local", "qwen3", Price(7, CONFIG), is_allowed=False) is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "not a price table"),
        ("{}", "empty"),
        ('{"qwen3": {"input": 1, "output": 1}}', "names no model"),
        ('{"local:q": {"input": 1}}', "not a price table"),
        ('{"local:q": {"input": -1, "output": 1}}', "not a price table"),
        ('{"local:q": {"input": "NaN", "output": 1}}', "not a price table"),
        ('{"local:q": {"input": "0.1234567891", "output": 1}}', "not a price table"),
    ],
)
def test_a_bad_price_table_is_a_clear_error(text: str, problem: str) -> None:
    with pytest.raises(ContractError) as raised:
        parse_price_table(text.encode())
    assert problem in str(raised.value)


def test_prices_come_from_the_environment_as_exact_decimals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREWLOG_PRICES", '{"local:q": {"input": 0.1, "output": "0.000000003"}}')
    assert load().prices == {"local:q": TokenPrices(input=Decimal("0.1"), output=Decimal("0.000000003"))}
    monkeypatch.setenv("CREWLOG_PRICES", "")
    assert load().prices == {}
    monkeypatch.setenv("CREWLOG_PRICES", "local:q=1")
    with pytest.raises(ConfigError, match="JSON"):
        load()


def test_prices_in_a_file_are_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "crewlog.toml").write_text('[prices."local:*"]\ninput = 0.1\noutput = 0.4\ncache_read = "0.01"\n')
    monkeypatch.chdir(tmp_path)
    assert load().prices == {"local:*": TokenPrices(input=Decimal("0.1"), output=Decimal("0.4"), cache_read=Decimal("0.01"))}


@pytest.mark.parametrize(("simulated", "is_loaded"), [(True, False), (False, True)])
def test_the_table_is_loaded_before_there_is_work_where_it_will_be_needed(simulated: bool, is_loaded: bool) -> None:
    program = (
        "import sys; from support.scripted import ScriptedModel; from crewlog.agents.prices import load_prices\n"
        f"load_prices([ScriptedModel([], provider='anthropic', name='claude-sonnet-4-5', simulated={simulated})])\n"
        "print('genai_prices' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == str(is_loaded)
