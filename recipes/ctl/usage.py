"""Help texts, laid out as etcdctl's: sections, and columns aligned by tabs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from kvserver.version import ETCD_CLUSTER_VERSION, ETCD_VERSION
from recipes.ctl.commands import Command
from recipes.ctl.flags import BOOL, Flag

TAB = 8


def usage(command: Command) -> str:
    """Answer the help of a command."""
    root = command
    while root.parent is not None:
        root = root.parent
    inner = command.path[len(root.path) + 1 :] or command.name
    lines = ["NAME:", f"\t{inner} - {command.short}", "", "USAGE:", f"\t{_use_line(command)}"]
    if command.parent is None:
        lines += ["", "VERSION:", f"\t{ETCD_VERSION}"]
    if command.children:
        lines += ["", "API VERSION:", f"\t{ETCD_CLUSTER_VERSION.rpartition('.')[0]}", "", "", "COMMANDS:"]
        lines += _children(command, "")
    if command.long:
        lines += ["", "DESCRIPTION:", *(f"\t{line}" for line in command.long.split("\n"))]
    lines += ["", "OPTIONS:", *_flags(command.local_flags())]
    inherited = command.inherited_flags()
    if inherited:
        lines += ["", "GLOBAL OPTIONS:", *_flags(inherited)]
    return align([*lines, ""])


def _use_line(command: Command) -> str:
    above = f"{command.parent.path} " if command.parent is not None else ""
    return f"{above}{command.use} [flags]"


def _children(command: Command, above: str) -> Iterator[str]:
    for child in sorted(command.children, key=lambda child: child.name):
        if child.run:
            yield f"\t{above}{child.name}\t{child.short}"
        yield from _children(child, f"{above}{child.name} ")


def _flags(flags: Iterable[Flag]) -> Iterator[str]:
    for flag in flags:
        short = f"  -{flag.short}, " if flag.short else "      "
        value = f"[={flag.default_text()}]" if flag.kind == BOOL else f"={flag.default_text()}"
        yield f"{short}--{flag.name}{value}\t{flag.usage}"


def align(lines: list[str]) -> str:
    """Align the tab-separated cells of neighbouring lines, filling with tabs."""
    rows = [line.split("\t") for line in lines]
    out: list[str] = []
    _align_block(rows, 0, len(rows), [], out)
    return "".join(f"{line}\n" for line in out)


def _align_block(rows: list[list[str]], start: int, end: int, widths: list[int], out: list[str]) -> None:
    """Lay out ``rows[start:end]``, whose first columns are as wide as ``widths``."""
    column = len(widths)
    index = start
    while index < end:
        if column >= len(rows[index]) - 1:
            out.append(_line(rows[index], widths))
            index += 1
            continue
        last = index
        width = 0
        while last < end and column < len(rows[last]) - 1:
            width = max(width, len(rows[last][column]) + 1)
            last += 1
        _align_block(rows, index, last, [*widths, -(-width // TAB) * TAB], out)
        index = last


def _line(cells: list[str], widths: list[int]) -> str:
    parts = []
    for index, cell in enumerate(cells[:-1]):
        parts.append(cell + "\t" * -(-(widths[index] - len(cell)) // TAB))
    return "".join(parts) + cells[-1]
