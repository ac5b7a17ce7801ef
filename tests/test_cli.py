"""The command, as a process: what it prints, when it is ready, how it ends."""

from __future__ import annotations

import json
import logging
import os
import platform
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kvserver.cli import ConsoleFormatter, JsonFormatter, help_text, main, set_up_logging, version_text
from kvserver.config import FLAGS
from kvserver.errors import StartupError

COMMAND = [sys.executable, "-m", "kvserver"]
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("ETCD_", "KVSERVER_"))}


def run(*argv: str, cwd: Path | None = None, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *argv], capture_output=True, text=True, timeout=30, cwd=cwd, env={**CLEAN, **environ}, check=False
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def started(directory: Path, *argv: str) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """A running node: its process, its URL and what it logged until it was ready."""
    url = f"http://127.0.0.1:{free_port()}"
    process = subprocess.Popen(
        [*COMMAND, f"--listen-client-urls={url}", f"--advertise-client-urls={url}", f"--data-dir={directory}/d", *argv],
        stderr=subprocess.PIPE,
        text=True,
        cwd=directory,
        env=CLEAN,
    )
    assert process.stderr is not None
    lines: list[str] = []
    wanted = {"ready to serve client requests", "published", "enabled capabilities for version"}
    try:
        while wanted:
            line = process.stderr.readline()
            assert line, f"ended before it was ready: {lines}"
            lines.append(line)
            wanted -= {text for text in wanted if text in line}
        yield process, url, lines
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stderr.close()


def test_version_has_the_lines_that_tools_parse() -> None:
    lines = dict(line.split(": ", 1) for line in version_text().splitlines())
    assert list(lines)[:4] == ["etcd Version", "Git SHA", "Go Version", "Go OS/Arch"]
    assert lines["etcd Version"] == "3.5.1"
    assert lines["Go OS/Arch"].startswith(platform.system().lower() + "/")
    assert lines["kvserver Version"]


def test_version_and_help_end_with_success(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == version_text()
    assert main(["-h"]) == 0
    assert capsys.readouterr().out == help_text()


def test_help_names_every_flag() -> None:
    text = help_text()
    for name, (field, _) in FLAGS.items():
        if name == field.replace("_", "-"):
            assert f"  --{name} '" in text
    assert "--enable-v2" in text


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (("--bogus",), 2, "flag provided but not defined: -bogus"),
        (("--lissten-client-urls=x",), 2, "did you mean --listen-client-urls?"),
        (("--listen-client-urls", "foo"), 2, "URL scheme must be http, https, unix, or unixs: foo"),
        (("--snapshot-count", "abc"), 2, 'invalid value "abc" for flag -snapshot-count'),
        (("--heartbeat-interval", "300"), 1, "should be at least as 5 times as"),
        (("--listen-client-urls", "http://127.0.0.1:1"), 1, "--advertise-client-urls is required"),
        (("extra",), 1, "'extra' is not a valid flag"),
        (("--config-file", "/no/such"), 1, "open /no/such: no such file or directory"),
        (("--log-outputs", "/no/such/dir/log"), 1, "--log-outputs=/no/such/dir/log: no such file or directory"),
    ],
)
def test_exit_codes_and_messages_of_what_cannot_be_read(
    argv: tuple[str, ...],
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    restored_logging: None,
) -> None:
    for name in list(os.environ):
        if name.startswith(("ETCD_", "KVSERVER_")):
            monkeypatch.delenv(name)
    assert main(argv) == code
    assert message in capsys.readouterr().err


@pytest.fixture
def restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, asyncio_level = list(root.handlers), root.level, logging.getLogger("asyncio").level
    yield
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("asyncio").setLevel(asyncio_level)


def test_the_command_itself_refuses_an_unknown_flag() -> None:
    result = run("--bogus")
    assert result.returncode == 2
    assert result.stderr.startswith("flag provided but not defined: -bogus\nUsage:")
    assert result.stdout == ""


def test_a_node_is_ready_serves_and_ends_by_the_signal_that_stops_it(tmp_path: Path) -> None:
    with started(tmp_path, "--name", "n1") as (process, url, lines):
        records = [json.loads(line) for line in lines]
        assert {"level", "ts", "caller", "msg"} <= set(records[0])
        assert any("published" in record["msg"] and "n1" in line for record, line in zip(records, lines, strict=True))
        with urllib.request.urlopen(url + "/version") as answer:
            assert json.load(answer)["etcdserver"] == "3.5.1"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == -signal.SIGTERM
        assert process.stderr is not None
        rest = process.stderr.read()
        assert '"received signal; shutting down"' in rest
        assert '"level":"error"' not in rest


def test_sigint_stops_it_too_and_console_format_is_for_people(tmp_path: Path) -> None:
    with started(tmp_path, "--log-format=console", "--enable-v2") as (process, _, lines):
        assert any("\tWARNING\t" in line and "enable-v2 has no effect" in line for line in lines)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == -signal.SIGINT


def test_a_port_in_use_and_a_data_directory_in_use_are_refused(tmp_path: Path) -> None:
    with started(tmp_path) as (_, url, _):
        result = run(f"--listen-client-urls={url}", f"--advertise-client-urls={url}", f"--data-dir={tmp_path}/other")
        assert result.returncode == 1
        assert f"--listen-client-urls={url}: listen tcp 127.0.0.1:" in result.stderr
        assert "address already in use" in result.stderr
        assert "Traceback" not in result.stderr
        other = f"http://127.0.0.1:{free_port()}"
        result = run(f"--listen-client-urls={other}", f"--advertise-client-urls={other}", f"--data-dir={tmp_path}/d")
        assert result.returncode == 1
        assert str(tmp_path / "d") in result.stderr
        assert "Traceback" not in result.stderr


def test_a_data_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    url = f"http://127.0.0.1:{free_port()}"
    result = run(f"--listen-client-urls={url}", f"--advertise-client-urls={url}", f"--data-dir={tmp_path}/file")
    assert result.returncode == 1
    assert str(tmp_path / "file") in result.stderr
    assert "Traceback" not in result.stderr


def test_formatters_write_extra_fields_and_tracebacks() -> None:
    try:
        raise ValueError("why")
    except ValueError:
        record = logging.getLogger("a.b").makeRecord(
            "a.b", logging.WARNING, __file__, 5, "said %s", ("so",), sys.exc_info(), extra={"peer": "p", "bytes": b"x"}
        )
    written = json.loads(JsonFormatter().format(record))
    assert (written["level"], written["msg"], written["peer"], written["caller"]) == ("warn", "said so", "p", "a.b:5")
    assert "ValueError: why" in written["stacktrace"]
    text = ConsoleFormatter().format(record)
    assert "WARNING\ta.b:5\tsaid so\t" in text
    assert text.endswith("ValueError: why")


def test_logging_goes_where_the_flags_say(tmp_path: Path, restored_logging: None) -> None:
    path = tmp_path / "log"
    set_up_logging("error", "json", (str(path), "stdout"))
    logging.getLogger("x").warning("not this")
    logging.getLogger("x").error("but this")
    assert [json.loads(line)["msg"] for line in path.read_text().splitlines()] == ["but this"]
    with pytest.raises(StartupError, match="--log-outputs"):
        set_up_logging(outputs=("/no/such/dir/x",))
