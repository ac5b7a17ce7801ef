"""Flags, parsed by the rules and with the error texts of the Go library that etcdctl uses.

``--name value``, ``--name=value``, ``-n value``, ``-nvalue``, ``-n=value``; truth values take a value only with ``=``;
flags and arguments mix freely; ``--`` ends the flags.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from recipes.ctl.gotext import format_duration, parse_bool, parse_duration, parse_int, quote

Value = str | int | bool | list[str]

SLICE, STRING, BOOL, INT, DURATION = "stringSlice", "string", "bool", "int", "duration"


class FlagError(Exception):
    """A flag that is unknown or has a value that does not fit; the text is what etcdctl says."""


def _parse_slice(text: str) -> list[str]:
    return text.split(",") if text else []


_PARSERS: dict[str, Callable[[str], Value]] = {
    STRING: str,
    BOOL: parse_bool,
    INT: lambda text: parse_int(text, 0),
    DURATION: parse_duration,
    SLICE: _parse_slice,
}


class Flag:
    """One flag as declared.

    Args:
        name: Its long name.
        default: Its value when not given; durations in nanoseconds.
        usage: What help says about it.
        kind: How its value is read; derived from the default when not given.
        short: Its one-letter name.
    """

    __slots__ = ("default", "kind", "name", "short", "usage")

    def __init__(self, name: str, default: Value, usage: str, *, kind: str = "", short: str = "") -> None:
        self.name = name
        self.default = default
        self.usage = usage
        self.short = short
        if not kind:
            kind = BOOL if isinstance(default, bool) else INT if isinstance(default, int) else STRING
        self.kind = kind

    def default_text(self) -> str:
        """Answer the default as help shows it."""
        if isinstance(self.default, bool):
            return "true" if self.default else "false"
        if isinstance(self.default, list):
            return "[" + ",".join(self.default) + "]"
        if self.kind == DURATION:
            return format_duration(int(self.default))
        return quote(self.default) if isinstance(self.default, str) else str(self.default)


class FlagSet:
    """The flags of one command line: declared ones, their values, and which were given."""

    def __init__(self, flags: Iterable[Flag]) -> None:
        self._flags = {flag.name: flag for flag in flags}
        self._short = {flag.short: flag for flag in self._flags.values() if flag.short}
        self._values: dict[str, Value] = {name: flag.default for name, flag in self._flags.items()}
        self.given: set[str] = set()

    # reading

    def text(self, name: str) -> str:
        """Answer a string flag."""
        value = self._values[name]
        assert isinstance(value, str)
        return value

    def on(self, name: str) -> bool:
        """Answer a truth flag."""
        value = self._values[name]
        assert isinstance(value, bool)
        return value

    def number(self, name: str) -> int:
        """Answer a number or a duration in nanoseconds."""
        value = self._values[name]
        assert isinstance(value, int)
        return value

    def seconds(self, name: str) -> float:
        """Answer a duration in seconds."""
        return self.number(name) / 1e9

    def texts(self, name: str) -> list[str]:
        """Answer a list flag."""
        value = self._values[name]
        assert isinstance(value, list)
        return value

    def has(self, name: str) -> bool:
        """Answer whether such a flag exists here."""
        return name in self._flags

    # parsing

    def set(self, name: str, text: str) -> None:
        """Give a flag a value from its text.

        Raises:
            FlagError: the value does not fit.
        """
        flag = self._flags[name]
        try:
            value = _PARSERS[flag.kind](text)
        except ValueError as error:
            shown = f"-{flag.short}, --{name}" if flag.short else f"--{name}"
            raise FlagError(f'invalid argument {quote(text)} for "{shown}" flag: {error}') from None
        held = self._values[name]
        if isinstance(value, list) and isinstance(held, list) and name in self.given:
            value = held + value
        self._values[name] = value
        self.given.add(name)

    def parse(self, arguments: Sequence[str]) -> list[str]:
        """Take the flags out of the arguments and answer the rest.

        Raises:
            FlagError: a flag is unknown or wrong.
        """
        rest: list[str] = []
        waiting = list(reversed(arguments))
        while waiting:
            argument = waiting.pop()
            if argument == "--":
                rest += reversed(waiting)
                break
            if argument.startswith("--"):
                self._parse_long(argument, waiting)
            elif argument.startswith("-") and argument != "-":
                self._parse_short(argument[1:], waiting)
            else:
                rest.append(argument)
        return rest

    def _parse_long(self, argument: str, waiting: list[str]) -> None:
        name, equals, text = argument[2:].partition("=")
        if not name or name[0] == "-":
            raise FlagError(f"bad flag syntax: {argument}")
        flag = self._flags.get(name)
        if flag is None:
            raise FlagError(f"unknown flag: --{name}")
        if not equals:
            if flag.kind == BOOL:
                text = "true"
            elif waiting:
                text = waiting.pop()
            else:
                raise FlagError(f"flag needs an argument: --{name}")
        self.set(name, text)

    def _parse_short(self, letters: str, waiting: list[str]) -> None:
        group = letters
        while letters:
            letter, letters = letters[0], letters[1:]
            flag = self._short.get(letter)
            if flag is None:
                raise FlagError(f"unknown shorthand flag: '{letter}' in -{group}")
            if letters[:1] == "=" and len(letters) > 1:
                text, letters = letters[1:], ""
            elif flag.kind == BOOL:
                text = "true"
            elif letters:
                text, letters = letters, ""
            elif waiting:
                text = waiting.pop()
            else:
                raise FlagError(f"flag needs an argument: '{letter}' in -{group}")
            self.set(flag.name, text)

    def takes_next(self, argument: str) -> bool:
        """Answer whether the argument after this one is this flag's value; unknown flags take none... but one.

        The rule by which the command's name is found before its flags are known.
        """
        if "=" in argument:
            return False
        if argument.startswith("--"):
            flag = self._flags.get(argument[2:])
        elif len(argument) == 2:
            flag = self._short.get(argument[1])
        else:
            return False
        return flag is None or flag.kind != BOOL
