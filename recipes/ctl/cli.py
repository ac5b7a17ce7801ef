"""``kvctl``'s entry: find the command, parse its flags, run it, turn its end into an exit code.

``main`` may be called in-process with streams and environment of its own; it changes no global state.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import BinaryIO

from recipes.ctl.commands import Command, UnknownCommandError
from recipes.ctl.exits import EXIT_ERROR, EXIT_SUCCESS, CommandError
from recipes.ctl.flags import FlagError
from recipes.ctl.invocation import Invocation, system_environ, system_streams
from recipes.ctl.tree import build

EXIT_BY_SIGINT = 130
EXIT_BY_SIGPIPE = 141


def main(
    argv: Sequence[str] | None = None,
    stdin: BinaryIO | None = None,
    stdout: BinaryIO | None = None,
    stderr: BinaryIO | None = None,
    environ: Mapping[str, str] | None = None,
) -> int:
    """Run one command line; without ``argv``, as a process: then it does not return.

    Args:
        argv: The arguments without the program's name; the process's when None.
        stdin: Standard input as bytes; the process's when None, as all that follow.
        stdout: Standard output.
        stderr: Standard error.
        environ: Environment variables.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    own = system_streams() if stdin is None or stdout is None or stderr is None else (stdin, stdout, stderr)
    streams = (stdin or own[0], stdout or own[1], stderr or own[2])
    try:
        code = _run(arguments, streams, system_environ() if environ is None else environ)
        streams[1].flush()
    except BrokenPipeError:
        if stdout is None:
            # Whoever read us is gone; keep the interpreter from complaining when it flushes at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = EXIT_BY_SIGPIPE
    except KeyboardInterrupt:
        if argv is None:
            # Die of the signal, so that a shell script that started us ends too.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        code = EXIT_BY_SIGINT
    if argv is None:
        # All is flushed and nothing is left to do: taking the interpreter apart would cost more than a get does, and
        # would trip over the thread that reads the orders of an interactive watch.
        os._exit(code)
    return code


def _run(arguments: list[str], streams: tuple[BinaryIO, BinaryIO, BinaryIO], environ: Mapping[str, str]) -> int:
    root = build()
    stdout, stderr = streams[1], streams[2]
    try:
        command, rest = root.find(arguments)
    except UnknownCommandError as error:
        _say(stderr, f"Error: {error}\nRun '{root.name} --help' for usage.\nError: {error}\n")
        return EXIT_ERROR
    flags = command.flag_set()
    try:
        words = flags.parse(rest)
    except FlagError as error:
        _show_usage(stdout, command)
        _say(stderr, f"Error: {error}\n\nError: {error}\n")
        return EXIT_ERROR
    if flags.on("help") or not command.run:
        _show_usage(stdout, command)
        return EXIT_SUCCESS
    invocation = Invocation(command, flags, words, arguments, streams, environ)
    try:
        _load(command.run)(invocation)
    except CommandError as error:
        stdout.flush()
        if error.text is not None:
            _say(stderr, f"Error: {error.text}\n")
        return error.code
    finally:
        invocation.close()
    return EXIT_SUCCESS


def _load(name: str) -> Callable[[Invocation], None]:
    from importlib import import_module

    module, _, function = name.partition(":")
    run: Callable[[Invocation], None] = getattr(import_module(module), function)
    return run


def _show_usage(stdout: BinaryIO, command: Command) -> None:
    from recipes.ctl.usage import usage

    stdout.write(usage(command).encode())
    stdout.flush()


def _say(stderr: BinaryIO, text: str) -> None:
    stderr.write(text.encode("utf-8", "surrogateescape"))
    stderr.flush()


def help_command(invocation: Invocation) -> None:
    """``help [command]``."""
    root = build(invocation.command.path.partition(" ")[0])
    try:
        command, _ = root.find(invocation.words)
    except UnknownCommandError:
        topics = " ".join(f"`{word}`" for word in invocation.words)
        invocation.complain(f"Unknown help topic [{topics}]")
        command = root
    _show_usage(invocation.stdout, command)
