"""List every setting with its type, its default and its help.

`load` fills the tree. Flags (`--store-path`) and variables (`TASKFLOW_STORE_PATH`) are named after section and field.
"""

from __future__ import annotations

import functools
import typing
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from nats_taskflow.config import parsers
from nats_taskflow.config.secrets import Secret, Url
from nats_taskflow.config.setting import GuardedSetting, Setting, SettingInfo
from nats_taskflow.config.tables import merge_bindings, read_delegates, read_replies
from nats_taskflow.units import Duration
from nats_taskflow.wire.delegates import DelegateOwners
from nats_taskflow.wire.reply_bindings import Binding


class NatsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How to reach NATS. The variables are those of the `nats` CLI."""

    url: Annotated[tuple[Url, ...], GuardedSetting(parsers.urls, "NATS servers, comma separated.", env=("NATS_URL",))] = (
        Url("nats://127.0.0.1:4222"),
    )
    context: Annotated[
        str, GuardedSetting(parsers.text, "Take what is not set here from this context of the nats CLI.", env=("NATS_CONTEXT",))
    ] = ""
    creds: Annotated[Secret | None, GuardedSetting(parsers.secret_file, "Credentials file (JWT and NKey).", env=("NATS_CREDS",))] = None
    nkey: Annotated[Secret | None, GuardedSetting(parsers.secret_file, "File with an NKey seed.", env=("NATS_NKEY",))] = None
    jwt: Annotated[
        Secret | None, GuardedSetting(parsers.secret, "User JWT; better file:/path, env:NAME or credential:NAME.", env=("NATS_JWT",))
    ] = None
    seed: Annotated[
        Secret | None,
        GuardedSetting(parsers.secret, "NKey seed of the JWT's user; better file:/path or credential:NAME.", env=("NATS_SEED",)),
    ] = None
    user: Annotated[str, GuardedSetting(parsers.text, "User name.", env=("NATS_USER",))] = ""
    password: Annotated[
        Secret | None, GuardedSetting(parsers.secret, "Password; better file:/path, env:NAME or credential:NAME.", env=("NATS_PASSWORD",))
    ] = None
    token: Annotated[
        Secret | None, GuardedSetting(parsers.secret, "Token; better file:/path, env:NAME or credential:NAME.", env=("NATS_TOKEN",))
    ] = None
    tls_ca: Annotated[str, GuardedSetting(parsers.readable_file, "Certificates of the authorities to trust.", env=("NATS_CA",))] = ""
    tls_cert: Annotated[str, GuardedSetting(parsers.readable_file, "Client certificate.", env=("NATS_CERT",))] = ""
    tls_key: Annotated[Secret | None, GuardedSetting(parsers.secret_file, "Private key of the client certificate.", env=("NATS_KEY",))] = (
        None
    )
    tls_first: Annotated[
        bool, GuardedSetting(parsers.boolean, "Shake hands for TLS before the server says anything, as its `handshake_first` asks for.")
    ] = False
    inbox_prefix: Annotated[
        str,
        GuardedSetting(
            parsers.inbox_prefix,
            "Receive answers under this subject (_INBOX_worker), so that permissions can keep others out; empty: a random one.",
            env=("NATS_INBOX_PREFIX",),
        ),
    ] = ""
    connect_timeout: Annotated[
        Duration,
        SettingInfo(parsers.duration(1000), "Give up when NATS cannot be reached at start within this time.", env=("NATS_TIMEOUT",)),
    ] = Duration.parse("5s")
    monitor_url: Annotated[
        str, GuardedSetting(parsers.text, "Monitoring address of the server (http://host:8222): asked at start whether it syncs to disk.")
    ] = ""


class StoreConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Where flows live."""

    path: Annotated[
        str, SettingInfo(parsers.path, "SQLite database file, or :memory:.", env=("TASKFLOW_DB_PATH",), keys=("store.db_path",))
    ] = "./taskflow.db"
    retain_terminal: Annotated[Duration, SettingInfo(parsers.duration(), "Keep ended flows this long.")] = Duration.parse("30d")


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How flows are driven."""

    tick_interval: Annotated[Duration, SettingInfo(parsers.duration(1000), "Look for due timers at least this often.")] = Duration.parse(
        "5s"
    )
    timer_max_horizon: Annotated[Duration, SettingInfo(parsers.duration(1), "Refuse timers and deadlines further ahead.")] = Duration.parse(
        "400d"
    )
    held_reply_ttl: Annotated[
        Duration,
        SettingInfo(parsers.duration(1), "Keep a reply nobody waits for yet this long.", keys=("engine.unmatched_reply_ttl",)),
    ] = Duration.parse("24h")
    held_replies_max: Annotated[
        int,
        SettingInfo(parsers.integer(1, 1_000_000_000), "Keep at most this many replies nobody waits for yet; more displace the oldest."),
    ] = 1_000_000
    held_replies_max_per_owner: Annotated[
        int, SettingInfo(parsers.integer(1, 1_000_000_000), "The same for one agent's built-in topic, or for one reply binding.")
    ] = 100_000
    default_wait_timeout: Annotated[
        Duration | None, SettingInfo(parsers.duration_or_off, "Deadline of waits that name none, or off.", absent="off")
    ] = None
    startup_drain: Annotated[
        Duration,
        SettingInfo(parsers.duration(), "How long a deadline waits, at the start and later, for replies that were stored before it."),
    ] = Duration.parse("30s")
    drain_timeout: Annotated[Duration, SettingInfo(parsers.duration(), "At stop, finish what is in hand for at most this long.")] = (
        Duration.parse("10s")
    )
    max_batch: Annotated[int, SettingInfo(parsers.integer(1, 10_000), "At most this many changes in one transaction.")] = 500


class SubjectsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What the worker listens to."""

    prefix: Annotated[str, SettingInfo(parsers.prefix, "First tokens of all the worker's subjects.")] = "taskflow"
    reply_topics: Annotated[
        tuple[str, ...],
        SettingInfo(
            parsers.topics,
            "Subjects that carry replies, comma separated; empty: none.",
            env=("TASKFLOW_REPLY_TOPICS",),
            empty_counts=True,
        ),
    ] = ("agent.delegate.reply",)


class HttpConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Health and metrics."""

    bind: Annotated[
        str,
        GuardedSetting(parsers.bind, "Serve health and metrics on this host:port, or off.", env=("TASKFLOW_WEB_BIND",), keys=("web.bind",)),
    ] = "127.0.0.1:8642"

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port to listen on; None when it is off."""
        return None if self.bind == "off" else parsers.split_bind(self.bind)


class LogConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What is logged to stderr, and how."""

    level: Annotated[
        str, SettingInfo(parsers.choice("debug", "info", "warning", "error"), "Log from this level: debug, info, warning, error.")
    ] = "info"
    format: Annotated[
        str, SettingInfo(parsers.choice("auto", "json", "console", "journald"), "json, console, journald, or auto: by where stderr leads.")
    ] = "auto"


class MetricsConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Whether `/metrics` is served."""

    enabled: Annotated[bool, SettingInfo(parsers.boolean, "Serve Prometheus metrics on /metrics.")] = True


class OtelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Whether spans are sent. Where to, and how: the OTEL_* variables of OpenTelemetry."""

    enabled: Annotated[
        bool, SettingInfo(parsers.boolean, "Send OpenTelemetry traces (extra otel); OTEL_EXPORTER_OTLP_ENDPOINT and its like say where to.")
    ] = False


class StreamConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How long, how much and how often JetStream keeps messages. Used for streams the worker creates, and sizes for those without."""

    max_age: Annotated[
        Duration, SettingInfo(parsers.duration(60_000_000), "Keep commands and replies in the inbound stream this long.")
    ] = Duration.parse("7d")
    event_max_age: Annotated[Duration, SettingInfo(parsers.duration(60_000_000), "Keep events and dead letters this long.")] = (
        Duration.parse("30d")
    )
    max_bytes: Annotated[
        int | None,
        SettingInfo(
            parsers.optional("auto", parsers.size),
            "The most that commands and replies may take, as 4GiB; auto: a share of the broker's.",
            absent="auto",
        ),
    ] = None
    event_max_bytes: Annotated[
        int | None, SettingInfo(parsers.optional("auto", parsers.size), "The same for events; more displace the oldest.", absent="auto")
    ] = None
    dead_letter_max_bytes: Annotated[
        int | None,
        SettingInfo(parsers.optional("auto", parsers.size), "The same for dead letters; more displace the oldest.", absent="auto"),
    ] = None
    replicas: Annotated[int, SettingInfo(parsers.integer(1, 5), "Copies of each stream in a cluster (1, 3 or 5).")] = 1


_or_off = functools.partial(parsers.optional, "off")


class QuotaConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What each agent may ask for, and what its flows may take: what is beyond is refused (`quota_exceeded`)."""

    commands_per_second: Annotated[
        int | None,
        SettingInfo(_or_off(parsers.integer(1, 1_000_000)), "Commands a second at each door, ten times as many at once.", absent="off"),
    ] = None
    command_bytes_per_second: Annotated[
        int | None,
        SettingInfo(_or_off(parsers.size), "Bytes of commands a second at each door, as 1MiB, ten times as many at once.", absent="off"),
    ] = None
    open_flows: Annotated[
        int | None, SettingInfo(_or_off(parsers.integer(1, 1 << 40)), "Flows that have not ended; beyond it none is started.", absent="off")
    ] = 10_000_000
    state_bytes: Annotated[
        int | None,
        SettingInfo(_or_off(parsers.size), "Bytes of all its flows' states, ended ones' too; no command adds beyond.", absent="off"),
    ] = None


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """All settings, validated, and the origin of each.

    `Config()` has all defaults; `load` makes the real one.
    """

    nats: NatsConfig = NatsConfig()
    store: StoreConfig = StoreConfig()
    engine: EngineConfig = EngineConfig()
    subjects: SubjectsConfig = SubjectsConfig()
    http: HttpConfig = HttpConfig()
    log: LogConfig = LogConfig()
    metrics: MetricsConfig = MetricsConfig()
    otel: OtelConfig = OtelConfig()
    stream: StreamConfig = StreamConfig()
    quotas: QuotaConfig = QuotaConfig()
    replies: Annotated[
        tuple[Binding, ...], SettingInfo(read_replies, "Reply bindings with options, as a JSON list; in a file: [[replies]].")
    ] = ()
    delegates: Annotated[
        tuple[DelegateOwners, ...],
        SettingInfo(
            read_delegates, "Which agents may ask which delegates, as a JSON list; in a file: [[delegates]]. None: all may ask all."
        ),
    ] = ()
    origins: Mapping[str, str] = {}

    def origin(self, key: str) -> str:
        """Return where the value of `key` (`store.path`) came from: `flag --store-path`, `environment …`, `file …`, `default`."""
        return self.origins.get(key, "default")

    def bindings(self) -> tuple[Binding, ...]:
        """Return all reply bindings: `[[replies]]`, and a default one for each of `subjects.reply_topics`."""
        return merge_bindings(self.subjects.reply_topics, self.replies, self.subjects.prefix)

    def value(self, key: str) -> Any:
        """Return the value of `key` (`store.path`)."""
        section, _, name = key.partition(".")
        value = getattr(self, section)
        return getattr(value, name) if name else value


@functools.cache
def settings() -> tuple[Setting, ...]:
    """List every setting, in the order of the tree."""
    leaves: list[Setting] = []
    top = _annotations(Config)
    for name, value in msgspec.structs.asdict(Config()).items():
        if isinstance(value, msgspec.Struct):
            section = _annotations(type(value))
            leaves += [Setting(key=f"{name}.{field}", default=getattr(value, field), about=about) for field, about in section.items()]
        elif name in top:
            leaves.append(Setting(key=name, default=value, about=top[name]))
    return tuple(leaves)


def _annotations(owner: type[msgspec.Struct]) -> dict[str, SettingInfo]:
    """Return the `SettingInfo` of each field that has one. All at once: `get_type_hints` evaluates every annotation."""
    hints = typing.get_type_hints(owner, include_extras=True)
    return {
        name: item for name in owner.__struct_fields__ for item in getattr(hints[name], "__metadata__", ()) if isinstance(item, SettingInfo)
    }
