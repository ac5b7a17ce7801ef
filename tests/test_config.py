"""The configuration: every source, which one wins, and what each refusal says."""

from __future__ import annotations

import dataclasses
import doctest
from pathlib import Path

import pytest

from kvserver import config as config_module
from kvserver.config import FLAGS, IGNORED, Address, Config, UsageError, address_of, parse_duration
from kvserver.errors import ConfigError


def load(*argv: str, **environ: str) -> Config:
    return Config.load(argv, environ)


def test_docstring_examples_hold() -> None:
    assert doctest.testmod(config_module).failed == 0


def test_without_anything_the_defaults_are_etcds() -> None:
    config = load()
    assert config.name == "default"
    assert config.data_path == Path("default.etcd")
    assert config.listen_client_urls == ("http://localhost:2379",)
    assert config.advertise_client_urls == ("http://localhost:2379",)
    assert (config.heartbeat_interval, config.election_timeout) == (100, 1000)
    assert (config.max_txn_ops, config.max_request_bytes) == (128, 1_572_864)
    assert (config.grpc_keepalive_min_time, config.grpc_keepalive_interval, config.grpc_keepalive_timeout) == (
        5,
        7200,
        20,
    )
    assert config.quota_bytes == 2 << 30
    assert config.pre_vote
    assert config.strict_reconfig_check
    assert config.notices == ()
    assert config.request_timeout_seconds == 7.0


@pytest.mark.parametrize(
    "argv", [("-name", "n1"), ("--name", "n1"), ("-name=n1",), ("--name=n1",), ("--name", "x", "--name=n1")]
)
def test_a_flag_may_be_written_in_any_of_gos_forms(argv: tuple[str, ...]) -> None:
    assert load(*argv).name == "n1"


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (("--pre-vote",), True),
        (("--pre-vote=false",), False),
        (("-pre-vote=F",), False),
        (("--pre-vote=1",), True),
        (("--pre-vote", "--name", "x"), True),
    ],
)
def test_a_bool_takes_its_value_with_an_equals_sign_only(argv: tuple[str, ...], expected: bool) -> None:
    assert load(*argv).pre_vote is expected


def test_values_are_typed() -> None:
    config = load(
        "--snapshot-count",
        "0x10",
        "--grpc-keepalive-min-time",
        "1m30s",
        "--quota-backend-bytes=4096",
        "--cors",
        "b,a,a",
    )
    assert config.snapshot_count == 16
    assert config.grpc_keepalive_min_time == 90.0
    assert config.quota_bytes == 4096
    assert config.cors == ("a", "b")


def test_url_lists_are_sorted_and_each_stands_once() -> None:
    config = load(
        "--listen-client-urls=http://127.0.0.1:3, http://127.0.0.1:1,http://127.0.0.1:3",
        "--advertise-client-urls=http://h:1",
    )
    assert config.listen_client_urls == ("http://127.0.0.1:1", "http://127.0.0.1:3")


def test_the_environment_is_read_in_both_spellings_and_ours_wins() -> None:
    assert load(ETCD_NAME="a").name == "a"
    assert load(KVSERVER_NAME="b").name == "b"
    config = load(ETCD_NAME="a", KVSERVER_NAME="b", ETCD_PRE_VOTE="false")
    assert config.name == "b"
    assert not config.pre_vote
    assert config.notices == ("ETCD_NAME is overridden by KVSERVER_NAME",)


def test_an_empty_variable_counts_as_unset() -> None:
    assert load(ETCD_NAME="", ETCD_SNAPSHOT_COUNT="").name == "default"


def test_a_variable_shadowed_by_a_flag_is_an_error_as_in_etcd() -> None:
    with pytest.raises(ConfigError, match=r"conflicting environment variable is shadowed .*ETCD_NAME"):
        load("--name", "a", ETCD_NAME="b")


def test_an_unknown_variable_is_told_but_does_not_stop() -> None:
    (notice,) = load(ETCD_BOGUS="1").notices
    assert notice == "unrecognized environment variable: ETCD_BOGUS=1"
    (notice,) = load(KVSERVER_NAMES="1").notices
    assert "did you mean --name?" in notice


def test_a_configuration_file_replaces_flags_and_environment(tmp_path: Path) -> None:
    path = tmp_path / "kvserver.yaml"
    path.write_text(
        "name: from-file\nsnapshot-count: 5\npre-vote: false\ngrpc-keepalive-interval: 1h\n"
        "grpc-keepalive-timeout: 3000000000\nlog-outputs: [stderr]\nenable-v2: true\n"
        "listen-client-urls: http://127.0.0.1:1\nadvertise-client-urls: http://127.0.0.1:1\n"
    )
    config = load("--config-file", str(path), "--name", "flag", ETCD_SNAPSHOT_COUNT="7")
    assert (config.name, config.snapshot_count, config.pre_vote) == ("from-file", 5, False)
    assert (config.grpc_keepalive_interval, config.grpc_keepalive_timeout) == (3600, 3)
    assert config.log_outputs == ("stderr",)
    assert "will be ignored if provided: --name" in config.notices[0]
    assert "enable-v2 has no effect" in config.notices[1]
    assert load(ETCD_CONFIG_FILE=str(path)).name == "from-file"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [a", "is not YAML"),
        ("- name", "must hold a mapping"),
        ("nam: a", r"nam: no such setting \(did you mean --name\?\)"),
        ("snapshot-count: abc", 'invalid value "abc" for .*snapshot-count: expected a whole number'),
        ("name: {a: 1}", "expected a single value, found dict"),
        ("client-transport-security: {cert-file: x}", "--cert-file=x is not supported"),
        ("peer-transport-security: {auto-tls: true}", "--peer-auto-tls=true is not supported"),
        ("!!python/object/apply:os.system [x]", "is not YAML"),
    ],
)
def test_a_bad_configuration_file_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        load("--config-file", str(path))
    assert "bad.yaml" in str(caught.value) or "not supported" in str(caught.value)


def test_a_missing_configuration_file_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--config-file: open /no/such.yaml: no such file or directory"):
        load("--config-file=/no/such.yaml")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--bogus",), "^flag provided but not defined: -bogus$"),
        (("--listen-client-url", "x"), r"-listen-client-url \(did you mean --listen-client-urls\?\)"),
        (("--name",), "flag needs an argument: -name"),
        (("--pre-vote=maybe",), 'invalid boolean value "maybe" for -pre-vote: parse error'),
        (("--snapshot-count", "abc"), 'invalid value "abc" for flag -snapshot-count: '),
        (("--snapshot-count", "-1"), "expected a whole number from 0"),
        (("--grpc-keepalive-min-time", "5"), 'expected a duration such as "300ms"'),
        (("--initial-cluster-state", "foo"), "expected one of new|existing"),
        (("---name", "x"), "bad flag syntax: ---name"),
        (("--listen-client-urls", "foo"), "URL scheme must be http, https, unix, or unixs: foo"),
        (("--listen-client-urls", "http://127.0.0.1"), 'URL address does not have the form "host:port"'),
        (("--listen-client-urls", "http://127.0.0.1:99999"), "a port from 0 to 65535"),
        (("--listen-client-urls", "http://127.0.0.1:1/x"), "URL must not contain a path"),
    ],
)
def test_a_command_line_that_cannot_be_read(argv: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load(*argv)


ADVERTISE = ("--advertise-client-urls", "http://h:1")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("extra", "args"), "'extra' is not a valid flag"),
        (("--", "extra"), "'extra' is not a valid flag"),
        (
            ("--listen-client-urls", "http://127.0.0.1:1"),
            "--advertise-client-urls is required when --listen-client-urls is set explicitly",
        ),
        (
            ("--listen-client-urls", "http://example.com:1", *ADVERTISE),
            r"expected IP in URL for binding \(http://example",
        ),
        (("--listen-client-urls", "http://:1", *ADVERTISE), "expected IP in URL for binding"),
        (("--advertise-client-urls", "http://:1"), "unexpected empty host"),
        (("--listen-client-urls", "https://127.0.0.1:1", *ADVERTISE), "TLS key/cert"),
        (
            ("--heartbeat-interval", "300"),
            r"--election-timeout\[1000ms\] should be at least as 5 times as --heartbeat-in",
        ),
        (("--election-timeout", "60000"), "is too long, and should be set less than 50000ms"),
        (("--heartbeat-interval", "0"), r"--heartbeat-interval must be >0 \(set to 0ms\)"),
        (("--snapshot-count", "0"), "--snapshot-count must be >0"),
        (("--auto-compaction-mode", "foo"), 'unknown --auto-compaction-mode "foo"'),
        (("--auto-compaction-retention", "foo"), 'error parsing CompactionRetention: time: invalid duration "foo"'),
        (("--auto-compaction-mode=revision", "--auto-compaction-retention=5m"), "expected a number of revisions"),
        (("--bcrypt-cost", "3"), "--bcrypt-cost must be from 4 to 31"),
        (("--auth-token", "foo"), "invalid auth options"),
        (("--auth-token", "jwt,sign-method=RS256"), "no authentication"),
        (("--cert-file", "x"), "--cert-file=x is not supported: this version serves plain connections only"),
        (("--client-cert-auth",), "--client-cert-auth=true is not supported"),
        (("--initial-cluster-state", "existing"), "clusters of one member"),
        (("--force-new-cluster",), "clusters of one member"),
        (("--initial-cluster", "default=http://a:1,b=http://b:1"), "clusters of one member"),
        (("--initial-cluster", "x=http://a:1"), 'couldn\'t find local name "default"'),
        (("--initial-cluster", "default=http://a:1"), "missing from --initial-advertise-peer-urls"),
        (("--initial-cluster", "garbage"), "expected name=url pairs"),
        (("--name", ""), "--name is empty"),
        (("--experimental-corrupt-check-time=1s", "--corrupt-check-time=2s"), "the same setting with different values"),
    ],
)
def test_a_configuration_that_does_not_fit(argv: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(*argv)
    assert not isinstance(caught.value, UsageError)


def test_a_bad_variable_names_itself() -> None:
    with pytest.raises(ConfigError, match='invalid value "xx" for ETCD_SNAPSHOT_COUNT') as caught:
        load(ETCD_SNAPSHOT_COUNT="xx")
    assert not isinstance(caught.value, UsageError)


def test_flags_without_effect_are_accepted_and_told() -> None:
    config = load("--enable-v2", "--backend-batch-limit", "3", "--logger=zap", "--experimental-memory-mlock=false")
    assert config.notices == (
        "flag -enable-v2 has no effect in kvserver and is ignored",
        "flag -backend-batch-limit has no effect in kvserver and is ignored",
        "flag -logger has no effect in kvserver and is ignored",
        "flag -experimental-memory-mlock has no effect in kvserver and is ignored",
    )


def test_no_flag_is_both_known_and_ignored() -> None:
    assert not set(FLAGS) & set(IGNORED)


def test_unusual_sizes_are_told() -> None:
    assert "more than the recommended maximum of 8 GiB" in load("--quota-backend-bytes", str(9 << 30)).notices[0]
    assert "10 MiB" in load("--max-request-bytes", str(11 << 20)).notices[0]


def test_flags_without_an_effect_say_so() -> None:
    assert load("--unsafe-no-fsync").notices == (
        "flag -unsafe-no-fsync has no effect in this version: every write is synced",
    )
    assert "no effect in this version" in load("--max-wals=9").notices[0]
    assert load("--max-wals=5", "--unsafe-no-fsync=false").notices == ()


def test_text_that_is_not_unicode_is_refused_but_in_paths() -> None:
    with pytest.raises(ConfigError, match=r"--name='n.*udcff' is not UTF-8 text"):
        load("--name", "n\udcff")
    with pytest.raises(ConfigError, match="--initial-cluster-token"):
        load("--initial-cluster-token", "\udcff")
    assert load("--data-dir", "d\udcff").data_dir == "d\udcff"


def test_a_request_size_that_the_log_cannot_take_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--max-request-bytes=33554433 is too large: at most 33554432"):
        load("--max-request-bytes", str((32 << 20) + 1))


def test_a_name_alone_makes_a_cluster_of_that_name() -> None:
    assert load("--name", "n1").initial_members == {"n1": ("http://localhost:2380",)}
    config = load("--name", "n1", "--initial-cluster", "default=http://localhost:2380")
    assert config.initial_members == {"n1": ("http://localhost:2380",)}
    config = load("--initial-advertise-peer-urls", "http://a:1", "--initial-cluster", "default=http://a:1")
    assert config.initial_members == {"default": ("http://a:1",)}


@pytest.mark.parametrize(
    ("argv", "seconds", "revisions"),
    [
        ((), 0, 0),
        (("--auto-compaction-retention=2",), 7200, 0),
        (("--auto-compaction-retention=5m",), 300, 0),
        (("--auto-compaction-mode=revision", "--auto-compaction-retention=1000"), 0, 1000),
    ],
)
def test_auto_compaction(argv: tuple[str, ...], seconds: float, revisions: int) -> None:
    config = load(*argv)
    assert (config.auto_compaction_period_seconds, config.auto_compaction_revisions) == (seconds, revisions)


def test_an_embedder_builds_it_directly_under_the_same_checks() -> None:
    config = Config(name="n", data_dir="/d", listen_client_urls=("http://127.0.0.1:0",))
    assert config.advertised_client_urls(("http://127.0.0.1:4711",)) == ("http://127.0.0.1:4711",)
    with pytest.raises(ConfigError, match="expected IP"):
        Config(listen_client_urls=("http://example.com:1",))
    with pytest.raises(ConfigError, match="--listen-client-urls is empty"):
        Config(listen_client_urls=())
    with pytest.raises(ConfigError, match="must be given as tuple, not str"):
        Config(listen_client_urls="http://127.0.0.1:0")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="5 times"):
        dataclasses.replace(config, heartbeat_interval=500)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.name = "m"  # type: ignore[misc]


def test_an_advertised_port_0_becomes_the_bound_one() -> None:
    config = Config(listen_client_urls=("http://127.0.0.1:0",), advertise_client_urls=("http://node:0", "http://x:5"))
    assert config.advertised_client_urls(("http://127.0.0.1:4711",)) == ("http://node:4711", "http://x:5")


def test_addresses() -> None:
    assert address_of("http://127.0.0.1:2379") == Address("127.0.0.1", 2379)
    assert address_of("http://[::1]:0") == Address("::1", 0)
    assert address_of("unix:///run/kv.sock") == Address("", 0, "/run/kv.sock")
    assert address_of("unix://kv.sock:0").path == "kv.sock:0"


def test_durations_are_gos() -> None:
    assert parse_duration("1.5h") == 5400
    assert parse_duration("2h45m") == 9900
    assert parse_duration("100ms") == pytest.approx(0.1)
    assert parse_duration("0") == 0
    for text in ("", "5", "s", "5x", "5s x", "-1s"):
        with pytest.raises(ValueError, match="duration"):
            parse_duration(text)
