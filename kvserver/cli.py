"""The ``kvserver`` command: reads the configuration, sets up logging, runs one node until it is told to stop.

Exit codes are etcd's, as supervisors rely on them: 2 for a command line that cannot be read, 1 for a configuration or
a start that fails and for a node that had to give up, 0 for ``--help`` and ``--version``; after SIGINT and SIGTERM the
node stops gracefully and then ends by that signal (as process 1 of a container: with 0).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import platform
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import fields

from kvserver.config import IGNORED, Config, Flag, UsageError
from kvserver.errors import StartupError
from kvserver.version import ETCD_VERSION, KVSERVER_VERSION

log = logging.getLogger(__name__)

EXIT_FAILURE = 1
EXIT_USAGE = 2

_USAGE = """Usage:

  kvserver [flags]
    Start a kvserver node.

  kvserver --version
    Show the version of kvserver, and of etcd that it is compatible with.

  kvserver -h | --help
    Show the help information about kvserver.

  kvserver --config-file
    Path to the server configuration file. Note that if a configuration file is provided, other command line flags and \
environment variables will be ignored.
"""

_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "error": logging.ERROR,
    "panic": logging.CRITICAL,
    "fatal": logging.CRITICAL,
}
_LEVEL_NAMES = {
    logging.DEBUG: "debug",
    logging.INFO: "info",
    logging.WARNING: "warn",
    logging.ERROR: "error",
    logging.CRITICAL: "fatal",
}
_STANDARD_FIELDS = frozenset((*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"))


def _timestamp(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"


def _extra_fields(record: logging.LogRecord) -> dict[str, object]:
    found = {name: value for name, value in vars(record).items() if name not in _STANDARD_FIELDS}
    if record.exc_info and record.exc_info[1] is not None:
        found["stacktrace"] = logging.Formatter().formatException(record.exc_info)
    return found


class JsonFormatter(logging.Formatter):
    """One JSON object a line, with the keys of etcd's log: level, ts, caller, msg, then the fields given as extra."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record."""
        line = {
            "level": _LEVEL_NAMES.get(record.levelno, record.levelname.lower()),
            "ts": _timestamp(record),
            "caller": f"{record.name}:{record.lineno}",
            "msg": record.getMessage(),
            **_extra_fields(record),
        }
        return json.dumps(line, default=str, ensure_ascii=False, separators=(",", ":"))


class ConsoleFormatter(logging.Formatter):
    """One line of tab separated columns for people, the extra fields as JSON at its end."""

    def format(self, record: logging.LogRecord) -> str:
        """Write a record."""
        columns = [_timestamp(record), record.levelname, f"{record.name}:{record.lineno}", record.getMessage()]
        extra = _extra_fields(record)
        trace = extra.pop("stacktrace", None)
        if extra:
            columns.append(json.dumps(extra, default=str, ensure_ascii=False))
        return "\t".join(columns) + (f"\n{trace}" if trace else "")


def set_up_logging(level: str = "info", log_format: str = "json", outputs: Sequence[str] = ("default",)) -> None:
    """Send the process's log where the flags say.

    Raises:
        StartupError: a log file cannot be opened.
    """
    handlers: list[logging.Handler] = []
    for output in outputs or ("default",):
        if output in ("default", "stderr", "systemd/journal"):
            handlers.append(logging.StreamHandler(sys.stderr))
        elif output == "stdout":
            handlers.append(logging.StreamHandler(sys.stdout))
        else:
            try:
                handlers.append(logging.FileHandler(output, encoding="utf-8", errors="backslashreplace"))
            except OSError as error:
                raise StartupError(f"--log-outputs={output}: {(error.strerror or str(error)).lower()}") from error
    formatter = ConsoleFormatter() if log_format == "console" else JsonFormatter()
    for handler in handlers:
        handler.setFormatter(formatter)
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(_LEVELS[level])
    logging.getLogger("asyncio").setLevel(max(_LEVELS[level], logging.WARNING))


def version_text() -> str:
    """Answer the lines of ``--version``; the first four are in the form that tools parse of etcd's."""
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    return (
        f"etcd Version: {ETCD_VERSION}\n"
        f"Git SHA: kvserver-{KVSERVER_VERSION}\n"
        f"Go Version: none\n"
        f"Go OS/Arch: {platform.system().lower()}/{machine}\n"
        f"kvserver Version: {KVSERVER_VERSION}\n"
        f"Python Version: {platform.python_version()}\n"
    )


def help_text() -> str:
    """Answer the text of ``--help``, made from the flags."""
    lines = [_USAGE]
    section = ""
    for spec in fields(Config):
        flag: Flag[object] | None = spec.metadata.get("flag")
        if flag is None:
            continue
        if flag.section != section:
            section = flag.section
            lines.append(f"\n{section}:")
        default: object = spec.default
        if flag.shown_default is not None:
            shown = flag.shown_default
        elif isinstance(default, tuple):
            shown = ",".join(default)
        else:
            shown = str(default).lower() if isinstance(default, bool) else str(default)
        lines.append(f"  --{spec.name.replace('_', '-')} '{shown}'\n    {flag.help}")
        if flag.refusal:
            lines.append(f"    Not supported yet: {flag.refusal}.")
        if flag.idle:
            lines.append(f"    No effect in this version: {flag.idle}.")
    lines.append(
        f"\nFlags of etcd that are accepted and change nothing ({len(IGNORED)}): --" + ", --".join(sorted(IGNORED))
    )
    lines.append(
        "\nEvery flag may also be given as environment variable, ETCD_NAME or KVSERVER_NAME for --name, and in the "
        "configuration file."
    )
    return "\n".join(lines) + "\n"


def _raise_descriptor_limit() -> None:
    """Use all descriptors that the process may have, as Go programs do."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError):
            log.debug("the limit of %d descriptors cannot be raised", soft)


async def serve(config: Config) -> signal.Signals | None:
    """Run a node until SIGINT or SIGTERM, or until it ends by itself.

    Returns:
        The signal that ended it.

    Raises:
        StartupError: the node cannot start, or could not go on.
    """
    from kvserver.runtime import tune_interpreter
    from kvserver.server import Server

    loop = asyncio.get_running_loop()
    stop: asyncio.Future[signal.Signals] = loop.create_future()

    def stop_by(received: signal.Signals) -> None:
        if not stop.done():
            log.info("received signal; shutting down", extra={"signal": received.name})
            stop.set_result(received)

    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(number, stop_by, number)
        except NotImplementedError:  # Windows
            signal.signal(number, lambda value, _: loop.call_soon_threadsafe(stop_by, signal.Signals(value)))
    async with Server(config) as server:
        tune_interpreter()
        closed = loop.create_task(server.wait_closed())
        await asyncio.wait((stop, closed), return_when=asyncio.FIRST_COMPLETED)
        if closed.done():
            closed.result()
        else:
            closed.cancel()
    log.info("closed the node", extra={"member": config.name})
    return stop.result() if stop.done() else None


def _run(config: Config) -> signal.Signals | None:
    try:
        import uvloop
    except ImportError:  # not on Windows
        return asyncio.run(serve(config))
    return uvloop.run(serve(config))


def _end_by(received: signal.Signals) -> int:
    """End the process by the signal that stopped it, as etcd does, so that its parent sees why it ended."""
    logging.shutdown()
    if os.name != "posix" or os.getpid() == 1:
        return 0
    signal.signal(received, signal.SIG_DFL)
    os.kill(os.getpid(), received)
    return 128 + received


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments without the program's name; those of the process by default.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    flags = {word.lstrip("-") for word in arguments if word.startswith("-")}
    if flags & {"h", "help"}:
        sys.stdout.write(help_text())
        return 0
    if flags & {"version", "version=true"}:
        sys.stdout.write(version_text())
        return 0
    try:
        config = Config.load(arguments, os.environ)
        set_up_logging(config.log_level, config.log_format, config.log_outputs)
    except UsageError as error:
        sys.stderr.write(f"{error}\n{_USAGE}")
        return EXIT_USAGE
    except StartupError as error:
        set_up_logging()
        log.critical("failed to verify flags", extra={"error": str(error)})
        return EXIT_FAILURE
    log.info(
        "running", extra={"arguments": arguments, "kvserver-version": KVSERVER_VERSION, "etcd-version": ETCD_VERSION}
    )
    for notice in config.notices:
        log.warning("%s", notice)
    if not config.data_dir:
        log.warning("'data-dir' was empty; using default", extra={"data-dir": str(config.data_path)})
    _raise_descriptor_limit()
    try:
        received = _run(config)
    except StartupError as error:
        log.critical("failed to start or to go on", extra={"error": str(error)})
        return EXIT_FAILURE
    except OSError as error:  # of the machine, not of ours: a directory that is a file, no rights, a full disk
        log.critical("failed to start or to go on", extra={"error": str(error)})
        return EXIT_FAILURE
    except KeyboardInterrupt:
        return _end_by(signal.SIGINT)
    return 0 if received is None else _end_by(received)
