from __future__ import annotations

import time

import pytest

from crewlog.orchestrator.redaction import KNOWN, REDACTED, compile_patterns, redact
from crewlog.schemas.errors import ContractError


def test_matches_are_replaced_wherever_they_stand() -> None:
    patterns = compile_patterns([r"sk-[a-z0-9]{4,}", r"\w+@example\.org"])
    value = {"a": ["key sk-abcd1 and sk-zz99", 7, None, True], "ann@example.org": {"to": "ann@example.org, bob"}, "kept": "sk-"}
    assert redact(value, patterns) == {"a": [f"key {REDACTED} and {REDACTED}", 7, None, True], REDACTED: {"to": f"{REDACTED}, bob"}, "kept": "sk-"}
    assert value["kept"] == "sk-"


@pytest.mark.parametrize("pattern", ["(", "x*", ""])
def test_patterns_that_say_nothing_are_refused(pattern: str) -> None:
    with pytest.raises(ContractError, match="--redact"):
        compile_patterns([pattern])


@pytest.mark.parametrize("name", KNOWN)
def test_known_patterns_take_a_long_text_without_any_space_in_linear_time(name: str) -> None:
    began = time.process_time()
    redact("aB3dEFG7" * 40_000, compile_patterns([name]))
    assert time.process_time() - began < 5  # what tries every length from every place takes minutes


def test_addresses_that_run_into_each_other_are_all_taken_out() -> None:
    assert redact("x.y+z@mail.example.org1b@example.com", compile_patterns(["@email"])) == REDACTED * 2
