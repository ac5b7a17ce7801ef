"""Exit codes, and the exception that ends a command with one of them."""

from __future__ import annotations

EXIT_SUCCESS = 0
EXIT_ERROR = 1
EXIT_BAD_CONNECTION = 2
EXIT_INVALID_INPUT = 3
"""What was read from stdin (txn, watch) makes no sense."""
EXIT_BAD_FEATURE = 4
"""A known flag with a value that is not supported."""
EXIT_INTERRUPTED = 5
EXIT_BAD_ARGS = 128


class CommandError(Exception):
    """Ends the command: ``Error: <text>`` on stderr, and the exit code.

    Args:
        code: The exit code.
        text: What stands after ``Error: ``; None for nothing at all.
    """

    def __init__(self, code: int, text: str | None) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


def bad_args(text: str) -> CommandError:
    """Answer the error for wrong arguments."""
    return CommandError(EXIT_BAD_ARGS, text)
