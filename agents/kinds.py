"""The built-in kinds, and how a user's own is loaded. Registration is a mapping of functions: nothing happens by importing."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Final

from crewlog.agents.knowledge import Knowledge
from crewlog.agents.spec import AgentSpec, ToolSpec
from crewlog.events.clock import SystemClock
from crewlog.events.config import Config
from crewlog.events.store import EventStore
from crewlog.schemas.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Services:
    """What a built-in kind may be built with."""

    config: Config
    store: EventStore
    knowledge: Knowledge
    web: tuple[ToolSpec, ...] | None = None
    """Tools for the web; None: those that the configuration allows."""


def _planner(_: Services) -> AgentSpec:
    from crewlog.agents.specialist_planner import planner_agent

    return planner_agent()


def _research(services: Services) -> AgentSpec:
    from crewlog.agents.specialist_research import research_agent

    web = _web_tools(services) if services.web is None else services.web
    return research_agent(services.store, services.knowledge, web=web)


def _web_tools(services: Services) -> tuple[ToolSpec, ...]:
    """Return the tools for the web that the configuration allows; without hosts and engines there are none."""
    from crewlog.agents.url_guard import Hosts
    from crewlog.agents.web_engines import engines
    from crewlog.agents.web_pages import HOSTS_SETTING, WebPages
    from crewlog.agents.web_search import web_search_tool

    config, tools = services.config, []
    if configured := engines(config):
        tools.append(web_search_tool(configured))
    if config.fetch_hosts:
        tools.append(WebPages(services.store, SystemClock(), Hosts(config.fetch_hosts, HOSTS_SETTING)).tool())
    return tuple(tools)


def _code(services: Services) -> AgentSpec:
    from crewlog.agents.specialist_code import code_agent

    return code_agent(minimum=services.config.sandbox_minimum)


def _data(services: Services) -> AgentSpec:
    from crewlog.agents.specialist_data import data_agent

    return data_agent(minimum=services.config.sandbox_minimum)


def _communicate(services: Services) -> AgentSpec:
    from crewlog.agents.specialist_communicate import MailSettings, communicate_agent
    from crewlog.agents.webhook import parse_status

    config = services.config
    status = parse_status(config.webhook_status)
    return communicate_agent(MailSettings.from_config(config), config.webhook_hosts, webhook_status=status, outbox=config.outbox)


BUILT_IN: Final[Mapping[str, Callable[[Services], AgentSpec]]] = {
    "planner": _planner,
    "research": _research,
    "code": _code,
    "data": _data,
    "communicate": _communicate,
}


def load_agent(target: str) -> AgentSpec:
    """Load a user's agent from `module:ATTRIBUTE`, looking in the current folder first.

    Raises:
        ConfigError: no such module or attribute, the module cannot be loaded, or it is not an AgentSpec.
    """
    module_name, _, attribute = target.partition(":")
    if not attribute:
        raise ConfigError(f"{target!r} is neither a built-in kind nor module:ATTRIBUTE", hint=f"built-in kinds: {', '.join(BUILT_IN)}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    spec = getattr(_module(module_name), attribute, None)
    if not isinstance(spec, AgentSpec):
        found = "is not there" if spec is None else f"is of type {type(spec).__name__}"
        raise ConfigError(f"{target}: {attribute} {found}", hint="it must be an AgentSpec; see examples/shouter.py")
    if spec.kind in BUILT_IN or spec.kind == "run":
        raise ConfigError(f"{target}: kind {spec.kind!r} is built in", hint="give your agent another kind")
    return spec


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        first = name.partition(".")[0]
        is_own = error.name is None or f"{name}.".startswith(f"{error.name}.")
        where = f"run it where {first}.py is, or install its package" if is_own else f"{name} imports it: install it beside crewlog"
        raise ConfigError(f"cannot import {name!r}: {error}", hint=where) from error
    except Exception as error:  # whatever a module may raise that somebody else wrote
        at = traceback.extract_tb(error.__traceback__)[-1]
        where = "" if isinstance(error, SyntaxError) else f" ({at.filename}, line {at.lineno})"  # a SyntaxError's own text says where
        raise ConfigError(f"cannot import {name!r}: {type(error).__name__}: {error}{where}", hint=f"python -c 'import {name}' shows all of it") from error


def missing_extras(spec: AgentSpec) -> str:
    """Return what a kind lacks and how to install it, or the empty string. Looks without importing."""
    missing = sorted({r.extra for r in spec.requires if importlib.util.find_spec(r.module) is None})
    modules = ", ".join(r.module for r in spec.requires if r.extra in missing)
    return f"missing {modules}; install with: pip install 'crewlog[{','.join(missing)}]'" if missing else ""
