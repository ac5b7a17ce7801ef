"""Asking for passwords: without echo on a terminal, as a line of standard input otherwise."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recipes.ctl.invocation import Invocation


def ask(invocation: Invocation, prompt: str) -> str:
    """Ask for a password; the prompt goes to standard output."""
    if invocation.stdin is getattr(sys.stdin, "buffer", None) and sys.stdin.isatty():
        from getpass import getpass

        return getpass(prompt, sys.stdout)
    invocation.write(prompt)
    answer = invocation.stdin.readline().rstrip(b"\n")
    invocation.line("")
    return answer.decode("utf-8", "surrogateescape")
