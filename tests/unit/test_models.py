"""The syntax of CREWLOG_MODELS, and the chains that are built from it."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from crewlog.agents.models import DEFAULT, ModelChoice, build_chain, chain_of, check_models, key_of, parse_models, show_chain, trial_chain
from crewlog.agents.offline import OfflineModel
from crewlog.events.clock import SystemClock
from crewlog.events.config import load
from crewlog.events.grants import BUILT_IN_KINDS
from crewlog.orchestrator.supervisor import Supervisor, may_have
from crewlog.schemas.errors import ConfigError

OFFLINE = ModelChoice("offline")
CLAUDE = ModelChoice("anthropic", "claude-test")


def test_models_are_read_per_kind_with_a_default() -> None:
    assert parse_models("offline") == {DEFAULT: (OFFLINE,)}
    assert parse_models("planner=anthropic:claude-test, research=offline") == {"planner": (CLAUDE,), "research": (OFFLINE,)}
    assert parse_models("planner=offline:loop") == {DEFAULT: (OFFLINE,), "planner": (ModelChoice("offline", "loop"),)}
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
    assert chain_of("critic", chains) == (OFFLINE,)


@pytest.mark.parametrize(
    ("spec", "hint"),
    [
        ("reserch=anthropic:claude-test", "is 'reserch' a slip of the pen"),
        ("planner=anthropic:claude-test", "write research=<provider>:<model>"),
    ],
)
def test_whom_the_setting_forgot_does_not_work_with_rules_beside_real_models(spec: str, hint: str) -> None:
    with pytest.raises(ConfigError, match="'research' has no model") as caught:
        chain_of("research", parse_models(spec))
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "the setting is empty"),
        ("acme:x", "unknown provider 'acme'"),
        ("anthropic", "names no model"),
        ("anthropic:a >", "has a '>' with nothing beside it"),
        ("offline,", "has a comma with nothing beside it"),
        ("Anthropic:x", "did you mean anthropic:x"),
        ("antropic:x", "did you mean anthropic:x"),
        ("gemini:x", "did you mean google:x"),
        ("claude-sonnet-5-5", "did you mean anthropic:claude-sonnet-5-5"),
        ("anthropic:x;openai:y", "is no name of a model: it holds ';'"),
        ("anthropic:x -> openai:y", "is no name of a model: it holds ' '"),
        ("anthropic:x-> openai:y", "is no name of a model: it holds '-'"),
        ("offline,offline", "the default is set twice"),
        ("code=offline,code=offline", "kind 'code' is set twice"),
        ("=offline", "names no agent kind"),
        ("offline:explode", "no fault 'explode'"),
        ("offline > anthropic:a", "only be the last"),
        ("anthropic:a > anthropic:a", "names anthropic:a twice"),
        (" > ".join(f"anthropic:m{n}" for n in range(9)), "at most 8"),
        ("anthropic:a@http://", "is no address"),
        ("anthropic:a@http://me:secret@host/v1", "holds a user, password or key"),
        ("acme:a@HTTP://me:secret@host/v1", "holds a user, password or key"),
        ("acme:a@http://host/v1?api_key=secret", "holds a user, password or key"),
        ("acme:a@http://host:99999/v1", "is no address"),
        ("acme:a@http://host:port/v1", "is no address"),
        ("openai:a@localhost:8080/v1", "'localhost:8080/v1' is no address"),
        ("a.b:x@http://host/v1", "unknown provider 'a.b'"),
    ],
)
def test_a_wrong_model_setting_is_explained(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_models(spec)
    assert "secret" not in str(caught.value)


KEYS = ("ANTHROPIC_API_KEY", "OPENAI_API_KEY", "GEMINI_API_KEY", "GOOGLE_API_KEY", "CREWLOG_MY_BOX_API_KEY")
ALL = "anthropic:a > openai:b > google:c > my-box:d@http://127.0.0.1:9/v1 > offline"


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_a_chain_is_built_for_a_role(environment: pytest.MonkeyPatch) -> None:
    for name in KEYS[:3]:
        environment.setenv(name, "k")
    config = load(models=f"{ALL}, code=offline")
    assert isinstance(build_chain("code", config)[0], OfflineModel)
    assert [(model.wire, model.provider, model.name, model.simulated) for model in build_chain("data", config)] == [
        ("anthropic.messages", "anthropic", "a", False),
        ("openai.responses", "openai", "b", False),
        ("gemini.generate_content", "google", "c", False),
        ("openai.chat", "my-box", "d", False),
        ("offline", "offline", "rules-1", True),
    ]


def test_all_keys_that_are_missing_are_named_with_both_ways_out(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("OPENAI_API_KEY", "k")
    environment.setenv("GEMINI_API_KEY", " ")
    with pytest.raises(ConfigError) as caught:
        build_chain("data", load(models=ALL))
    assert "no key in ANTHROPIC_API_KEY and GEMINI_API_KEY" in str(caught.value)
    assert "set ANTHROPIC_API_KEY and GEMINI_API_KEY in the environment, or CREWLOG_MODELS=offline" in str(caught.value)


def test_a_trial_names_models_for_some_roles_and_leaves_the_others_theirs(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("OPENAI_API_KEY", "k")
    config = load()
    assert trial_chain("data=openai:m", "research", config) is None
    assert [link.name for link in trial_chain("planner=openai:m", "critic", config) or ()] == ["m"]
    assert [link.provider for link in trial_chain("openai:m > offline", "data", config) or ()] == ["openai", "offline"]


def test_a_trial_decides_no_address_and_needs_a_key(environment: pytest.MonkeyPatch) -> None:
    link = "local:m@http://127.0.0.1:11434/v1"
    environment.setenv("CREWLOG_MODELS", f"offline, code={link}")
    config = load()
    assert trial_chain(link, "data", config) is not None
    with pytest.raises(ConfigError, match="a trial cannot name the server"):
        trial_chain("local:m@http://169.254.169.254/v1", "data", config)
    with pytest.raises(ConfigError, match="'data' has no key in ANTHROPIC_API_KEY"):
        trial_chain("anthropic:m", "data", config)


async def test_a_crew_without_a_key_does_not_even_start_its_servers(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    crew = Supervisor(load(models="code=openai:b, offline", home=tmp_path / "home"), {}, clock=SystemClock(), console=io.StringIO(), on_phase=print)
    with pytest.raises(ConfigError, match="'code' uses openai:b, but there is no key in OPENAI_API_KEY"):
        await crew.run(lambda: None)
    assert not (tmp_path / "home").exists()
    check_models(["planner", "critic"], load(models="code=openai:b, offline"))


def test_keys_come_from_the_environment_and_are_not_shown(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("GOOGLE_API_KEY", "secret-1")
    environment.setenv("CREWLOG_MY_BOX_API_KEY", "secret-2")
    config = load()
    assert (key_of("google", config), key_of("my-box", config), key_of("other", config)) == ("secret-1", "secret-2", "")
    assert "secret" not in repr(config)


@pytest.mark.parametrize("variable", KEYS)
def test_keys_are_handed_to_agents_only(variable: str) -> None:
    assert [kind for kind in (*BUILT_IN_KINDS, "orchestrator", "projector") if may_have(kind, variable)] == list(BUILT_IN_KINDS)
    assert may_have("orchestrator", "CREWLOG_HOME")
    assert [kind for kind in ("orchestrator", "code", "projector") if may_have(kind, "CREWLOG_PERSON_KEK")] == ["orchestrator", "code"]
