"""``completion``: shell scripts made from the tree of commands. etcdctl 3.5.1 has none; later ones have."""

from __future__ import annotations

from collections.abc import Iterator

from recipes.ctl.commands import Command
from recipes.ctl.exits import bad_args
from recipes.ctl.invocation import Invocation

SHELLS = ("bash", "zsh", "fish")


def run(invocation: Invocation) -> None:
    """Print the script of a shell."""
    if len(invocation.words) != 1 or invocation.words[0] not in SHELLS:
        raise bad_args("completion command needs 1 argument: bash, zsh or fish")
    root = invocation.command.parent
    assert root is not None
    shell = invocation.words[0]
    invocation.write(_fish(root) if shell == "fish" else _bash(root, zsh=shell == "zsh"))


def _walk(command: Command) -> Iterator[Command]:
    yield command
    for child in command.children:
        yield from _walk(child)


def _words(command: Command) -> list[str]:
    words = [child.name for child in command.children]
    for flag in (*command.local_flags(), *command.inherited_flags()):
        words.append(f"--{flag.name}")
    return sorted(words)


def _bash(root: Command, *, zsh: bool) -> str:
    name = root.name
    lines = [f"# {name} completion for {'zsh' if zsh else 'bash'}"]
    if zsh:
        lines += ["autoload -U +X compinit && compinit", "autoload -U +X bashcompinit && bashcompinit"]
    lines += [
        f"_{name}() {{",
        '  local path="" word',
        '  for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do',
        '    case "$path $word" in',
    ]
    for command in _walk(root):
        if command is not root:
            inner = command.path[len(name) :]
            lines.append(f'      "{inner}") path="{inner}" ;;')
    lines += ["    esac", "  done", '  case "$path" in']
    for command in _walk(root):
        words = " ".join(_words(command))
        reply = f'COMPREPLY=($(compgen -W "{words}" -- "${{COMP_WORDS[COMP_CWORD]}}"))'
        lines.append(f'    "{command.path[len(name) :]}") {reply} ;;')
    lines += ["  esac", "}", f"complete -o default -F _{name} {name}", ""]
    return "\n".join(lines)


def _fish(root: Command) -> str:
    name = root.name
    lines = [f"# {name} completion for fish", f"complete -c {name} -f"]
    for command in _walk(root):
        seen = command.path.split(" ")[1:]
        children = " ".join(child.name for child in command.children)
        condition = "; and ".join(f"__fish_seen_subcommand_from {word}" for word in seen)
        if not seen:
            condition = "__fish_use_subcommand"
        elif children:
            condition += f"; and not __fish_seen_subcommand_from {children}"
        for child in command.children:
            short = child.short.replace("'", "\\'")
            lines.append(f"complete -c {name} -n '{condition}' -a {child.name} -d '{short}'")
        if command is root:
            condition = ""
        for flag in command.local_flags():
            usage = flag.usage.replace("'", "\\'")
            where = f" -n '{condition}'" if condition else ""
            short_name = f" -s {flag.short}" if flag.short else ""
            lines.append(f"complete -c {name}{where} -l {flag.name}{short_name} -d '{usage}'")
    return "\n".join([*lines, ""])
