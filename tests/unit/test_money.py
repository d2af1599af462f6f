"""Amounts as people write them: exact, or refused with the reason."""

from __future__ import annotations

from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crewlog.schemas.budget import MICRO_USD_MAX, utc_day
from crewlog.schemas.errors import ContractError
from crewlog.schemas.money import parse_usd


@pytest.mark.parametrize(
    ("text", "micro_usd"),
    [
        ("0", 0),
        ("0.50", 500_000),
        ("$2", 2_000_000),
        (" 1.000001 ", 1_000_001),
        ("0.1000000000", 100_000),
        ("500000micro", 500_000),
        ("7 micro-USD", 7),
        ("1000000000", MICRO_USD_MAX),
    ],
)
def test_amounts(text: str, micro_usd: int) -> None:
    assert parse_usd(text) == micro_usd


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("-1", "cannot be negative"),
        ("$-0.5", "cannot be negative"),
        ("nan", "not an amount"),
        ("inf", "not an amount"),
        ("1e3", "not an amount"),
        ("", "not an amount"),
        ("0.5 EUR", "not an amount"),
        ("1,50", "not an amount"),
        (".5", "not an amount"),
        ("٣", "not an amount"),
        ("0.0000001", "finer than a millionth"),
        ("1.5micro", "not an amount"),
        ("1000000000.000001", "more than 1000000000"),
    ],
)
def test_what_is_no_amount(text: str, why: str) -> None:
    with pytest.raises(ContractError, match=why):
        parse_usd(text)


@given(st.integers(0, MICRO_USD_MAX))
def test_every_amount_survives_being_written(micro_usd: int) -> None:
    assert parse_usd(f"{micro_usd // 1_000_000}.{micro_usd % 1_000_000:06}") == micro_usd


@pytest.mark.parametrize("day", [date(1970, 1, 1), date(2026, 11, 26), date(2027, 12, 31), date(2028, 2, 29), date(2100, 2, 28)])
def test_a_daily_budget_lasts_from_midnight_to_midnight_utc(day: date) -> None:
    first_us = (day - date(1970, 1, 1)).days * 86_400_000_000
    assert utc_day(first_us) == utc_day(first_us + 86_400_000_000 - 1) == day.isoformat()
    assert utc_day(first_us + 86_400_000_000) == (day + timedelta(days=1)).isoformat()
