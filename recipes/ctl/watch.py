"""``watch``: prints events as they come, runs a program for each, or takes its orders from standard input."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from kvserver.proto import kv_pb2, rpc_pb2
from recipes.ctl.exits import (
    EXIT_ERROR,
    EXIT_INTERRUPTED,
    EXIT_INVALID_INPUT,
    CommandError,
    bad_args,
)
from recipes.ctl.flags import FlagError, FlagSet
from recipes.ctl.following import Watch, Watcher, cancel_text
from recipes.ctl.gotext import quote, raw
from recipes.ctl.invocation import PREFIXES, Invocation
from recipes.ctl.ranges import prefix_end
from recipes.ctl.scanning import split_words
from recipes.ctl.transport import CallError
from recipes.ctl.tree import watch_command

_BAD_NUMBER = "bad number of arguments"


class Order(NamedTuple):
    """What to watch, and the program to run for each event."""

    request: rpc_pb2.WatchCreateRequest
    program: list[str]


def run(invocation: Invocation) -> None:
    """Watch."""
    key, end = _environment(invocation, "WATCH_KEY"), _environment(invocation, "WATCH_RANGE_END")
    if not key and end:
        raise bad_args(f"ETCDCTL_WATCH_KEY is empty but got ETCDCTL_WATCH_RANGE_END={quote(end)}")
    environment = [word for word in (key, end) if word]
    if invocation.flags.on("interactive"):
        _interactive(invocation, environment)
        return
    words, program = split_program(_after_name(invocation.arguments), invocation.words, environment, interactive=False)
    client = invocation.client()
    try:
        order = Order(watch_request(words, invocation.flags), program)
    except ValueError as error:
        raise bad_args(str(error)) from None
    watcher = Watcher(client)
    watch = watcher.add(order.request)

    def told() -> bool:
        watcher.pump()
        return bool(watch.responses)

    try:
        while not (watch.cancelled and not watch.responses):
            client.wait(told)
            _print(invocation, watch, order.program)
    except CallError as error:
        invocation.complain(f"watch was canceled ({error})")
    raise CommandError(EXIT_INTERRUPTED, "watch is canceled by the server")


def _environment(invocation: Invocation, name: str) -> str:
    return next(filter(None, (invocation.environ.get(prefix + name, "") for prefix in PREFIXES)), "")


def _after_name(arguments: list[str]) -> list[str]:
    """Answer the part of the command line after ``watch``."""
    for index, argument in enumerate(arguments):
        if argument == "watch":
            return arguments[index + 1 :]
    return arguments


def split_program(
    whole: list[str], words: list[str], environment: list[str], *, interactive: bool
) -> tuple[list[str], list[str]]:
    """Part the key and the end of the range from the program that follows ``--``.

    Args:
        whole: Everything after ``watch``, flags too.
        words: The same without flags and without ``--``.
        environment: Key and end from the environment; arguments may then name only a program.
        interactive: Whether this is a line of standard input.

    Raises:
        CommandError: too few or too many arguments.
    """
    separator = whole.index("--") if "--" in whole else -1
    program = whole[separator + 1 :] if separator >= 0 else []
    if separator >= 0 and not program:
        raise bad_args(f"{_BAD_NUMBER} (found separator --, but no commands)")
    if separator < 0 and not environment and not (words if interactive else whole):
        raise bad_args(_BAD_NUMBER)
    own = words[: len(words) - len(program)]
    if environment and own:
        raise bad_args(f"{_BAD_NUMBER} (found conflicting environment key)")
    return [*environment, *own], program


def watch_request(words: list[str], flags: FlagSet) -> rpc_pb2.WatchCreateRequest:
    """Make the request of a command line.

    Raises:
        ValueError: arguments and flags make no request.
    """
    if not words:
        raise ValueError(_BAD_NUMBER)
    key, end = raw(words[0]), b""
    prefix = flags.on("prefix")
    if len(words) == 2:
        if prefix:
            raise ValueError("`range_end` and `--prefix` are mutually exclusive")
        end = raw(words[1])
    elif prefix:
        key, end = (key, prefix_end(key)) if key else (b"\0", b"\0")
    return rpc_pb2.WatchCreateRequest(
        key=key,
        range_end=end,
        start_revision=flags.number("rev"),
        prev_kv=flags.on("prev-kv"),
        progress_notify=flags.on("progress-notify"),
    )


def _print(invocation: Invocation, watch: Watch, program: list[str]) -> None:
    """Print what a watch told, and run the program for each event."""
    while watch.responses:
        response = watch.responses.popleft()
        if response.canceled:
            invocation.complain(f"watch was canceled ({cancel_text(response)})")
        elif not response.events:
            invocation.line(f"progress notify: {response.header.revision}")
        invocation.printer().watch(response)
        invocation.stdout.flush()
        for event in response.events if program else ():
            _run_program(invocation, program, response.header.revision, event)


def _run_program(invocation: Invocation, program: list[str], revision: int, event: kv_pb2.Event) -> None:
    environ = {
        "ETCD_WATCH_REVISION": str(revision),
        "ETCD_WATCH_EVENT_TYPE": quote(kv_pb2.Event.EventType.Name(event.type)),
        "ETCD_WATCH_KEY": quote(event.kv.key),
        "ETCD_WATCH_VALUE": quote(event.kv.value),
    }
    try:
        status = invocation.run_program(program, environ)
        reason = f"exit status {status}" if status > 0 else f"signal: {-status}"
    except OSError as error:
        status, reason = 1, f'exec: "{program[0]}": {os.strerror(error.errno or 0).lower()}'
    if status:
        shown = " ".join(quote(word) for word in program)
        invocation.complain(f"command [{shown}] error ({reason})")
        raise CommandError(EXIT_ERROR, None)


# interactive


class _Input:
    """Lines of standard input, read on a thread of their own.

    Args:
        invocation: Whose input.
        wake: Called after each line.
    """

    def __init__(self, invocation: Invocation, wake: Callable[[], None]) -> None:
        self.lines: deque[bytes] = deque()
        self._stdin = invocation.stdin
        self._wake = wake
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            while True:
                line = self._stdin.readline()
                self.lines.append(line)
                self._wake()
                if not line.endswith(b"\n"):
                    return
        except (OSError, ValueError):
            return


def _interactive(invocation: Invocation, environment: list[str]) -> None:
    client = invocation.client()
    watcher = Watcher(client)
    watches: list[tuple[Watch, list[str]]] = []
    client.wake_descriptor()
    lines = _Input(invocation, client.wake).lines

    def something() -> bool:
        watcher.pump()
        return bool(lines) or any(watch.responses for watch, _ in watches)

    while True:
        try:
            client.wait(something)
        except CallError as error:
            raise CommandError(EXIT_ERROR, str(error)) from None
        for watch, program in watches:
            _print(invocation, watch, program)
        if lines:
            line = lines.popleft()
            if not line.endswith(b"\n"):
                raise CommandError(EXIT_INVALID_INPUT, "error reading watch request line: EOF")
            order = _read_order(invocation, watcher, line[:-1], environment)
            if order is not None:
                watches.append((watcher.add(order.request), order.program))


def _read_order(invocation: Invocation, watcher: Watcher, line: bytes, environment: list[str]) -> Order | None:
    """Answer the watch that a line asks for; do what else it says.

    Raises:
        CommandError: the line's flags or arguments are wrong, which ends the command.
    """
    text = line.decode("utf-8", "surrogateescape")
    words = [word.decode("utf-8", "surrogateescape") for word in split_words(line)]
    if not words:
        invocation.complain(f"Invalid command: {text} (watch and progress supported)")
    elif words[0] == "progress":
        try:
            watcher.request_progress()
        except CallError as error:
            raise CommandError(EXIT_ERROR, str(error)) from None
    elif words[0] != "watch":
        invocation.complain(f"Invalid command {text} (only support watch)")
    elif len(words) < 2 and not environment:
        invocation.complain(f"Invalid command {text} (command type or key is not provided)")
    else:
        flags = watch_command().flag_set()
        try:
            rest = flags.parse(words[1:])
        except FlagError as error:
            raise bad_args(str(error)) from None
        own, program = split_program(words[1:], rest, environment, interactive=True)
        try:
            return Order(watch_request(own, flags), program)
        except ValueError as error:
            invocation.complain(f"Invalid command {text} ({error})")
    return None
