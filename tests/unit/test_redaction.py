from __future__ import annotations

import pytest

from crewlog.orchestrator.redaction import REDACTED, compile_patterns, redact
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
