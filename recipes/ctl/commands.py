"""The tree of commands, and how a command line finds its command in it.

A command is found by its name or by the beginning of its name if only one sibling has it. Global flags may stand
before the command's name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from recipes.ctl.flags import Flag, FlagSet
from recipes.ctl.gotext import quote


class UnknownCommandError(Exception):
    """There is no such command; the text names those that were perhaps meant."""


class Command:
    """A command or a group of commands, as declared.

    Args:
        use: Its name and arguments as help shows them.
        short: One line.
        run: ``module:function`` that runs it, loaded when it does; empty for a group.
        flags: Its own flags.
        shared: Flags that its subcommands have too.
        long: A longer text for help.
        children: Subcommands.
    """

    __slots__ = ("children", "flags", "long", "name", "parent", "run", "shared", "short", "use")

    def __init__(
        self,
        use: str,
        short: str,
        run: str = "",
        *,
        flags: Sequence[Flag] = (),
        shared: Sequence[Flag] = (),
        long: str = "",
        children: Sequence[Command] = (),
    ) -> None:
        self.use = use
        self.name = use.split(" ", 1)[0]
        self.short = short
        self.run = run
        self.long = long
        self.flags = (*flags, Flag("help", False, f"help for {self.name}", short="h"))
        self.shared = tuple(shared)
        self.children = tuple(children)
        self.parent: Command | None = None
        for child in self.children:
            child.parent = self

    @property
    def path(self) -> str:
        """The names from the root's on."""
        return self.name if self.parent is None else f"{self.parent.path} {self.name}"

    def local_flags(self) -> list[Flag]:
        """Answer the flags declared here, by name."""
        return sorted((*self.flags, *self.shared), key=lambda flag: flag.name)

    def inherited_flags(self) -> list[Flag]:
        """Answer the flags of the groups above, by name."""
        flags: list[Flag] = []
        group = self.parent
        while group is not None:
            flags += group.shared
            group = group.parent
        return sorted(flags, key=lambda flag: flag.name)

    def flag_set(self) -> FlagSet:
        """Answer a fresh set of all flags that may be given."""
        return FlagSet((*self.inherited_flags(), *self.local_flags()))

    def find(self, arguments: Sequence[str]) -> tuple[Command, list[str]]:
        """Answer the command meant, and the arguments without the names that led to it.

        Raises:
            UnknownCommandError: the first word is no command.
        """
        command, rest = self, list(arguments)
        while True:
            words = list(_words(command.flag_set(), rest))
            child = command._child(rest[words[0]]) if words else None
            if child is None:
                break
            del rest[words[0]]
            command = child
        if command is self and words and self.children:
            raise UnknownCommandError(self._unknown(rest[words[0]]))
        return command, rest

    def _child(self, name: str) -> Command | None:
        close = []
        for child in self.children:
            if child.name == name:
                return child
            if name and child.name.startswith(name):
                close.append(child)
        return close[0] if len(close) == 1 else None

    def _unknown(self, name: str) -> str:
        text = f"unknown command {quote(name)} for {quote(self.path)}"
        meant = [
            child.name
            for child in self.children
            if child.name.lower().startswith(name.lower()) or _distance(name.lower(), child.name.lower()) <= 2
        ]
        if meant:
            text += "\n\nDid you mean this?\n" + "".join(f"\t{other}\n" for other in meant)
        return text


def _words(flags: FlagSet, arguments: Sequence[str]) -> Iterator[int]:
    """Answer where the arguments that are neither flags nor their values stand."""
    skip = False
    for index, argument in enumerate(arguments):
        if skip:
            skip = False
        elif argument == "--":
            return
        elif argument.startswith("-"):
            skip = flags.takes_next(argument)
        elif argument:
            yield index


def _distance(a: str, b: str) -> int:
    """Answer the Levenshtein distance."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        previous, row[0] = row[0], i
        for j, right in enumerate(b, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (left != right))
    return row[-1]
