"""The node's configuration: etcd's flags as the typed fields of one frozen value, and how they are read.

Sources, weakest first: defaults; the environment (``ETCD_UPPER_SNAKE``, then ``KVSERVER_UPPER_SNAKE``); command line
flags (``-x v``, ``--x v``, ``--x=v``); a YAML file given by ``--config-file``, which replaces all others, as in etcd.
An embedder builds :class:`Config` directly: the same checks run, except those about what was written where.

A :class:`Config` that exists is valid. Every refusal is a :class:`~kvserver.errors.ConfigError` that names the flag,
the value and what is expected. Nothing here opens a socket or a data directory, or writes a log: what an operator
should be told besides stands in :attr:`Config.notices`.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import ClassVar, Generic, TypeVar, cast
from urllib.parse import SplitResult, urlsplit

import yaml

from kvserver import limits
from kvserver.errors import ConfigError

DEFAULT_NAME = "default"
DEFAULT_CLIENT_URL = "http://localhost:2379"
DEFAULT_PEER_URL = "http://localhost:2380"
ENVIRONMENT_PREFIXES = ("ETCD_", "KVSERVER_")
LOG_LEVELS = ("debug", "info", "warn", "error", "panic", "fatal")
ELECTION_TIMEOUT_MS_MAX = 50_000
"""Longest election timeout that etcd accepts: beyond it no cluster gets over a failure in useful time."""
QUOTA_BYTES_RECOMMENDED_MAX = 8 << 30

T = TypeVar("T")


class UsageError(ConfigError):
    """The command line itself is wrong (unknown flag, unreadable value); tools rely on exit code 2 for it."""


# Reading of values: each takes the text and answers the value, or raises ValueError with what is expected.

_TRUE = frozenset(("1", "t", "T", "true", "TRUE", "True"))
_FALSE = frozenset(("0", "f", "F", "false", "FALSE", "False"))
_DURATION_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_UNIT_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def parse_bool(text: str) -> bool:
    """Read a boolean as Go's ``strconv.ParseBool`` does."""
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise ValueError("expected true or false")


def parse_unsigned(text: str) -> int:
    """Read a non-negative integer, decimal or with a 0x/0o/0b prefix."""
    try:
        number = int(text) if text.isdecimal() else int(text, 0)
    except ValueError:
        raise ValueError("expected a whole number") from None
    if not 0 <= number < 1 << 63:
        raise ValueError("expected a whole number from 0 to 2^63-1")
    return number


def parse_duration(text: str) -> float:
    """Read a duration as Go writes it (``5s``, ``2h45m``, ``100ms``) into seconds.

    >>> parse_duration("1h1m1.5s")
    3661.5
    """
    if text == "0":
        return 0.0
    position, seconds = 0, 0.0
    for part in _DURATION_PART.finditer(text):
        if part.start() != position:
            break
        seconds += float(part[1]) * _UNIT_SECONDS[part[2]]
        position = part.end()
    if position == 0 or position != len(text):
        raise ValueError('expected a duration such as "300ms", "5s" or "2h45m"')
    return seconds


def parse_text(text: str) -> str:
    """Take a text as it is."""
    return text


def parse_words(text: str) -> tuple[str, ...]:
    """Read a comma separated list; sorted, each once."""
    return tuple(sorted({word.strip() for word in text.split(",")} - {""}))


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in choices:
            raise ValueError("expected one of " + "|".join(choices))
        return text

    return parse


def _split_host_port(url: SplitResult, text: str) -> tuple[str, int]:
    host, separator, port = url.netloc.rpartition(":")
    if not separator or (":" in host and not (host.startswith("[") and host.endswith("]"))) or host.endswith(":"):
        raise ValueError(f'URL address does not have the form "host:port": {text}')
    if not port.isdecimal() or int(port) > 65535:
        raise ValueError(f'URL address does not have the form "host:port" with a port from 0 to 65535: {text}')
    return host.removeprefix("[").removesuffix("]"), int(port)


def parse_url(text: str) -> str:
    """Check one URL by etcd's rules and answer it without blanks around it."""
    text = text.strip()
    url = urlsplit(text)
    if url.scheme not in ("http", "https", "unix", "unixs"):
        raise ValueError(f"URL scheme must be http, https, unix, or unixs: {text}")
    if url.scheme in ("unix", "unixs"):
        if not url.netloc + url.path:
            raise ValueError(f"URL must name a socket file: {text}")
        return text
    if "@" in url.netloc:
        raise ValueError("URL must not contain a user or password")
    _split_host_port(url, text)
    if url.path or url.query or url.fragment:
        raise ValueError(f"URL must not contain a path: {text}")
    return text


def parse_urls(text: str) -> tuple[str, ...]:
    """Read a comma separated list of URLs; sorted, each once."""
    return tuple(sorted({parse_url(word) for word in text.split(",")})) if text.strip() else ()


@dataclass(frozen=True, slots=True)
class Address:
    """Where a URL points: a TCP host and port, or the path of a unix socket."""

    host: str
    port: int
    path: str = ""
    secure: bool = False


def address_of(url: str) -> Address:
    """Answer the address of a URL that passed :func:`parse_url`.

    >>> address_of("http://[::1]:2379")
    Address(host='::1', port=2379, path='', secure=False)
    """
    parts = urlsplit(url)
    if parts.scheme in ("unix", "unixs"):
        return Address("", 0, parts.netloc + parts.path, parts.scheme == "unixs")
    host, port = _split_host_port(parts, url)
    return Address(host, port, "", parts.scheme == "https")


# The flags. One Flag stands in the metadata of each field; the field's name is the flag's with underscores.

MEMBER, CLUSTERING, SECURITY, AUTH, MONITORING, LOGGING, CORRUPTION, OURS = (
    "Member",
    "Clustering",
    "Security",
    "Auth",
    "Profiling and Monitoring",
    "Logging",
    "Corruption checks",
    "kvserver",
)


@dataclass(frozen=True, slots=True)
class Flag(Generic[T]):
    """How one flag is read and described."""

    parse: Callable[[str], T]
    section: str
    help: str
    shown_default: str | None = None
    aliases: tuple[str, ...] = ()
    refusal: str = ""
    """Why a value other than the default is refused by this version; empty: it works."""
    idle: str = ""
    """Why the flag changes nothing in this version; empty: it does."""

    @property
    def is_bool(self) -> bool:
        """Tell whether the flag may stand without a value."""
        return self.parse is parse_bool


def _flag(
    default: T,
    parse: Callable[[str], T],
    section: str,
    help: str,
    *,
    shown: str | None = None,
    aliases: tuple[str, ...] = (),
    refusal: str = "",
    idle: str = "",
) -> T:
    flag = Flag(parse, section, help, shown, aliases, refusal, idle)
    return field(default=default, metadata={"flag": flag})


_NO_TLS = "this version serves plain connections only; put a TLS proxy in front of it, or leave the flag out"
_NO_CLUSTER = "this version runs clusters of one member"
_NO_PEERS = "a cluster of one member has no peers"
_NO_AUTH = "this version has no authentication"

_IGNORED_TEXT = """
backend-batch-interval backend-batch-limit backend-bbolt-freelist-type discovery-fallback discovery-proxy
experimental-backend-bbolt-freelist-type experimental-compaction-batch-limit
experimental-compaction-sleep-interval experimental-bootstrap-defrag-threshold-megabytes
bootstrap-defrag-threshold-megabytes compaction-batch-limit compaction-sleep-interval
experimental-distributed-tracing-address experimental-distributed-tracing-service-name
experimental-distributed-tracing-instance-id experimental-distributed-tracing-sampling-rate
distributed-tracing-address distributed-tracing-service-name distributed-tracing-instance-id
distributed-tracing-sampling-rate experimental-downgrade-check-time downgrade-check-time
experimental-enable-v2v3 experimental-max-learners max-learners experimental-snapshot-catchup-entries
snapshot-catchup-entries experimental-warning-unary-request-duration warning-unary-request-duration
feature-gates local-address log-package-levels log-rotation-config-json logger proxy proxy-dial-timeout
proxy-failure-wait proxy-read-timeout proxy-refresh-interval proxy-write-timeout
self-signed-cert-validity v2-deprecation
"""
_IGNORED_BOOL = """
debug enable-grpc-gateway enable-log-rotation enable-pprof enable-v2 distributed-tracing
experimental-enable-distributed-tracing enable-distributed-tracing experimental-enable-lease-checkpoint
experimental-enable-lease-checkpoint-persist experimental-memory-mlock memory-mlock
experimental-peer-skip-client-san-verification peer-skip-client-san-verification
experimental-set-member-localaddr set-member-localaddr experimental-stop-grpc-service-on-defrag
stop-grpc-service-on-defrag experimental-txn-mode-write-with-shared-buffer initial-election-tick-advance
"""
IGNORED: dict[str, str] = {
    **dict.fromkeys(_IGNORED_TEXT.split(), "text"),
    **dict.fromkeys(_IGNORED_BOOL.split(), "bool"),
}
"""Flags of etcd that change nothing here, by the kind of their value: accepted with a notice, so that an existing
command line keeps working."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """A valid configuration of one node; the fields are etcd's flags with underscores.

    Durations are seconds as float, except ``heartbeat_interval`` and ``election_timeout``: milliseconds, as in etcd.

    Raises:
        ConfigError: a value is not acceptable; also from ``dataclasses.replace``.
    """

    name: str = _flag(DEFAULT_NAME, parse_text, MEMBER, "Human-readable name for this member.")
    data_dir: str = _flag("", parse_text, MEMBER, "Path to the data directory.", shown="${name}.etcd")
    wal_dir: str = _flag("", parse_text, MEMBER, "Path to the dedicated wal directory.")
    snapshot_count: int = _flag(
        10_000, parse_unsigned, MEMBER, "Number of committed transactions to trigger a snapshot to disk."
    )
    heartbeat_interval: int = _flag(100, parse_unsigned, MEMBER, "Time (in milliseconds) of a heartbeat interval.")
    election_timeout: int = _flag(
        1000, parse_unsigned, MEMBER, "Time (in milliseconds) for an election to timeout; at least 5 heartbeats."
    )
    listen_peer_urls: tuple[str, ...] = _flag(
        (DEFAULT_PEER_URL,), parse_urls, MEMBER, "List of URLs to listen on for peer traffic.", idle=_NO_PEERS
    )
    listen_client_urls: tuple[str, ...] = _flag(
        (DEFAULT_CLIENT_URL,), parse_urls, MEMBER, "List of URLs to listen on for client traffic (gRPC and HTTP)."
    )
    max_snapshots: int = _flag(
        5,
        parse_unsigned,
        MEMBER,
        "Maximum number of snapshot files to retain.",
        idle=f"{limits.SNAPSHOTS_KEPT} are kept, the newest and one to fall back on",
    )
    max_wals: int = _flag(
        5,
        parse_unsigned,
        MEMBER,
        "Maximum number of wal files to retain.",
        idle="those that a kept snapshot needs are kept",
    )
    quota_backend_bytes: int = _flag(
        0, parse_unsigned, MEMBER, "Raise alarms when the store exceeds the given size (0 is 2 GiB)."
    )
    max_txn_ops: int = _flag(
        limits.TXN_OPERATIONS_MAX, parse_unsigned, MEMBER, "Maximum number of operations permitted in a transaction."
    )
    max_request_bytes: int = _flag(
        limits.REQUEST_BYTES_MAX, parse_unsigned, MEMBER, "Maximum client request size in bytes the server will accept."
    )
    max_concurrent_streams: int = _flag(
        1000, parse_unsigned, MEMBER, "Maximum concurrent streams that each client connection can open at a time."
    )
    grpc_keepalive_min_time: float = _flag(
        5.0, parse_duration, MEMBER, "Minimum interval a client should wait before pinging the server.", shown="5s"
    )
    grpc_keepalive_interval: float = _flag(
        7200.0, parse_duration, MEMBER, "Interval of server-to-client pings on idle connections (0: none).", shown="2h"
    )
    grpc_keepalive_timeout: float = _flag(
        20.0, parse_duration, MEMBER, "How long to wait for the answer to such a ping (0: for ever).", shown="20s"
    )
    socket_reuse_port: bool = _flag(
        False, parse_bool, MEMBER, "Set SO_REUSEPORT on listeners, allowing rebinding of a port already in use."
    )
    socket_reuse_address: bool = _flag(
        False, parse_bool, MEMBER, "Set SO_REUSEADDR on listeners.", idle="on Unix it is always set, as Go does"
    )

    initial_advertise_peer_urls: tuple[str, ...] = _flag(
        (DEFAULT_PEER_URL,), parse_urls, CLUSTERING, "List of this member's peer URLs to advertise to the cluster."
    )
    initial_cluster: str = _flag(
        "",
        parse_text,
        CLUSTERING,
        "Initial cluster configuration for bootstrapping.",
        shown="default=" + DEFAULT_PEER_URL,
    )
    initial_cluster_state: str = _flag(
        "new",
        _one_of("new", "existing"),
        CLUSTERING,
        "Initial cluster state ('new' or 'existing').",
        refusal=_NO_CLUSTER,
    )
    initial_cluster_token: str = _flag(
        "etcd-cluster", parse_text, CLUSTERING, "Initial cluster token for the cluster during bootstrap."
    )
    advertise_client_urls: tuple[str, ...] = _flag(
        (),
        parse_urls,
        CLUSTERING,
        "List of this member's client URLs to advertise to the public.",
        shown=DEFAULT_CLIENT_URL,
    )
    strict_reconfig_check: bool = _flag(
        True,
        parse_bool,
        CLUSTERING,
        "Reject reconfiguration requests that would cause quorum loss.",
        idle=_NO_PEERS,
    )
    pre_vote: bool = _flag(True, parse_bool, CLUSTERING, "Run an additional Raft election phase.")
    discovery: str = _flag(
        "", parse_text, CLUSTERING, "Discovery URL used to bootstrap the cluster.", refusal=_NO_CLUSTER
    )
    discovery_srv: str = _flag(
        "", parse_text, CLUSTERING, "DNS srv domain used to bootstrap the cluster.", refusal=_NO_CLUSTER
    )
    discovery_srv_name: str = _flag(
        "", parse_text, CLUSTERING, "Suffix to the dns srv name queried when bootstrapping.", refusal=_NO_CLUSTER
    )
    force_new_cluster: bool = _flag(
        False, parse_bool, CLUSTERING, "Force to create a new one-member cluster.", refusal=_NO_CLUSTER
    )
    auto_compaction_mode: str = _flag(
        "periodic", parse_text, CLUSTERING, "Interpret 'auto-compaction-retention' as one of: periodic|revision."
    )
    auto_compaction_retention: str = _flag(
        "0", parse_text, CLUSTERING, "Auto compaction retention: hours or a duration, or revisions; 0 disables."
    )

    cert_file: str = _flag("", parse_text, SECURITY, "Path to the client server TLS cert file.", refusal=_NO_TLS)
    key_file: str = _flag("", parse_text, SECURITY, "Path to the client server TLS key file.", refusal=_NO_TLS)
    trusted_ca_file: str = _flag(
        "",
        parse_text,
        SECURITY,
        "Path to the client server TLS trusted CA cert file.",
        aliases=("ca-file",),
        refusal=_NO_TLS,
    )
    client_cert_auth: bool = _flag(False, parse_bool, SECURITY, "Enable client cert authentication.", refusal=_NO_TLS)
    client_crl_file: str = _flag(
        "", parse_text, SECURITY, "Path to the client certificate revocation list file.", refusal=_NO_TLS
    )
    client_cert_allowed_cn: str = _flag(
        "", parse_text, SECURITY, "Allowed CN for client cert authentication.", refusal=_NO_TLS
    )
    client_cert_allowed_hostname: str = _flag(
        "", parse_text, SECURITY, "Allowed TLS hostname for client cert authentication.", refusal=_NO_TLS
    )
    client_cert_file: str = _flag("", parse_text, SECURITY, "Path to an explicit client cert file.", refusal=_NO_TLS)
    client_key_file: str = _flag("", parse_text, SECURITY, "Path to an explicit client key file.", refusal=_NO_TLS)
    auto_tls: bool = _flag(False, parse_bool, SECURITY, "Client TLS using generated certificates.", refusal=_NO_TLS)
    peer_cert_file: str = _flag("", parse_text, SECURITY, "Path to the peer server TLS cert file.", refusal=_NO_TLS)
    peer_key_file: str = _flag("", parse_text, SECURITY, "Path to the peer server TLS key file.", refusal=_NO_TLS)
    peer_trusted_ca_file: str = _flag(
        "",
        parse_text,
        SECURITY,
        "Path to the peer server TLS trusted CA file.",
        aliases=("peer-ca-file",),
        refusal=_NO_TLS,
    )
    peer_client_cert_auth: bool = _flag(
        False, parse_bool, SECURITY, "Enable peer client cert authentication.", refusal=_NO_TLS
    )
    peer_crl_file: str = _flag(
        "", parse_text, SECURITY, "Path to the peer certificate revocation list file.", refusal=_NO_TLS
    )
    peer_cert_allowed_cn: str = _flag(
        "", parse_text, SECURITY, "Required CN for client certs connecting to the peer endpoint.", refusal=_NO_TLS
    )
    peer_cert_allowed_hostname: str = _flag(
        "", parse_text, SECURITY, "Allowed TLS hostname for inter peer authentication.", refusal=_NO_TLS
    )
    peer_client_cert_file: str = _flag(
        "", parse_text, SECURITY, "Path to an explicit peer client cert file.", refusal=_NO_TLS
    )
    peer_client_key_file: str = _flag(
        "", parse_text, SECURITY, "Path to an explicit peer client key file.", refusal=_NO_TLS
    )
    peer_auto_tls: bool = _flag(
        False, parse_bool, SECURITY, "Peer TLS using self-generated certificates.", refusal=_NO_TLS
    )
    tls_min_version: str = _flag(
        "TLS1.2", _one_of("TLS1.2", "TLS1.3"), SECURITY, "Minimum TLS version supported.", refusal=_NO_TLS
    )
    tls_max_version: str = _flag(
        "", _one_of("", "TLS1.2", "TLS1.3"), SECURITY, "Maximum TLS version supported (empty: newest).", refusal=_NO_TLS
    )
    cipher_suites: tuple[str, ...] = _flag(
        (), parse_words, SECURITY, "Comma-separated list of supported TLS cipher suites.", refusal=_NO_TLS
    )
    cors: tuple[str, ...] = _flag(
        ("*",), parse_words, SECURITY, "Comma-separated whitelist of origins for CORS (empty or * means allow all)."
    )
    host_whitelist: tuple[str, ...] = _flag(
        ("*",), parse_words, SECURITY, "Acceptable hostnames of HTTP client requests (empty or * means allow all)."
    )

    auth_token: str = _flag(
        "simple", parse_text, AUTH, "Specify a v3 authentication token type and its options ('simple' or 'jwt')."
    )
    bcrypt_cost: int = _flag(10, parse_unsigned, AUTH, "Cost of hashing passwords with bcrypt, 4 to 31.", idle=_NO_AUTH)
    auth_token_ttl: int = _flag(300, parse_unsigned, AUTH, "Time (in seconds) a simple token lives.", idle=_NO_AUTH)

    metrics: str = _flag(
        "basic",
        _one_of("basic", "extensive"),
        MONITORING,
        "Detail of metrics; extensive adds gRPC histograms.",
        idle="histograms of single calls are not kept",
    )
    listen_metrics_urls: tuple[str, ...] = _flag(
        (), parse_urls, MONITORING, "List of URLs to listen on for the metrics and health endpoints."
    )
    warning_apply_duration: float = _flag(
        0.1,
        parse_duration,
        MONITORING,
        "Warn when a request takes longer than this to apply.",
        shown="100ms",
        aliases=("experimental-warning-apply-duration",),
    )
    watch_progress_notify_interval: float = _flag(
        600.0,
        parse_duration,
        MONITORING,
        "Interval of progress notifications to idle watchers.",
        shown="10m",
        aliases=("experimental-watch-progress-notify-interval",),
    )

    log_level: str = _flag(
        "info", _one_of(*LOG_LEVELS), LOGGING, "Log level: debug, info, warn, error, panic or fatal."
    )
    log_format: str = _flag("json", _one_of("json", "console"), LOGGING, "Log lines as json or console.")
    log_outputs: tuple[str, ...] = _flag(
        ("default",), parse_words, LOGGING, "Where to log: default, stderr, stdout, or paths; comma separated."
    )

    initial_corrupt_check: bool = _flag(
        False,
        parse_bool,
        CORRUPTION,
        "Compare hashes with the other members before serving.",
        aliases=("experimental-initial-corrupt-check",),
        idle=_NO_PEERS,
    )
    corrupt_check_time: float = _flag(
        0.0,
        parse_duration,
        CORRUPTION,
        "Interval of comparing hashes with the other members (0: never).",
        shown="0s",
        aliases=("experimental-corrupt-check-time",),
        idle=_NO_PEERS,
    )
    compact_hash_check: bool = _flag(
        False,
        parse_bool,
        CORRUPTION,
        "Compare hashes of compacted revisions with the other members.",
        aliases=("compact-hash-check-enabled", "experimental-compact-hash-check-enabled"),
        idle=_NO_PEERS,
    )
    compact_hash_check_time: float = _flag(
        60.0,
        parse_duration,
        CORRUPTION,
        "Interval of those comparisons.",
        shown="1m",
        aliases=("experimental-compact-hash-check-time",),
        idle=_NO_PEERS,
    )
    unsafe_no_fsync: bool = _flag(
        False,
        parse_bool,
        OURS,
        "Disables fsync: unsafe, will cause data loss; for throw-away tests.",
        idle="every write is synced",
    )

    notices: tuple[str, ...] = field(default=(), compare=False, repr=False)
    """What the operator should read in the log: flags without effect, shadowed variables, unusual sizes."""

    _FLAG_NAMES: ClassVar[dict[str, str]] = {}

    def __post_init__(self) -> None:
        _validate(self)

    # What several parts of the node derive from the flags.

    @property
    def data_path(self) -> Path:
        """The data directory, ``<name>.etcd`` unless set."""
        return Path(self.data_dir or f"{self.name}.etcd")

    @property
    def wal_path(self) -> Path:
        """The directory of the write-ahead log, ``member/wal`` of the data directory unless set."""
        return Path(self.wal_dir) if self.wal_dir else self.data_path / "member" / "wal"

    @property
    def quota_bytes(self) -> int:
        """Size of the store at which NOSPACE is raised."""
        return self.quota_backend_bytes or 2 << 30

    @property
    def request_timeout_seconds(self) -> float:
        """How long a request may wait for the cluster: 5 s and two election timeouts, as in etcd."""
        return 5.0 + 2 * self.election_timeout / 1000

    @property
    def initial_members(self) -> dict[str, tuple[str, ...]]:
        """Peer URLs by member name, as ``initial_cluster`` says; only this member if that is not set."""
        if self.initial_cluster in ("", f"{DEFAULT_NAME}={DEFAULT_PEER_URL}"):
            return {self.name: self.initial_advertise_peer_urls}
        return parse_initial_cluster(self.initial_cluster)

    @property
    def auto_compaction_period_seconds(self) -> float:
        """Periodic auto compaction: how much history is kept; 0 when off."""
        if self.auto_compaction_mode != "periodic":
            return 0.0
        retention = self.auto_compaction_retention
        return float(retention) * 3600 if retention.isdecimal() else parse_duration(retention)

    @property
    def auto_compaction_revisions(self) -> int:
        """Auto compaction by revision: how many are kept; 0 when off."""
        return int(self.auto_compaction_retention) if self.auto_compaction_mode == "revision" else 0

    def advertised_client_urls(self, bound: Sequence[str]) -> tuple[str, ...]:
        """Answer the client URLs to publish, given the URLs the listener really has.

        Without ``advertise_client_urls`` these are the bound ones; an advertised port 0 becomes the bound port.
        """
        if not self.advertise_client_urls:
            return tuple(bound)
        ports = [address_of(url).port for url in bound if address_of(url).port]
        return tuple(
            url[:-1] + str(ports[0]) if url.endswith(":0") and ports else url for url in self.advertise_client_urls
        )

    @classmethod
    def load(cls, argv: Sequence[str], environ: Mapping[str, str]) -> Config:
        """Build the configuration of a process.

        Args:
            argv: command line arguments without the program's name.
            environ: environment variables.

        Raises:
            UsageError: the command line cannot be read (exit code 2 in etcd).
            ConfigError: a value is refused, or sources contradict each other (exit code 1).
        """
        given = _read_arguments(argv)
        from_environment, notices = _read_environment(environ, given)
        path = given.get("config-file", from_environment.get("config-file", (None, "")))[0]
        if path is not None:
            shadowed = sorted(set(given) - {"config-file"})
            notices.append(
                f"loaded server configuration from {path}, other configuration command line flags and environment "
                "variables will be ignored if provided" + (": --" + ", --".join(shadowed) if shadowed else "")
            )
            return _build(_read_file(path), notices)
        return _build({**from_environment, **given}, notices)


FLAGS: dict[str, tuple[str, Flag[object]]] = {}
"""Every flag with an effect, aliases included: name -> (field of Config, Flag)."""
for _field in fields(Config):
    if "flag" in _field.metadata:
        _spec = cast("Flag[object]", _field.metadata["flag"])
        for _name in (_field.name.replace("_", "-"), *_spec.aliases):
            FLAGS[_name] = (_field.name, _spec)

_ACTIONS = {"config-file": "text", "version": "bool", "help": "bool", "h": "bool"}
_YAML_SECTIONS = {"client-transport-security": "", "peer-transport-security": "peer-"}

Given = dict[str, tuple[str, str]]
"""Values as text by flag name, each with how the operator wrote it (``--name``, ``ETCD_NAME``, ``file: name``)."""


def parse_initial_cluster(text: str) -> dict[str, tuple[str, ...]]:
    """Read ``name=url,name=url``; a name may stand several times.

    Raises:
        ValueError: not of that form.
    """
    members: dict[str, tuple[str, ...]] = {}
    for word in filter(None, (word.strip() for word in text.split(","))):
        name, separator, url = word.partition("=")
        if not separator or not name or not url:
            raise ValueError(f"expected name=url pairs separated by commas, found {word!r}")
        members[name] = tuple(sorted({*members.get(name, ()), parse_url(url)}))
    return members


def nearest(name: str, names: Iterable[str]) -> str:
    """Answer `` (did you mean ...?)`` for the name most like a wrong one, or nothing."""
    found = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f" (did you mean --{found[0]}?)" if found else ""


def _read_arguments(argv: Sequence[str]) -> Given:
    given: Given = {}
    words = list(argv)
    while words:
        word = words.pop(0)
        if word in ("-", "--") or not word.startswith("-"):
            rest = [*words] if word == "--" else [word]
            if rest:
                raise ConfigError(f"'{rest[0]}' is not a valid flag")
            break
        body = word[2:] if word.startswith("--") else word[1:]
        name, separator, value = body.partition("=")
        if not name or name.startswith("-"):
            raise UsageError(f"bad flag syntax: {word}")
        if name in FLAGS:
            is_bool = FLAGS[name][1].is_bool
        elif name in IGNORED or name in _ACTIONS:
            is_bool = (IGNORED.get(name) or _ACTIONS[name]) == "bool"
        else:
            raise UsageError(f"flag provided but not defined: -{name}" + nearest(name, [*FLAGS, *IGNORED]))
        if is_bool:
            value = value if separator else "true"
            if value not in _TRUE | _FALSE:
                raise UsageError(f'invalid boolean value "{value}" for -{name}: parse error; expected true or false')
        elif not separator:
            if not words:
                raise UsageError(f"flag needs an argument: -{name}")
            value = words.pop(0)
        given[name] = (value, f"flag -{name}")
    return given


def _read_environment(environ: Mapping[str, str], given: Given) -> tuple[Given, list[str]]:
    known = [*FLAGS, *IGNORED, "config-file"]
    by_variable = {name.upper().replace("-", "_"): name for name in known}
    found: Given = {}
    notices: list[str] = []
    for prefix in ENVIRONMENT_PREFIXES:
        for variable in sorted(environ):
            if not variable.startswith(prefix):
                continue
            value = environ[variable]
            name = by_variable.get(variable.removeprefix(prefix))
            if name is None:
                if set(variable) <= set(string.ascii_uppercase + string.digits + "_") and prefix != "KVSERVER_":
                    notices.append(f"unrecognized environment variable: {variable}={value}")
                    continue
                hint = nearest(variable.removeprefix(prefix).lower().replace("_", "-"), known)
                notices.append(f"unrecognized environment variable: {variable}={value}{hint}")
            elif not value:
                continue  # an empty variable counts as unset, as in etcd
            elif name in given and name not in IGNORED:
                raise ConfigError(
                    "conflicting environment variable is shadowed by corresponding command-line flag (either unset "
                    f"environment variable or disable flag): {variable}"
                )
            else:
                if name in found and found[name][0] != value:
                    notices.append(f"{found[name][1]} is overridden by {variable}")
                found[name] = (value, variable)
    return found, notices


def _read_file(path: str) -> Given:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--config-file: open {path}: {(error.strerror or str(error)).lower()}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--config-file: {path} is not UTF-8 text: {error}") from error
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--config-file: {path} is not YAML: {' '.join(str(error).split())}") from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigError(f"--config-file: {path} must hold a mapping of flag names to values")
    given: Given = {}
    for key, value in document.items():
        if key in _YAML_SECTIONS and isinstance(value, dict):
            for inner, inner_value in value.items():
                _take_yaml(given, path, f"{key}.{inner}", _YAML_SECTIONS[key] + str(inner), inner_value)
        else:
            _take_yaml(given, path, str(key), str(key), value)
    return given


def _take_yaml(given: Given, path: str, shown: str, name: str, value: object) -> None:
    where = f"{path}: {shown}"
    if name not in FLAGS and name not in IGNORED:
        raise ConfigError(f"{where}: no such setting" + nearest(name, [*FLAGS, *IGNORED]))
    if value is None:
        return
    if isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, list):
        text = ",".join(str(item) for item in value)
    elif isinstance(value, str | int | float):
        text = str(value)
        if isinstance(value, int) and name in FLAGS and FLAGS[name][1].parse is parse_duration:
            text += "ns"  # Go's YAML reads a bare number as nanoseconds
    elif name in IGNORED:
        text = "..."
    else:
        raise ConfigError(f"{where}: expected a single value, found {type(value).__name__}")
    given[name] = (text, where)


def _build(given: Given, notices: list[str]) -> Config:
    values: dict[str, object] = {}
    written: dict[str, str] = {}
    for name, (text, where) in given.items():
        if name in _ACTIONS:
            continue
        if name in IGNORED:
            notices.append(f"{where} has no effect in kvserver and is ignored")
            continue
        field_name, flag = FLAGS[name]
        try:
            value = flag.parse(text)
        except ValueError as error:
            kind = UsageError if where.startswith("flag ") else ConfigError
            raise kind(f'invalid value "{text}" for {where}: {error}') from None
        if field_name in values and values[field_name] != value:
            raise ConfigError(f"{written[field_name]} and {where} are the same setting with different values")
        if field_name.endswith("_urls") and value == () and field_name != "listen_metrics_urls":
            continue  # an empty list of URLs means the default, as in etcd
        values[field_name], written[field_name] = value, where
        if flag.idle and value != Config.__dataclass_fields__[field_name].default:
            notices.append(f"{where} has no effect in this version: {flag.idle}")
    if "listen_client_urls" in values and "advertise_client_urls" not in values:
        raise ConfigError(
            "--advertise-client-urls is required when --listen-client-urls is set explicitly "
            f"({written['listen_client_urls']} is {','.join(cast('tuple[str, ...]', values['listen_client_urls']))})"
        )
    values.setdefault("advertise_client_urls", (DEFAULT_CLIENT_URL,))
    config = Config(**values)  # type: ignore[arg-type]
    if config.quota_bytes > QUOTA_BYTES_RECOMMENDED_MAX:
        notices.append("--quota-backend-bytes is more than the recommended maximum of 8 GiB")
    if config.max_request_bytes > 10 << 20:
        notices.append("--max-request-bytes is more than the recommended maximum of 10 MiB")
    return replace(config, notices=tuple(notices))


def _validate(config: Config) -> None:
    """Check values against each other and against what this version can do."""
    for spec in fields(config):
        flag = cast("Flag[object] | None", spec.metadata.get("flag"))
        if flag is None:
            continue
        value, name = getattr(config, spec.name), spec.name.replace("_", "-")
        if type(value) is not type(spec.default) and not (isinstance(spec.default, float) and type(value) is int):
            raise ConfigError(
                f"--{name} must be given as {type(spec.default).__name__}, not {type(value).__name__} ({value!r})"
            )
        _check_text(name, value)
        if flag.refusal and value != spec.default:
            raise ConfigError(f"--{name}={_shown(value)} is not supported: {flag.refusal}")
        if spec.name.endswith("_urls"):
            _check_urls(name, cast("tuple[str, ...]", value))
    if not config.listen_client_urls:
        raise ConfigError("--listen-client-urls is empty; expected at least one URL to serve clients on")
    if not config.name:
        raise ConfigError("--name is empty; expected a name for this member")
    _check_choice("initial-cluster-state", config.initial_cluster_state, ("new", "existing"))
    _check_choice("log-level", config.log_level, LOG_LEVELS)
    _check_choice("log-format", config.log_format, ("json", "console"))
    _check_choice("metrics", config.metrics, ("basic", "extensive"))
    _check_timing(config)
    _check_sizes(config)
    _check_compaction(config)
    _check_cluster(config)
    token_kind = config.auth_token.partition(",")[0]
    if token_kind != "simple":
        if token_kind == "jwt":
            raise ConfigError(f"--auth-token={token_kind} is not supported: {_NO_AUTH}")
        raise ConfigError(f"--auth-token={config.auth_token}: auth: invalid auth options; expected simple or jwt,...")


def _check_text(name: str, value: object) -> None:
    """Refuse what is not Unicode, as arguments that are not UTF-8 come; only a path may be any bytes."""
    if name.endswith(("-dir", "-file")) or name == "log-outputs":
        return
    for text in value if isinstance(value, tuple) else (value,):
        if isinstance(text, str) and not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:
                raise ConfigError(f"--{name}={text!a} is not UTF-8 text") from None


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f'invalid value "{value}" for flag -{name}: expected one of ' + "|".join(choices))


def _check_urls(name: str, urls: tuple[str, ...]) -> None:
    for url in urls:
        try:
            if not isinstance(url, str):
                raise ValueError("expected text")
            parse_url(url)
        except ValueError as error:
            raise ConfigError(f'invalid value "{url}" for flag -{name}: {error}') from None
        address = address_of(url)
        if address.path:
            if address.secure:
                raise ConfigError(f"--{name}={url} is not supported: {_NO_TLS}")
            continue
        if name.startswith("listen-"):
            if address.host != "localhost" and not _is_ip(address.host):
                raise ConfigError(f"--{name}: expected IP in URL for binding ({url})")
            if address.secure:
                raise ConfigError(
                    f"--{name}: TLS key/cert (--cert-file, --key-file) must be provided for url {url} with HTTPS "
                    f"scheme, and {_NO_TLS}"
                )
        elif not address.host:
            raise ConfigError(f"--{name}: unexpected empty host ({url})")


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _check_timing(config: Config) -> None:
    heartbeat, election = config.heartbeat_interval, config.election_timeout
    if heartbeat <= 0:
        raise ConfigError(f"--heartbeat-interval must be >0 (set to {heartbeat}ms)")
    if election <= 0:
        raise ConfigError(f"--election-timeout must be >0 (set to {election}ms)")
    if 5 * heartbeat > election:
        raise ConfigError(
            f"--election-timeout[{election}ms] should be at least as 5 times as --heartbeat-interval[{heartbeat}ms]"
        )
    if election > ELECTION_TIMEOUT_MS_MAX:
        raise ConfigError(
            f"--election-timeout[{election}ms] is too long, and should be set less than {ELECTION_TIMEOUT_MS_MAX}ms"
        )


def _check_sizes(config: Config) -> None:
    for name in ("snapshot_count", "max_txn_ops", "max_request_bytes", "max_concurrent_streams", "auth_token_ttl"):
        if getattr(config, name) <= 0:
            raise ConfigError(f"--{name.replace('_', '-')} must be >0 (set to {getattr(config, name)})")
    if config.max_request_bytes > limits.REQUEST_BYTES_CONFIGURABLE_MAX:
        raise ConfigError(
            f"--max-request-bytes={config.max_request_bytes} is too large: at most "
            f"{limits.REQUEST_BYTES_CONFIGURABLE_MAX} fit a record of the log"
        )
    if config.quota_backend_bytes < 0:
        raise ConfigError(f"--quota-backend-bytes must be >=0 (set to {config.quota_backend_bytes})")
    if not 4 <= config.bcrypt_cost <= 31:
        raise ConfigError(f"--bcrypt-cost must be from 4 to 31 (set to {config.bcrypt_cost})")


def _check_compaction(config: Config) -> None:
    mode, retention = config.auto_compaction_mode, config.auto_compaction_retention
    if mode not in ("periodic", "revision"):
        raise ConfigError(f'unknown --auto-compaction-mode "{mode}"; expected periodic|revision')
    if mode == "revision" and not retention.isdecimal():
        raise ConfigError(f'--auto-compaction-retention="{retention}": expected a number of revisions in revision mode')
    if not retention.isdecimal():
        try:
            parse_duration(retention)
        except ValueError:
            raise ConfigError(
                f'--auto-compaction-retention: error parsing CompactionRetention: time: invalid duration "{retention}"'
                '; expected hours or a duration such as "30m"'
            ) from None


def _check_cluster(config: Config) -> None:
    try:
        members = config.initial_members
    except ValueError as error:
        raise ConfigError(f"--initial-cluster={config.initial_cluster}: {error}") from None
    if config.name not in members:
        raise ConfigError(
            f'--initial-cluster={config.initial_cluster}: couldn\'t find local name "{config.name}" in the initial '
            "cluster configuration; add it or set --name"
        )
    if len(members) > 1:
        raise ConfigError(f"--initial-cluster={config.initial_cluster} is not supported: {_NO_CLUSTER}")
    if set(members[config.name]) != set(config.initial_advertise_peer_urls):
        raise ConfigError(
            f"--initial-cluster has {config.initial_cluster} but missing from --initial-advertise-peer-urls="
            f"{','.join(config.initial_advertise_peer_urls)}; both must name the same URLs"
        )
