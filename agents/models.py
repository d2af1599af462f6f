"""Which model each kind uses: reads `Config.models` and builds the adapter for a kind."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from crewlog.agents.model import Model
from crewlog.events.config import Config
from crewlog.schemas.errors import ConfigError
from crewlog.schemas.ids import TOKEN

DEFAULT: Final = "*"
"""Key of the choice for every kind that has none of its own."""
PROVIDERS: Final = ("anthropic", "offline")
_SYNTAX: Final = "write CREWLOG_MODELS as `offline`, `anthropic:<model>`, or per kind: `planner=anthropic:<model>,research=offline`"


class ModelChoice(NamedTuple):
    """A provider and one of its models. For `offline` the model is empty, or names a fault to play."""

    provider: str
    model: str = ""

    def __str__(self) -> str:
        return f"{self.provider}:{self.model}" if self.model else self.provider


def parse_models(spec: str) -> Mapping[str, ModelChoice]:
    """Read a model setting: kind -> choice, with `DEFAULT` for all others; without a default of its own that is `offline`.

    Raises:
        ConfigError: naming the entry that cannot be understood, and the providers there are.
    """
    choices: dict[str, ModelChoice] = {}
    for entry in re.split(r"\s*,\s*", spec.strip()):
        kind, equals, text = entry.rpartition("=")
        kind = kind.strip() if equals else DEFAULT
        if equals and not TOKEN.fullmatch(kind):
            raise ConfigError(f"models: {entry!r} names no agent kind before '='", hint=_SYNTAX)
        if kind in choices:
            raise ConfigError(
                f"models: {'the default' if kind == DEFAULT else f'kind {kind!r}'} is set twice, to {choices[kind]} and {text.strip()}", hint=_SYNTAX
            )
        choices[kind] = _choice(text.strip(), entry)
    return {DEFAULT: ModelChoice("offline"), **choices}


def _choice(text: str, entry: str) -> ModelChoice:
    provider, _, model = text.partition(":")
    if provider not in PROVIDERS:
        raise ConfigError(f"models: unknown provider {provider!r} in {entry!r}; known providers: {', '.join(PROVIDERS)}", hint=_SYNTAX)
    if provider == "offline":
        from crewlog.agents.offline import parse_fault

        parse_fault(model)
    elif not model:
        raise ConfigError(f"models: {entry!r} names no model", hint=f"write {provider}:<model>, with the model's id as the provider names it")
    return ModelChoice(provider, model)


def build_model(kind: str, config: Config) -> Model:
    """Make the model that an agent kind uses.

    Raises:
        ConfigError: the setting is wrong, or the provider's key is missing.
    """
    choices = parse_models(config.models)
    choice = choices.get(kind, choices[DEFAULT])
    if choice.provider == "offline":
        from crewlog.agents.offline import OfflineModel, parse_fault

        return OfflineModel(fault=parse_fault(choice.model))
    key = config.anthropic_api_key.get_secret_value().strip() if config.anthropic_api_key else ""
    if not key:
        raise ConfigError(
            f"kind {kind!r} uses {choice}, but there is no key for it",
            hint="set ANTHROPIC_API_KEY in the environment, or CREWLOG_MODELS=offline to work without a key",
        )
    from crewlog.agents.model_anthropic import AnthropicModel

    return AnthropicModel(choice.model, api_key=key)
