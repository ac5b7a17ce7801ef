"""The pages that promise to be executed are executed: every Python block, with the output printed below it."""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import re
from collections.abc import Awaitable
from pathlib import Path

import pytest

from recipes.testing import EmbeddedNode

DOCS = Path(__file__).resolve().parents[2] / "docs"
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def steps(page: Path) -> list[tuple[str, str, int]]:
    """Answer (code, expected output, line) of each Python block; a text block belongs to the block before it."""
    found: list[tuple[str, str, int]] = []
    text = page.read_text()
    for match in BLOCK.finditer(text):
        if match[1] == "python":
            found.append((match[2], "", text[: match.start()].count("\n") + 2))
        else:
            code, _, line = found[-1]
            found[-1] = (code, match[2], line)
    return found


async def execute(code: str, line: int, page: Path, names: dict[str, object]) -> None:
    tree = ast.parse(code)
    ast.increment_lineno(tree, line - 1)
    compiled = compile(tree, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    outcome = eval(compiled, names)
    if inspect.iscoroutine(outcome):
        running: Awaitable[object] = outcome
        await running


@pytest.mark.asyncio
@pytest.mark.parametrize("name", ["getting-started.md"])
async def test_the_page_works_as_printed(name: str) -> None:
    page = DOCS / name
    names: dict[str, object] = {}
    found = steps(page)
    assert len(found) > 5
    async with EmbeddedNode() as node:
        for code, expected, line in found:
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                await execute(code.replace("127.0.0.1:2379", node.endpoint), line, page, names)
            assert output.getvalue() == expected, f"{name}, line {line}"


def test_the_readmes_lock_example_is_the_documentations() -> None:
    readme = (DOCS.parent / "README.md").read_text()
    example = BLOCK.search((DOCS / "index.md").read_text())
    assert example is not None
    assert example[2] in readme
