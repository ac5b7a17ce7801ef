"""Golden interaction scripts: what comes out, message by message, is what the file says.

``REWRITE_SCRIPTS=1 pytest tests/raft/test_scripts.py`` writes the output as it is now into the files; read the diff.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.raft.script import Script

SCRIPTS = sorted((Path(__file__).parent / "scripts").glob("*.txt"))
REWRITE = os.environ.get("REWRITE_SCRIPTS") == "1"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_script(path: Path) -> None:
    expected = path.read_text()
    actual = Script().run(expected)
    if REWRITE:
        path.write_text(actual)
    else:
        assert actual == expected


def test_there_are_scripts() -> None:
    assert len(SCRIPTS) >= 20
