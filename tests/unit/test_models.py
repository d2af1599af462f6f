"""The syntax of CREWLOG_MODELS, and the chains that are built from it."""

from __future__ import annotations

import pytest

from crewlog.agents.models import DEFAULT, ModelChoice, build_chain, build_model, chain_of, parse_models, show_chain
from crewlog.agents.offline import OfflineModel
from crewlog.events.config import load
from crewlog.schemas.errors import ConfigError

OFFLINE = ModelChoice("offline")
CLAUDE = ModelChoice("anthropic", "claude-test")


def test_models_are_read_per_kind_with_a_default() -> None:
    assert parse_models("offline") == {DEFAULT: (OFFLINE,)}
    assert parse_models("planner=anthropic:claude-test, research=offline") == {DEFAULT: (OFFLINE,), "planner": (CLAUDE,), "research": (OFFLINE,)}
    assert parse_models("anthropic:claude-test,code=offline:loop") == {DEFAULT: (CLAUDE,), "code": (ModelChoice("offline", "loop"),)}


def test_a_chain_keeps_its_order_and_is_shown_as_it_was_written() -> None:
    text = "anthropic:claude-test > anthropic:b@http://127.0.0.1:9/v1 > offline"
    chain = parse_models(f"research={text}")["research"]
    assert chain == (CLAUDE, ModelChoice("anthropic", "b", "http://127.0.0.1:9/v1"), OFFLINE)
    assert show_chain(chain) == text


def test_an_id_may_hold_colons_and_ats_and_an_address_an_equals_sign() -> None:
    assert parse_models("anthropic:a:8b@2026")[DEFAULT] == (ModelChoice("anthropic", "a:8b@2026"),)
    assert parse_models("anthropic:a@https://host/v1?x=1")[DEFAULT] == (ModelChoice("anthropic", "a", "https://host/v1?x=1"),)


def test_tasks_of_the_planner_use_its_chain_unless_they_have_their_own() -> None:
    chains = parse_models("planner=anthropic:claude-test, critic=offline")
    assert chain_of("synthesis", chains) == chain_of("router", chains) == (CLAUDE,)
    assert chain_of("critic", chains) == chain_of("data", chains) == (OFFLINE,)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "unknown provider ''.*known providers: anthropic, "),
        ("acme:x", "unknown provider 'acme'"),
        ("anthropic", "names no model"),
        ("anthropic:a >", "unknown provider ''"),
        ("offline,offline", "the default is set twice"),
        ("code=offline,code=offline", "kind 'code' is set twice"),
        ("=offline", "names no agent kind"),
        ("offline:explode", "no fault 'explode'"),
        ("offline > anthropic:a", "only be the last"),
        ("anthropic:a > anthropic:a", "names anthropic:a twice"),
        (" > ".join(f"anthropic:m{n}" for n in range(9)), "at most 8"),
        ("anthropic:a@http://", "is no address"),
        ("anthropic:a@http://me:secret@host/v1", "holds a user or password"),
    ],
)
def test_a_wrong_model_setting_is_explained(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_models(spec)
    assert "secret" not in str(caught.value)


def test_a_chain_is_built_for_a_role(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    config = load(models="anthropic:claude-test > offline, code=offline")
    assert isinstance(build_model("code", config), OfflineModel)
    with pytest.raises(ConfigError, match=r"set ANTHROPIC_API_KEY.*or CREWLOG_MODELS=offline"):
        build_chain("data", config)
    monkeypatch.setenv("ANTHROPIC_API_KEY", "k")
    chain = build_chain("data", load(models="anthropic:claude-test > offline, code=offline"))
    assert [(model.provider, model.name, model.simulated) for model in chain] == [("anthropic", "claude-test", False), ("offline", "rules-1", True)]
