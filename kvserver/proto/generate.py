"""Generates the ``*_pb2`` modules and their stubs from the ``.proto`` files beside this one.

Run it as ``python -m kvserver.proto.generate``; it needs the ``dev`` extra (grpcio-tools, mypy-protobuf).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
DEFAULT_POOL_IMPORT = "from google.protobuf import descriptor_pool as _descriptor_pool"
OWN_POOL_IMPORT = "from kvserver.proto import pool as _descriptor_pool"


def generate(target: Path) -> list[Path]:
    """Write the generated modules and stubs below ``target`` and answer their paths.

    Raises:
        RuntimeError: protoc failed, with what it printed, or its output no longer has the expected shape.
    """
    sources = sorted(path.relative_to(ROOT).as_posix() for path in HERE.glob("*.proto"))
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        f"--proto_path={ROOT}",
        f"--python_out={target}",
        f"--mypy_out=quiet:{target}",
        f"--plugin=protoc-gen-mypy={Path(sys.executable).parent / 'protoc-gen-mypy'}",
        *sources,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"protoc failed with exit code {done.returncode}:\n{done.stderr}")
    written = sorted(target.glob("kvserver/proto/*_pb2.py*"))
    for path in written:
        text = path.read_text()
        if path.suffix == ".py":
            if DEFAULT_POOL_IMPORT not in text:
                raise RuntimeError(f"{path.name}: protoc's output changed its shape: no line {DEFAULT_POOL_IMPORT!r}")
            text = text.replace(DEFAULT_POOL_IMPORT, OWN_POOL_IMPORT)
            path.write_text(text)
    return written


def main() -> None:
    """Regenerate in place."""
    with tempfile.TemporaryDirectory() as directory:
        for path in generate(Path(directory)):
            (HERE / path.name).write_text(path.read_text())
            print(f"wrote kvserver/proto/{path.name}")


if __name__ == "__main__":
    main()
