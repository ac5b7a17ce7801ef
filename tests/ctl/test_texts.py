"""Go's texts, the grammar of txn, flags and help, without a server."""

from __future__ import annotations

import doctest
import importlib
import io
import subprocess
import sys

import pytest

from recipes.ctl import gotext
from recipes.ctl.cli import main
from recipes.ctl.commands import Command
from recipes.ctl.exits import CommandError
from recipes.ctl.flags import FlagError
from recipes.ctl.gotext import quote, unquote
from recipes.ctl.scanning import scan_comparison, split_words
from recipes.ctl.transport import CallError, Target
from recipes.ctl.tree import build
from recipes.ctl.txn import parse_compare, parse_operation
from recipes.ctl.usage import align
from tests.ctl.genuine import CLEAN_ENVIRON


def run(*arguments: str, environ: dict[str, str] | None = None) -> tuple[int, str, str]:
    out, err = io.BytesIO(), io.BytesIO()
    code = main(list(arguments), io.BytesIO(), out, err, environ or {})
    return code, out.getvalue().decode(), err.getvalue().decode()


def commands(command: Command) -> list[Command]:
    return [command, *(inner for child in command.children for inner in commands(child))]


@pytest.mark.parametrize("name", ["gotext", "scanning", "ranges"])
def test_examples_in_docstrings(name: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(f"recipes.ctl.{name}"))
    assert (failed, tried > 0) == (0, True)


@pytest.mark.parametrize("value", [b"", b"plain", b'q"\\', b"\x00\x7f\xff\xfe", "ünï\u200b\U0001f600".encode(), b"\n"])
def test_quoting_can_be_undone(value: bytes) -> None:
    assert unquote(quote(value).encode()) == value


@pytest.mark.parametrize("literal", [b'"', b"", b"x", b'"\\q"', b'"\\x1"', b'"\\400"', b'"\\ud800"', b'"a"b"', b'"\\'])
def test_literals_that_mean_nothing_are_refused(literal: bytes) -> None:
    with pytest.raises(ValueError, match="invalid syntax"):
        unquote(literal)


@pytest.mark.parametrize(
    ("text", "base", "expected"),
    [("0x1f", 0, 31), ("-0b11", 0, -3), ("017", 0, 15), ("+5", 10, 5), ("ff", 16, 255), ("1_000", 0, 1000)],
)
def test_numbers(text: str, base: int, expected: int) -> None:
    assert gotext.parse_int(text, base) == expected


@pytest.mark.parametrize("text", ["", "-", "1e3", "0x10", " 1", "1 ", "٣", "1_000"])
def test_numbers_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="invalid syntax"):
        gotext.parse_int(text)


@pytest.mark.parametrize("text", ["5", "5x", "x", "", "1.2.3s", ".s", "-"])
def test_durations_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"^time: "):
        gotext.parse_duration(text)


@pytest.mark.parametrize("text", ["1h2m3.5s", "1.5ms", "999ns", "2µs", "0s", "-3s"])
def test_durations_can_be_read_back(text: str) -> None:
    assert gotext.format_duration(gotext.parse_duration(text)) == text


def test_words_are_split_at_spaces_outside_quotes() -> None:
    assert split_words(b"put 'single q' \"dou\\tble\" plain --flag=x") == [
        b"put",
        b"single q",
        b"dou\tble",
        b"plain",
        b"--flag=x",
    ]


def test_words_with_unknown_escapes_are_refused() -> None:
    with pytest.raises(CommandError):
        split_words(b'put "\\q"')


@pytest.mark.parametrize(
    ("text", "found"), [(b'"k") = "v"', 3), (b'"k") =', 2), (b'"k")', 1), (b'"k" = "v"', 1), (b"k", 0), (b'"k', 0)]
)
def test_comparisons_are_understood_as_far_as_they_go(text: bytes, found: int) -> None:
    assert scan_comparison(text)[0] == found


def test_a_lease_is_compared_in_hex() -> None:
    assert parse_compare(b'lease("k") = "1f"').lease == 31


def test_operations_take_the_flags_of_their_commands() -> None:
    operation = parse_operation(b"get --prefix k --limit 3 --order=DESCEND").request_range
    assert (operation.key, operation.range_end, operation.limit, operation.sort_order) == (b"k", b"l", 3, 2)


def test_an_unambiguous_beginning_names_a_command() -> None:
    root = build()
    assert root.find(["--endpoints", "get", "lea", "gra", "5"])[0].path == "kvctl lease grant"
    assert root.find(["-w", "json", "get", "a"]) == (root.children[0], ["-w", "json", "a"])


def test_arguments_after_two_dashes_are_no_flags() -> None:
    command, rest = build().find(["put", "--prev-kv", "--", "-k", "--v"])
    flags = command.flag_set()
    assert flags.parse(rest) == ["-k", "--v"]
    assert flags.on("prev-kv")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--nope"], "unknown flag: --nope"),
        (["-q"], "unknown shorthand flag: 'q' in -q"),
        (["--limit"], "flag needs an argument: --limit"),
        (["-w"], "flag needs an argument: 'w' in -w"),
        (["--"[:2] + "-x"], "bad flag syntax: ---x"),
    ],
)
def test_wrong_flags(arguments: list[str], text: str) -> None:
    with pytest.raises(FlagError) as caught:
        build().find(["get"])[0].flag_set().parse(arguments)
    assert str(caught.value) == text


def test_every_command_can_be_loaded() -> None:
    for command in commands(build()):
        if command.run:
            module, _, function = command.run.partition(":")
            assert callable(getattr(importlib.import_module(module), function))


def test_every_command_has_help() -> None:
    for command in commands(build()):
        code, out, err = run(*command.path.split()[1:], "--help")
        assert (code, err) == (0, "")
        assert command.short in out


def test_columns_are_aligned_with_tabs() -> None:
    assert align(["a\tb", "longer than that\tc", "", "x\ty"]) == "a\t\t\tb\nlonger than that\tc\n\nx\ty\n"


def test_version_names_what_it_follows_and_itself() -> None:
    code, out, _ = run("version")
    assert code == 0
    assert out.startswith("etcdctl version: 3.5.1\nAPI version: 3.5\nkvctl version: ")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_name_the_commands(shell: str) -> None:
    code, out, _ = run("completion", shell)
    assert code == 0
    assert "keep-alive" in out


def test_the_bash_completion_completes() -> None:
    script = run("completion", "bash")[1]
    script += '\nCOMP_WORDS=(kvctl lease gr); COMP_CWORD=2; _kvctl; echo "${COMPREPLY[@]}"\n'
    done = subprocess.run(["bash", "-c", script], capture_output=True, check=True)
    assert done.stdout == b"grant\n"


def test_completion_of_an_unknown_shell_is_refused() -> None:
    assert run("completion", "csh")[0] == 128


def test_our_own_environment_wins_and_gives_way_to_flags() -> None:
    environ = {"KVCTL_ENDPOINTS": "127.0.0.1:1", "KVCTL_COMMAND_TIMEOUT": "1ms", "ETCDCTL_COMMAND_TIMEOUT": "1h"}
    assert run("get", "a", environ=environ)[0] == 1
    assert run("get", "a", "--command-timeout=2ms", environ={**environ, "ETCDCTL_COMMAND_TIMEOUT": ""})[0] == 1


def test_a_conflict_of_etcdctl_environment_and_flag_is_refused() -> None:
    code, _, err = run("get", "a", "--endpoints=127.0.0.1:1", environ={"ETCDCTL_ENDPOINTS": "127.0.0.1:2"})
    assert code == 1
    assert "ETCDCTL_ENDPOINTS is shadowed by corresponding command-line flag" in err


@pytest.mark.parametrize(
    ("text", "address", "secure"),
    [
        ("127.0.0.1:1", ("127.0.0.1", 1), False),
        ("http://host:2/", ("host", 2), False),
        ("https://[::1]:3", ("::1", 3), True),
        ("unix:///run/x", "/run/x", False),
        ("noport", None, False),
    ],
)
def test_endpoints(text: str, address: object, secure: bool) -> None:
    target = Target(text, False)
    assert (target.address, target.secure) == (address, secure)


def test_errors_that_are_not_etcds_name_their_code() -> None:
    assert str(CallError(13, "boom")) == "rpc error: code = Internal desc = boom"
    assert str(CallError(5, "etcdserver: requested lease not found")) == "etcdserver: requested lease not found"


def test_startup_imports_neither_event_loop_nor_tls() -> None:
    """What a command imports is what it costs: these are the expensive ones."""
    code = (
        "import sys, recipes.ctl.get, recipes.ctl.printers.simple; print(sorted({'asyncio', 'ssl'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=CLEAN_ENVIRON, check=True)
    assert done.stdout == b"[]\n"


def test_output_into_a_closed_pipe_ends_quietly() -> None:
    command = f"{sys.executable} -m recipes.ctl help | true"
    done = subprocess.run(["bash", "-c", command], capture_output=True, env=CLEAN_ENVIRON, check=True)
    assert done.stderr == b""
