"""Limits in the configuration: what is read, exactly, and what is refused with everything that is wrong."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from crewlog.events.config import load
from crewlog.events.limits import limits_for, parse_limits
from crewlog.schemas.budget import ScopeLimit
from crewlog.schemas.errors import ConfigError


def hard_and_soft(given: Any, kind: str = "run", surface: str = "default") -> tuple[int | None, int | None]:
    limit = parse_limits(given)[surface][kind]
    return limit.hard_micro_usd, limit.soft_micro_usd


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("run=0.50", (500_000, 350_000)),
        ("run=0.50:0.1", (500_000, 100_000)),
        ("run=0", (0, 0)),
        ("run=none", (None, None)),
        ("run=none:0.1", (None, 100_000)),
        ("run=7micro", (7, 4)),
        ({"run": 0.1}, (100_000, 70_000)),
        ({"run": 2}, (2_000_000, 1_400_000)),
        ({"run": 0.000001}, (1, 0)),
        ({"run": 123456789.123456}, (123_456_789_123_456, 86_419_752_386_419)),
        ({"run": "0.30"}, (300_000, 210_000)),
        ({"run": {"hard": 20, "soft": 14}}, (20_000_000, 14_000_000)),
        ({"run": {"hard_micro_usd": 20}}, (20, 14)),
        ({"run": {"soft_micro_usd": 20}}, (None, 20)),
    ],
)
def test_amounts(given: Any, expected: tuple[int | None, int | None]) -> None:
    assert hard_and_soft(given) == expected


def test_text_and_table_say_the_same() -> None:
    table = tomllib.loads('[budgets]\nrun = 0.5\n"tenant/day" = { hard = 20, soft = 14 }\n[budgets.batch]\nrun = 5\n"tenant/day" = "none"\n')["budgets"]

    assert parse_limits(table) == parse_limits("run=0.50, tenant/day=20:14, batch.run=5, batch.tenant/day=none")


@pytest.mark.parametrize(
    ("given", "faults"),
    [
        ("run=-1, day=2", ["run: '-1' is not an amount: money cannot be negative", "day: there is no such kind of scope"]),
        ("run=nan, tree=inf", ["run: 'nan' is not an amount", "tree: 'inf' is not an amount"]),
        ("run", ["'run' is not [SURFACE.]SCOPE=HARD[:SOFT]"]),
        ("run=1, run=2", ["run: is set twice"]),
        ("run=1:2", ["run: its soft limit of 2000000 micro-USD is above its hard limit of 1000000"]),
        ("ba tch.run=1", ["ba tch.run: a surface is named with"]),
        ({"run": float("nan")}, ["run: 'NaN' is not an amount"]),
        ({"run": -0.5}, ["run: '-0.5' is not an amount: money cannot be negative"]),
        ({"run": True}, ["run: expected an amount, got bool"]),
        ({"run": {"hard": 1, "hard_micro_usd": 1}}, ["run: the same amount is given twice"]),
        ({"run": {"herd": 1}}, ["run: unknown herd"]),
        ({"run": {"hard_micro_usd": 0.5}}, ["run: micro-USD are whole numbers"]),
        ({"run": {"hard_micro_usd": -1}}, ["run: '-1' is not an amount: money cannot be negative"]),
        ({"batch": {"dya": 1}, "free": 3}, ["batch.dya: there is no such kind", "free: there is no such kind"]),
        (7, ["expected a table or text, got int"]),
    ],
)
def test_everything_that_is_wrong_is_named_at_once(given: Any, faults: list[str]) -> None:
    for fault in faults:
        with pytest.raises(ValueError, match=re.escape(fault)):
            parse_limits(given)


def test_a_surface_replaces_what_it_names_and_has_daily_accounts_of_its_own() -> None:
    limits = parse_limits("run=1, tenant/day=10, user/day=5, batch.run=2, batch.tenant/day=50")

    assert limits_for(limits, "default") == (
        ScopeLimit("run", 700_000, 1_000_000),
        ScopeLimit("user/day", 3_500_000, 5_000_000),
        ScopeLimit("tenant/day", 7_000_000, 10_000_000),
    )
    assert limits_for(limits, "elsewhere") == limits_for(limits, "default")
    assert limits_for(limits, "batch") == (
        ScopeLimit("run", 1_400_000, 2_000_000),
        ScopeLimit("user/day", 3_500_000, 5_000_000),
        ScopeLimit("tenant/day/batch", 35_000_000, 50_000_000),
    )


def test_the_configuration_reads_them_from_the_environment_and_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "crewlog.toml").write_text("[budgets]\nrun = 0.25\n")
    assert load().budgets["default"]["run"].hard_micro_usd == 250_000
    monkeypatch.setenv("CREWLOG_BUDGETS", "run=0.75")
    assert load().budgets["default"]["run"].hard_micro_usd == 750_000
    monkeypatch.setenv("CREWLOG_BUDGETS", "run=-1, week=1")
    with pytest.raises(ConfigError, match=r"run: '-1'.*week: there is no such kind"):
        load()
