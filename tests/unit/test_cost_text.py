"""What people read about costs: nothing that the bare sum would hide is left out."""

from __future__ import annotations

import msgspec
import pytest

from crewlog.orchestrator.cost_text import print_costs, print_repriced
from crewlog.orchestrator.reprice import Repriced
from crewlog.projections.query_rows import CostView

PLAIN = CostView(
    group={"kind": "data"},
    calls=4,
    input_tokens=1_000,
    output_tokens=50,
    cached_tokens=0,
    cost_micro_usd=2_500,
    unpriced_calls=0,
    simulated=False,
    cache_write_tokens=0,
    reasoning_tokens=0,
    saved_micro_usd=0,
    failed_calls=0,
    failed_micro_usd=0,
    unused_calls=0,
    unused_micro_usd=0,
    worst_case_calls=0,
    worst_case_micro_usd=0,
    open_calls=0,
)


def lines_of(costs: list[CostView], capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    print_costs(costs)
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def test_one_group_needs_no_total_and_no_columns_for_a_cache_nobody_used(capsys: pytest.CaptureFixture[str]) -> None:
    assert lines_of([PLAIN], capsys) == [["AGENT", "CALLS", "TOKENS", "IN", "TOKENS", "OUT", "COST"], ["data", "4", "1000", "50", "$0.0025"]]


def test_what_caching_saved_or_cost_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    cached = msgspec.structs.replace(PLAIN, cached_tokens=800, saved_micro_usd=1_400)
    written = msgspec.structs.replace(PLAIN, group={"kind": "code"}, cache_write_tokens=900, saved_micro_usd=-400)
    heading, first, second, total = lines_of([cached, written], capsys)
    assert heading[-2:] == ["COST", "SAVED"]
    assert first[3:] == ["800", "(80", "%)", "50", "$0.0025", "$0.0014"]
    assert second[-1] == "-$0.0004"
    assert total == ["total", "8", "2000", "800", "(40", "%)", "100", "$0.0050", "$0.0010"]


def test_failed_unused_worst_case_unpriced_and_open_calls_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    mixed = msgspec.structs.replace(
        PLAIN, failed_calls=1, failed_micro_usd=100, unused_calls=1, unused_micro_usd=200, worst_case_calls=1, worst_case_micro_usd=900, unpriced_calls=1
    )
    print_costs([mixed])
    assert "$0.0025+  1 failed: $0.0001; 1 not used: $0.0002; 1 at their worst case: $0.0009; 1 without a price" in capsys.readouterr().out
    print_costs([msgspec.structs.replace(PLAIN, cost_micro_usd=0, unpriced_calls=3, open_calls=1)])
    assert "unpriced  3 without a price; 1 without an outcome" in capsys.readouterr().out


def test_no_calls_are_said_so(capsys: pytest.CaptureFixture[str]) -> None:
    print_costs([])
    print_repriced([])
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == ["no model was called"] * 2


def test_what_other_prices_do_not_cover_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    some = Repriced({"model": "m-1"}, 5, 2, 300, 500, 2, ("acme:m-1",), 40, 1, 9)
    print_repriced([some, msgspec.structs.replace(some, group={"model": "m-2"})])
    heading, first, _, total = capsys.readouterr().out.splitlines()
    assert heading.split() == ["MODEL", "CALLS", "RECORDED", "REPRICED", "CHANGE"]
    assert "-$0.0002  2 not in the table (acme:m-1): $0.0000 recorded; 1 of unknown usage: $0.0000 recorded" in first
    assert total.split()[:5] == ["total", "4", "$0.0010", "$0.0006", "-$0.0004"]
