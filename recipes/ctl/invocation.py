"""One run of a command: its arguments, flags, streams and environment, and what is made of them when asked.

A command gets an :class:`Invocation`, reads what it needs, prints through :meth:`Invocation.printer`, and ends early by
raising :class:`~recipes.ctl.exits.CommandError`. The connection and the printer are made when first asked for: wrong
arguments are found before wrong settings, and those before a server is missed, in etcdctl's order.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, BinaryIO

from recipes.ctl.commands import Command
from recipes.ctl.exits import EXIT_BAD_FEATURE, EXIT_ERROR, CommandError
from recipes.ctl.flags import FlagError, FlagSet
from recipes.ctl.gotext import raw

if TYPE_CHECKING:
    from recipes.ctl.printers.base import Printer
    from recipes.ctl.transport import Client

PREFIXES = ("KVCTL_", "ETCDCTL_")
"""Environment variables that set global flags; the first one found counts."""


class Invocation:
    """A command with everything that it works on.

    Args:
        command: The command.
        flags: Its flags, parsed.
        words: The arguments that are not flags.
        arguments: The whole command line, for ``watch``, which looks for ``--`` in it.
        streams: Standard input, output and error, as bytes.
        environ: Environment variables.
    """

    def __init__(
        self,
        command: Command,
        flags: FlagSet,
        words: list[str],
        arguments: list[str],
        streams: tuple[BinaryIO, BinaryIO, BinaryIO],
        environ: Mapping[str, str],
    ) -> None:
        self.command = command
        self.flags = flags
        self.words = words
        self.arguments = arguments
        self.stdin, self.stdout, self.stderr = streams
        self.environ = environ
        self._client: Client | None = None
        self._printer: Printer | None = None
        self._environment_read = False

    @property
    def args(self) -> list[bytes]:
        """The arguments as bytes."""
        return [raw(word) for word in self.words]

    # output

    def write(self, text: str | bytes) -> None:
        """Print on standard output."""
        self.stdout.write(raw(text) if isinstance(text, str) else text)

    def line(self, text: str | bytes) -> None:
        """Print a line on standard output."""
        self.write(text)
        self.stdout.write(b"\n")

    def complain(self, text: str) -> None:
        """Print a line on standard error."""
        self.stdout.flush()
        self.stderr.write(raw(text) + b"\n")
        self.stderr.flush()

    def printer(self) -> Printer:
        """Answer the printer of ``--write-out``.

        Raises:
            CommandError: there is no such format.
        """
        if self._printer is None:
            self.read_environment()
            from recipes.ctl.printers import make_printer

            printer = make_printer(self.flags.text("write-out"), self.stdout, hex_output=self.flags.on("hex"))
            if printer is None:
                raise CommandError(EXIT_BAD_FEATURE, "unsupported output format")
            self._printer = printer
        return self._printer

    # connection

    def client(self) -> Client:
        """Answer the client for the configured servers; it connects at its first call.

        Raises:
            CommandError: the settings make no sense, or the user is refused.
        """
        if self._client is None:
            self.read_environment()
            from recipes.ctl.settings import make_client

            self._client = make_client(self)
            self.printer()
            self._client.authenticate()
        return self._client

    @property
    def timeout(self) -> float:
        """``--command-timeout`` in seconds."""
        return self.flags.seconds("command-timeout")

    def read_environment(self) -> None:
        """Give global flags that were not on the command line their values from the environment, once.

        A value that does not fit its flag is ignored, as etcdctl does.

        Raises:
            CommandError: an ``ETCDCTL_`` variable and a flag name the same setting, which etcdctl refuses. With
                ``KVCTL_`` variables the flag just wins.
        """
        if self._environment_read:
            return
        self._environment_read = True
        given = set(self.flags.given)
        for flag in self.command.inherited_flags():
            variable = flag.name.upper().replace("-", "_")
            for prefix in PREFIXES:
                text = self.environ.get(prefix + variable, "")
                if not text:
                    continue
                if flag.name in given:
                    if prefix == "ETCDCTL_":
                        raise CommandError(
                            EXIT_ERROR,
                            f"conflicting environment variable {prefix}{variable} is shadowed by corresponding "
                            "command-line flag (either unset environment variable or disable flag)",
                        )
                    break
                try:
                    self.flags.set(flag.name, text)
                except FlagError:
                    continue
                break

    def close(self) -> None:
        """Hang up."""
        if self._client is not None:
            self._client.close()

    # programs that commands start

    def run_program(self, arguments: list[str], environ: Mapping[str, str]) -> int:
        """Run a program on our output streams while the connection stays alive; answer its exit status.

        Raises:
            OSError: it cannot be started.
        """
        from recipes.ctl.programs import run_program

        self.stdout.flush()
        return run_program(arguments, {**self.environ, **environ}, self.stdout, self.stderr, self._client)


def system_streams() -> tuple[BinaryIO, BinaryIO, BinaryIO]:
    """Answer the process's own streams."""
    import sys

    return sys.stdin.buffer, sys.stdout.buffer, sys.stderr.buffer


def system_environ() -> Mapping[str, str]:
    """Answer the process's environment."""
    return os.environ
