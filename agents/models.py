"""Which models each role uses: reads `Config.models` and builds the chain of a role, in order of preference.

    CREWLOG_MODELS = entry, entry, …       entry = [ROLE =] link > link > …       link = PROVIDER:MODEL[@URL] | offline

A provider is `anthropic`, `openai`, `google`, or a name of one's own for a server that speaks Chat Completions at the given address. An address is
written with `/v1` for `openai` and one's own servers, without a version for `anthropic` and `google`.
A role is an agent kind, or one of the planner's tasks (`router`, `critic`, `synthesis`), which use the planner's chain unless they have
their own. An entry without a role is for all roles that have none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from crewlog.agents.model import Model
from crewlog.events.config import Config
from crewlog.schemas.errors import ConfigError
from crewlog.schemas.ids import TOKEN

DEFAULT: Final = "*"
"""Key of the chain for every role that has none of its own."""
PLANNERS_TASKS: Final = ("router", "critic", "synthesis")
"""Roles that are tasks of the planner, and use its chain unless they have their own."""
OFFLINE: Final = "offline"
LINKS_MAX: Final = 8
_NOT_IN_NAMES: Final = re.compile(r"[\s;<>|\"'`]|-$")
"""What no name of a model holds, and a slip of the pen does: `a; b`, `a -> b`."""
_ADDRESS: Final = re.compile(r"(.*?)@(https?:.*)", re.IGNORECASE)
_LIKE_KEY: Final = re.compile(r"key|token|secret|passw|sig=", re.IGNORECASE)
_LIKE_ADDRESS: Final = re.compile(r"[:/]")
"""Tells an address from a version: both stand behind an `@`."""
_OTHER_NAMES: Final = {"claude": "anthropic", "gpt": "openai", "gemini": "google"}
"""What people call providers by their models."""
_SYNTAX: Final = (
    "write CREWLOG_MODELS as `offline`, `anthropic:<model>`, `openai:<model>`, `google:<model>`, `<name>:<model>@http://host:port/v1` for a server "
    "of your own, a chain `anthropic:<model> > openai:<model>`, or per kind: `planner=anthropic:<model>, research=offline`"
)


class ModelChoice(NamedTuple):
    """One link of a chain: a provider and one of its models. For `offline` the model is empty, or names a fault to play."""

    provider: str
    model: str = ""
    base_url: str = ""
    """Where the provider's API is served; empty for the provider's own address."""

    def __str__(self) -> str:
        return f"{self.provider}{':' if self.model else ''}{self.model}{'@' if self.base_url else ''}{self.base_url}"


Chain = tuple[ModelChoice, ...]


def parse_models(spec: str) -> Mapping[str, Chain]:
    """Read a model setting: role -> chain, with `DEFAULT` for all others.

    Without a default of its own that is `offline`, but only while nothing else is named: a role that was forgotten, or misspelt, must not work with
    rules beside others that ask real models.

    Raises:
        ConfigError: naming the entry that cannot be understood, and the providers there are.
    """
    named = named_models(spec)
    if all(link.provider == OFFLINE for chain in named.values() for link in chain):
        return {DEFAULT: (ModelChoice(OFFLINE),), **named}
    return named


def named_models(spec: str) -> Mapping[str, Chain]:
    """Read a model setting, without any default.

    Raises:
        ConfigError: as `parse_models` does.
    """
    chains: dict[str, Chain] = {}
    if not spec.strip():
        raise ConfigError("models: the setting is empty", hint=_SYNTAX)
    for entry in re.split(r"\s*,\s*", spec.strip()):
        if not entry:
            raise ConfigError(f"models: {spec.strip()!r} has a comma with nothing beside it", hint=_SYNTAX)
        role, text = _split_role(entry)
        if role in chains:
            what = "the default" if role == DEFAULT else f"kind {role!r}"
            raise ConfigError(f"models: {what} is set twice, to {show_chain(chains[role])} and {text}", hint=_SYNTAX)
        chains[role] = _chain(text, entry)
    return chains


def chain_of(role: str, chains: Mapping[str, Chain]) -> Chain:
    """Return the chain of a role: its own, else for the planner's tasks the planner's, else the default.

    Raises:
        ConfigError: it has none.
    """
    order = (role, "planner", DEFAULT) if role in PLANNERS_TASKS else (role, DEFAULT)
    found = next((chains[key] for key in order if key in chains), None)
    if found is None:
        near = get_close_matches(role, chains, n=1)
        hint = (
            f"is {near[0]!r} a slip of the pen?"
            if near
            else f"write {role}=<provider>:<model>, or one chain without a kind for all others, such as `, {OFFLINE}`"
        )
        raise ConfigError(f"models: {role!r} has no model; the setting names {', '.join(chains)}", hint=hint)
    return found


def show_chain(chain: Chain) -> str:
    """Write a chain as it stands in the setting."""
    return " > ".join(map(str, chain))


def _split_role(entry: str) -> tuple[str, str]:
    role, equals, text = entry.partition("=")
    if not equals or ":" in role:  # an equals sign behind a colon belongs to an address
        return DEFAULT, entry.strip()
    if not TOKEN.fullmatch(role.strip()):
        raise ConfigError(f"models: {entry!r} names no agent kind before '='", hint=_SYNTAX)
    return role.strip(), text.strip()


def _chain(text: str, entry: str) -> Chain:
    links = tuple(_link(part.strip(), entry) for part in text.split(">"))
    if len(links) > LINKS_MAX:
        raise ConfigError(f"models: {entry!r} has {len(links)} models; a chain has at most {LINKS_MAX}")
    if twice := next((link for link in links if links.count(link) > 1), None):
        raise ConfigError(f"models: {entry!r} names {twice} twice", hint="a model that failed is not asked again further down the chain")
    if any(link.provider == OFFLINE for link in links[:-1]):
        raise ConfigError(f"models: {entry!r} has models behind offline", hint="offline always answers: it can only be the last of a chain")
    return links


def _link(text: str, entry: str) -> ModelChoice:
    if not text:
        raise ConfigError(f"models: {entry!r} has a '>' with nothing beside it", hint=_SYNTAX)
    provider, _, rest = text.partition(":")
    model, base_url = _split_address(rest.strip())
    if provider not in _BUILDERS and not (base_url and TOKEN.fullmatch(provider)):
        raise ConfigError(f"models: unknown provider {provider!r} in {entry!r}; known providers: {', '.join(_BUILDERS)}", hint=_meant(provider, text))
    if provider == OFFLINE:
        return ModelChoice(OFFLINE, _fault(rest))
    if not model:
        raise ConfigError(f"models: {entry!r} names no model", hint=f"write {provider}:<model>, with the model's id as the provider names it")
    if odd := _NOT_IN_NAMES.search(model):
        raise ConfigError(f"models: {model!r} in {entry!r} is no name of a model: it holds {odd[0]!r}", hint=_SYNTAX)
    return ModelChoice(provider, model, base_url)


def _meant(provider: str, text: str) -> str:
    """Say what somebody may have meant who named a provider that there is not."""
    known = _OTHER_NAMES.get(provider.lower()) or next(iter(get_close_matches(provider.lower(), _BUILDERS, n=1)), None)
    if known and ":" in text:
        return f"did you mean {known}:{text.partition(':')[2]}?"
    if maker := next((_OTHER_NAMES[word] for word in _OTHER_NAMES if ":" not in text and text.startswith(f"{word}-")), None):
        return f"did you mean {maker}:{text}?"
    return f"a server of your own needs an address: {provider}:<model>@http://host:port/v1\n{_SYNTAX}"


def _fault(text: str) -> str:
    if not text:
        return ""  # without loading the rules: those who only read the setting never need them
    from crewlog.agents.offline import parse_fault

    return parse_fault(text)


def _split_address(text: str) -> tuple[str, str]:
    """Split `model@http://host/path`. A model's id may hold an `@` of its own.

    Raises:
        ConfigError: the address is none, or holds a password or a key: it would show up wherever the model's name does.
    """
    found = _ADDRESS.fullmatch(text)
    if found is None:
        rest = text.rpartition("@")[2]
        if rest != text and _LIKE_ADDRESS.search(rest):
            raise ConfigError(f"models: {rest!r} is no address", hint="write http://host:port/v1 or https://…")
        return text, ""
    model, address = found.groups()
    parts = urlsplit(address)
    if parts.username or parts.password or _LIKE_KEY.search(parts.query):
        raise ConfigError(f"models: the address of {model!r} holds a user, password or key", hint="put a key into CREWLOG_<NAME>_API_KEY instead")
    try:
        is_place = bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is none
        is_place = False
    if not is_place:
        raise ConfigError(f"models: {address!r} is no address", hint="write http://host:port/v1 or https://…")
    return model, address


def build_chain(role: str, config: Config) -> tuple[Model, ...]:
    """Make the models that a role uses, in order of preference.

    Args:
        role: an agent kind, or one of `PLANNERS_TASKS`.

    Raises:
        ConfigError: the setting is wrong, or keys are missing; all that are missing are named.
    """
    return _built(_usable(role, config), config)


def trial_chain(models: str, role: str, config: Config) -> tuple[Model, ...] | None:
    """Make the chain that a trial names for a role; None when it names none for it.

    Args:
        models: as in CREWLOG_MODELS. A server's address counts only if the crew's own setting has it: who submits a trial decides no address.

    Raises:
        ConfigError: it cannot be understood, a key is missing, or it names an address of its own.
    """
    named = named_models(models)
    order = (role, "planner", DEFAULT) if role in PLANNERS_TASKS else (role, DEFAULT)
    chain = next((named[key] for key in order if key in named), None)
    if chain is None:
        return None
    known = {link for links in parse_models(config.models).values() for link in links}
    if unknown := [str(link) for link in chain if link.base_url and link not in known]:
        raise ConfigError(f"a trial cannot name the server {unknown[0]}", hint="put the same link into CREWLOG_MODELS of the agents")
    if lacking := missing_keys(chain, config):
        raise ConfigError(f"the trial asks {show_chain(chain)}, but {role!r} has no key in {' and '.join(lacking)}")
    return _built(chain, config)


def _built(chain: Chain, config: Config) -> tuple[Model, ...]:
    return tuple(_BUILDERS.get(link.provider, _server)(link, config) for link in chain)


def check_models(roles: Iterable[str], config: Config) -> None:
    """See that the models of these roles can be built, without building any.

    Raises:
        ConfigError: as `build_chain` does.
    """
    for role in roles:
        _usable(role, config)


def _usable(role: str, config: Config) -> Chain:
    chain = chain_of(role, parse_models(config.models))
    if lacking := missing_keys(chain, config):
        variables = " and ".join(lacking)
        raise ConfigError(
            f"{role!r} uses {show_chain(chain)}, but there is no key in {variables}",
            hint=f"set {variables} in the environment, or CREWLOG_MODELS={OFFLINE} to work without a key",
        )
    return chain


def missing_keys(chain: Sequence[ModelChoice], config: Config) -> tuple[str, ...]:
    """List the environment variables of keys that a chain needs and that are not set, each once. A server of one's own may need none."""
    wanted = (link.provider for link in chain if link.provider in _VARIABLES)
    return tuple(dict.fromkeys(_VARIABLES[provider] for provider in wanted if not key_of(provider, config)))


def key_of(provider: str, config: Config) -> str:
    """Return the key for a provider, or nothing."""
    match provider:
        case "anthropic":
            found = config.anthropic_api_key
        case "openai":
            found = config.openai_api_key
        case "google":
            found = config.gemini_api_key
        case _:
            found = config.server_keys.get(provider.upper().replace("-", "_"))
    return found.get_secret_value().strip() if found else ""


def _offline(link: ModelChoice, config: Config) -> Model:  # noqa: ARG001  (all builders are called alike)
    from crewlog.agents.offline import OfflineModel, parse_fault

    return OfflineModel(fault=parse_fault(link.model))


def _anthropic(link: ModelChoice, config: Config) -> Model:
    from crewlog.agents.model_anthropic import AnthropicModel

    return AnthropicModel(link.model, api_key=key_of(link.provider, config), base_url=link.base_url or None)


def _openai(link: ModelChoice, config: Config) -> Model:
    from crewlog.agents.model_openai_responses import OpenAIResponsesModel

    return OpenAIResponsesModel(link.model, api_key=key_of(link.provider, config), base_url=link.base_url or None)


def _google(link: ModelChoice, config: Config) -> Model:
    from crewlog.agents.model_gemini import GeminiModel

    return GeminiModel(link.model, api_key=key_of(link.provider, config), base_url=link.base_url or None)


def _server(link: ModelChoice, config: Config) -> Model:
    from crewlog.agents.model_openai_chat import OpenAIChatModel

    return OpenAIChatModel(
        link.model,
        provider=link.provider,
        base_url=link.base_url,
        api_key=key_of(link.provider, config),
        max_tokens_field=config.server_max_tokens_field,
        structured=config.server_structured_output,
    )


_BUILDERS: Final[Mapping[str, Callable[[ModelChoice, Config], Model]]] = {"anthropic": _anthropic, "openai": _openai, "google": _google, OFFLINE: _offline}
_VARIABLES: Final[Mapping[str, str]] = {"anthropic": "ANTHROPIC_API_KEY", "openai": "OPENAI_API_KEY", "google": "GEMINI_API_KEY"}
