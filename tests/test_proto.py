"""The committed modules are those that the ``.proto`` files give."""

from __future__ import annotations

from pathlib import Path

from kvserver.proto.generate import HERE, generate


def test_the_generated_modules_are_up_to_date(tmp_path: Path) -> None:
    fresh = {path.name: path.read_text() for path in generate(tmp_path)}
    committed = {path.name: path.read_text() for path in HERE.glob("*_pb2.py*")}
    assert sorted(fresh) == sorted(committed)
    stale = [name for name, text in fresh.items() if text != committed[name]]
    assert not stale, "run make proto"
