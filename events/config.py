"""Configuration: one frozen value, read once at the start of a process and passed down.

Sources, strongest first: what the command line passes in, `CREWLOG_*` in the environment, `./crewlog.toml`, the user's
`crewlog.toml`, the defaults below. Importing pydantic-settings takes a while, so only processes import this module, never `--help`.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field, PlainValidator, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError, TomlConfigSettingsSource

from crewlog.events.config_mcp import McpServer, ServerName
from crewlog.events.jetstream import Provision
from crewlog.events.limits import Limits, parse_limits
from crewlog.events.whereabouts import NO_FOLDER, default_home, user_file
from crewlog.schemas.errors import ConfigError
from crewlog.schemas.price_table import PriceTable, read_prices

SERVER_KEY: Final = re.compile(r"CREWLOG_([A-Z0-9_]+)_API_KEY")
"""Environment variables that hold the key of a model server of one's own."""

_IN_SPANS: Final = frozenset({"SPAN_ONLY", "SPAN_AND_EVENT"})


def _folder(value: object) -> object:
    if value == "":
        raise ValueError(NO_FOLDER)
    return value


def _host_names(value: object) -> object:
    """Read a list of hosts as people write it: separated by commas or blanks, or as JSON."""
    if not isinstance(value, str):
        return value
    return json.loads(value) if value.lstrip().startswith("[") else value.replace(",", " ").split()


def _patterns(value: object) -> object:
    """Read a list of patterns: one a line, or as JSON. Blanks and commas are parts of patterns."""
    if not isinstance(value, str):
        return value
    return json.loads(value) if value.lstrip().startswith("[") else [line.strip() for line in value.splitlines() if line.strip()]


def _host_name(entry: str) -> str:
    if not entry.isascii() or any(mark in entry for mark in "/@?#\\ "):
        raise ValueError(f"{entry!r} is not a host; write example.org, *.example.org, example.org:8443 or *")
    return entry


def _counts(value: object) -> object:
    """Read `code=8, research=20`, or a table of the same."""
    if isinstance(value, str):
        pairs = [part.partition("=") for part in value.split(",") if part.strip()]
        value = {name.strip(): count.strip() for name, _, count in pairs}
    if isinstance(value, Mapping):
        for name, count in value.items():
            if not str(name) or not str(count).isascii() or not str(count).isdigit() or int(count) < 1:
                raise ValueError(f"{name}={count} is not KIND=COUNT with a count of at least 1")
    return value


HostNames = Annotated[tuple[Annotated[str, AfterValidator(_host_name)], ...], NoDecode, BeforeValidator(_host_names)]


def server_keys() -> Mapping[str, SecretStr]:
    """Read the keys of model servers of one's own from the environment: `CREWLOG_LOCAL_API_KEY` is the key of `LOCAL`."""
    found = ((SERVER_KEY.fullmatch(name), value) for name, value in os.environ.items())
    return {name[1]: SecretStr(value) for name, value in found if name and value}


def _of_opentelemetry(name: str) -> str | None:
    """Read a variable that OpenTelemetry has a name for, so that what is set for a whole machine counts here, too."""
    return None if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" else os.environ.get(f"OTEL_{name}") or None


def _http_url(value: str | None) -> str | None:
    if value and (urlsplit(value).scheme not in ("http", "https") or not urlsplit(value).hostname):
        raise ValueError("it is not an address of OTLP over HTTP; write http://host:4318")
    return value or None


class Config(BaseSettings):
    """All settings. Names in the environment are `CREWLOG_<FIELD>` in capitals."""

    model_config = SettingsConfigDict(env_prefix="CREWLOG_", frozen=True, extra="forbid")

    home: Annotated[Path, BeforeValidator(_folder)] = Field(default_factory=default_home)
    """Folder for embedded servers, artifacts, workspaces, logs and local credentials."""
    database_url: SecretStr | None = None
    """Postgres to use instead of the embedded one; its login decides what this process may write."""
    reader_url: SecretStr | None = None
    """The same Postgres with the login `crewlog_reader`, for `crewlog sql`; None: the one of `database_url`, which is refused if it may do more."""
    archivist_url: SecretStr | None = None
    """The same Postgres with the login `crewlog_archivist`, for `crewlog archive`; None: the one of `database_url`."""
    redact: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_patterns)] = ()
    """What `crewlog export` takes out of every file: regular expressions, or `@secrets`, `@email`, `@card`, `@iban`, `@phone`, separated by
    newlines or as JSON. Empty: files hold what the log holds. Archives are never redacted: they must replay."""
    person_keys: Literal["off", "on"] = "off"
    """Whether runs that are submitted from now on get a key of their user, under which whatever people, models and tools write is stored, so that
    `crewlog erase` can destroy it. Off: nothing is enciphered, and nothing is spent on it. All processes of a crew need the same."""
    person_kek: SecretStr | None = None
    """The key that wraps persons' keys in the database: 32 bytes in base64. None: the file `person.kek` in the home folder, which `crewlog up`
    makes. Whoever has it and the database reads everything; if it is lost, all that is under persons' keys is lost."""
    nats_url: SecretStr | None = None
    """NATS to use instead of the embedded one."""
    artifacts_url: str | None = None
    """Where artifacts live: None for `<home>/artifacts`, or `s3://bucket/prefix`."""
    tenant: str = "default"
    user: str = "anonymous"
    models: str = "offline"
    """Which models each kind uses, in order of preference: `offline`, `anthropic:<model>`, a chain `anthropic:<model> > openai:<model>`, a server
    of one's own `<name>:<model>@http://host:port/v1`, or per kind `planner=google:<model>, research=offline`; what has no kind is the default."""
    prices: Annotated[PriceTable, NoDecode, BeforeValidator(read_prices)] = Field(default_factory=dict)
    """What models cost that no price list knows, or that you pay otherwise: `<provider>:<model>` (`*` stands for anything) -> `input`,
    `output`, `cache_read`, `cache_write` in USD per million tokens. They go before the list that comes with crewlog. JSON in the environment."""
    unpriced: Literal["refuse", "allow"] = "refuse"
    """What becomes of a call nobody knows the price of when its task may spend only so much: nobody could hold it to a limit."""
    model_timeout_s: Annotated[float, Field(gt=0)] = 300.0
    """Longest time one call to a model may take, in seconds; a task's own deadline may end it sooner."""
    hedge_after_s: Annotated[float, Field(gt=0)] | None = None
    """When a model has not begun a structured answer after so many seconds, the next one of its chain is asked beside it and the first good
    answer counts; None: never. It buys time with money: a call that lost is paid for, at its worst case if nothing was heard of it. A good
    value is what nineteen of twenty calls keep to."""
    live_text: bool = True
    """Tell answers on `live.<tenant>.<run>.<task>` while they are being written. Only simulated models are never told."""
    downgrade_on_soft_limit: bool = False
    """Past the soft limit of a budget, a task asks the cheapest model of its chain (and those behind it) instead of the first one. Off: a
    warning changes nothing, and whoever reads it decides."""
    agent_change: Literal["keep", "move"] = "keep"
    """What becomes of a task that began under another version of its agent: `keep` lets it finish with the prompt and the tool versions it
    planned with, which the agent must still have; `move` lets it go on with the present ones from its next turn on, when nothing of it is under
    way. A call that waits for a person is carried out as it was asked for in any case."""
    refusals_fall_through: bool = False
    """A model that refuses to answer is followed by the next one of the chain. Off: going from provider to provider until one answers what
    the others refused is a decision that somebody should have made."""
    context: Literal["inject", "retrieve"] = "inject"
    """How a task is given the outcomes of earlier ones: `inject` tells them all at the start; `retrieve` lists them and offers a tool that
    reads one, which costs a turn and keeps a long chain of tasks short. An agent may say otherwise for itself."""
    context_window: Annotated[int, Field(ge=1_000)] = 128_000
    """Tokens that input and output of a model may have together when nobody knows its window, as for a server of one's own. Old results
    are left out of a conversation before it reaches three quarters of that; set it to what the server really holds."""
    memory: bool = True
    """Whether agents that are made for it may remember something for later tasks of a user or tenant, and recall it."""
    slots: Annotated[int, Field(ge=1, le=1000)] = 4
    """Tasks one worker works on at once: models are slow, waiting is cheap."""
    ack_wait_s: Annotated[float, Field(ge=1)] = 30.0
    """A task whose worker gives no sign of life for this long is handed to another one, in seconds. Shorter recovers sooner from a dead worker
    and asks more often whether a slow one is alive; workers give a sign three times within it."""
    nats_replicas: Annotated[int, Field(ge=1, le=5)] | None = None
    """Servers of a NATS cluster that keep each stream; 3 survives the loss of one. None: streams stay as they are, new ones are kept once.
    Nothing is lost for good either way, since the log publishes again what NATS lost."""
    shutdown_grace_s: Annotated[float, Field(ge=0)] = 10.0
    """How long a stopping process lets running work finish, in seconds."""
    sweep_interval_s: Annotated[float, Field(gt=0)] = 10.0
    """How often the orchestrator looks for runs that stand still, in seconds."""
    dispatch_lease_s: Annotated[float, Field(gt=0)] = 60.0
    """A dispatched task without any sign of life for this long is published again, in seconds."""
    approval_ttl_s: Annotated[float, Field(gt=0)] = 86_400.0
    """How long an approval may wait for a person, in seconds."""
    budgets: Annotated[Limits, NoDecode, PlainValidator(parse_limits)] = {}
    """What may be spent, per surface and kind of scope, in US dollars: `run=0.50, tenant/day=20:14, batch.run=5`, see `events/limits.py`.
    Empty: nothing is limited but by a task's own `budget`. Limits apply to scopes that are new; `crewlog budget raise` changes those there are."""
    hold_ttl_s: Annotated[int, Field(gt=0)] | None = None
    """How long a run may wait for its budget to be raised before it fails with what it has, in seconds; None: as long as an approval."""
    shadow: str = ""
    """Which share of the runs of a type is run once more on other models, with effects stubbed, to be compared and never used:
    `research=0.1:anthropic:<model>, data=0.05:offline`. Empty: none. Only agents take this work that were started for it, such as with
    `crewlog scale research.shadow=1`; while there are none it waits, and everything else goes on."""
    shadow_max_micro_usd: Annotated[int, Field(ge=0)] = 1_000_000
    """The most that the shadows of one tenant and type may spend on one day, in micro-USD: they are charged to a budget of their own, and to
    none of their tenant, user or kind. The default is 1 USD, since nobody waits for them."""
    worker_grace_s: Annotated[float, Field(gt=0)] = 100.0
    """How long a worker may be silent before it is asked, and recorded as stopped if it does not answer, in seconds: ten of its heartbeats."""
    settle_grace_s: Annotated[float, Field(gt=0)] = 900.0
    """How old a reservation of a task that is over must be before the orchestrator settles it at the reserved price, in seconds: longer than
    any model call takes, since a worker that is alive settles its own."""
    in_flight_max: Annotated[Mapping[str, int], NoDecode, BeforeValidator(_counts)] = Field(default_factory=dict)
    """How many tasks of a kind may be with its agents at once, such as `code=8, research=20`; what is behind them waits in fair order. A kind
    without an entry is bounded by the slots of its workers."""
    open_runs_max: Annotated[int, Field(gt=0)] = 20_000
    """How many runs of one tenant may be open at once; more are refused. It keeps a loop that submits for ever from burying all others; runs
    that wait for a person count, since each is looked after."""
    waiting_tasks_max: Annotated[int, Field(gt=0)] = 50_000
    """How many tasks of one tenant may wait for their turn with an agent; while it is reached, new runs of the tenant are refused. Each
    takes a few hundred bytes of an orchestrator."""
    sandbox_minimum: Literal["limits-only", "namespaces"] = "limits-only"
    """Weakest isolation in which the code and data agents may run anything; `namespaces` refuses on a machine that has none."""
    smtp_host: str = "127.0.0.1"
    smtp_port: Annotated[int, Field(ge=0, le=65_535)] = 0
    """Port of the mail server; 0 means none is configured and sending fails with a hint."""
    smtp_user: str | None = None
    smtp_password: SecretStr | None = None
    smtp_starttls: bool = False
    mail_from: str = "crewlog@localhost"
    webhook_hosts: HostNames = ()
    """Hosts that `post_webhook` may reach; empty means none. Entries as for `fetch_hosts`."""
    webhook_status: str = ""
    """Where receivers of webhooks say whether they have a post: `HOST=URL` with `{key}` for its idempotency key in the URL, several separated by
    blanks. They answer 200 when they have it and 404 when they have not. Without it a person is asked about a post that broke off."""
    outbox: Path | None = None
    """Folder into which the communicate agent may publish files for others to see, such as one that a web server serves; a rollback withdraws
    them. None means that it has no such tool. Agents on several machines need the same folder."""
    fetch_hosts: HostNames = ()
    """Hosts that the research agent may fetch pages from; empty means that it has no such tool. `name` and `*.name` mean ports 80 and 443 on
    public addresses, `name:port` this port on any address, `*` every public host. A fetch tells its host what is asked for, so a short list
    also keeps data from leaving."""
    brave_api_key: SecretStr | None = Field(default=None, validation_alias="BRAVE_API_KEY")
    """Key of the Brave Search API. Each configured engine lets the research agent search the web; they are asked in this order."""
    tavily_api_key: SecretStr | None = Field(default=None, validation_alias="TAVILY_API_KEY")
    searxng_url: str | None = None
    """Address of a SearXNG instance that allows the format json, such as `http://127.0.0.1:8888`."""
    mcp: dict[ServerName, McpServer] = Field(default_factory=dict)
    """MCP servers whose tools join those of agents, by name: tables `[mcp.NAME]` in crewlog.toml, or one JSON object in the environment."""
    anthropic_api_key: SecretStr | None = Field(default=None, validation_alias="ANTHROPIC_API_KEY")
    openai_api_key: SecretStr | None = Field(default=None, validation_alias="OPENAI_API_KEY")
    gemini_api_key: SecretStr | None = Field(default=None, validation_alias=AliasChoices("GEMINI_API_KEY", "GOOGLE_API_KEY"))
    server_keys: Mapping[str, SecretStr] = Field(default_factory=server_keys)
    """Keys for model servers of one's own, by name in capitals: each `CREWLOG_<NAME>_API_KEY` of the environment. Many servers want none."""
    server_max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """How model servers of one's own call the bound of an answer: nearly all know the older name."""
    server_structured_output: Literal["schema", "tool", "instruction"] = "schema"
    """How they are asked for structured answers: `response_format`, a forced tool call, or words. The answer is validated in any case."""
    otlp_endpoint: Annotated[str | None, AfterValidator(_http_url)] = Field(default_factory=lambda: _of_opentelemetry("EXPORTER_OTLP_ENDPOINT"))
    """Collector for traces and metrics, over OTLP/HTTP, such as `http://127.0.0.1:6006` or `http://127.0.0.1:4318`; None: nothing is traced and
    nothing is spent on it. By default what `OTEL_EXPORTER_OTLP_ENDPOINT` says, unless `OTEL_SDK_DISABLED` is true."""
    otlp_headers: SecretStr = Field(default_factory=lambda: SecretStr(_of_opentelemetry("EXPORTER_OTLP_HEADERS") or ""))
    """Headers for the collector, such as its key: `name=value,name=value`, values percent-encoded. By default `OTEL_EXPORTER_OTLP_HEADERS`."""
    otlp_resource: str = Field(default_factory=lambda: _of_opentelemetry("RESOURCE_ATTRIBUTES") or "")
    """What traces and metrics say of where they come from, written likewise: `service.name=crew-a,deployment.environment.name=prod`. By default
    `OTEL_RESOURCE_ATTRIBUTES`."""
    trace_content: bool = Field(default_factory=lambda: (_of_opentelemetry("INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT") or "").upper() in _IN_SPANS)
    """Whether spans say what models and tools were told and said. Off: whoever may read traces need not be somebody who may read that. By
    default on when `OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT` is SPAN_ONLY or SPAN_AND_EVENT."""
    trace_share: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Part of the runs that is traced, from 0 to 1, decided by the run's id. Metrics count all runs."""

    @property
    def provision(self) -> Provision:
        """Return what these settings say about streams and consumers."""
        return Provision(self.nats_replicas, self.ack_wait_s)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  (pydantic passes it by name)
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003  (pydantic passes it by name)
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        files = (TomlConfigSettingsSource(settings_cls, path) for path in (Path("crewlog.toml"), user_file()))
        return init_settings, env_settings, *files


def own_servers() -> dict[str, str]:
    """Return which servers are not embedded, each with the setting that has its address; none when the configuration cannot be read."""
    try:
        config = load()
    except ConfigError:
        return {}
    addresses = {"Postgres": ("CREWLOG_DATABASE_URL", config.database_url), "NATS": ("CREWLOG_NATS_URL", config.nats_url)}
    return {server: setting for server, (setting, address) in addresses.items() if address is not None}


def load(**given: Any) -> Config:
    """Read the configuration.

    Raises:
        ConfigError: naming every wrong setting.
    """
    try:
        return Config(**given)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"a crewlog.toml is not TOML: {error}", hint=f"settings are read from ./crewlog.toml and {user_file()}") from None
    except SettingsError as error:  # a value that must be JSON and is none
        raise ConfigError(f"configuration: {error}: it must be JSON", hint="settings are CREWLOG_<NAME> in the environment or <name> in crewlog.toml") from None
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, e['loc']))}: {e['msg'].removeprefix('Value error, ')}" for e in error.errors(include_url=False, include_input=False)
        )
        raise ConfigError(f"configuration: {faults}", hint="settings are CREWLOG_<NAME> in the environment or <name> in crewlog.toml") from None
