"""``snapshot save``: a copy of one member's data in a file."""

from __future__ import annotations

import os

from kvserver.proto import rpc_pb2
from recipes.ctl.exits import EXIT_INTERRUPTED, CommandError, bad_args
from recipes.ctl.invocation import Invocation
from recipes.ctl.transport import CallError


def save(invocation: Invocation) -> None:
    """Write the snapshot beside its final place, sync it, and rename it."""
    if len(invocation.words) != 1:
        raise bad_args("snapshot save expects one argument")
    path = invocation.words[0]
    client = invocation.client()
    if len(client.endpoints) != 1:
        raise bad_args(f"snapshot must be requested to one selected node, not multiple [{' '.join(client.endpoints)}]")
    part = f"{path}.part"
    try:
        # Readable by its owner alone: it holds everything.
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    except OSError as error:
        reason = f"open {part}: {(error.strerror or str(error)).lower()}"
        raise CommandError(EXIT_INTERRUPTED, f"could not open {part} ({reason})") from None
    try:
        with open(descriptor, "wb") as file:
            stream = client.stream("Maintenance/Snapshot")
            stream.send(rpc_pb2.SnapshotRequest())
            stream.end_sending()
            while (message := client.receive(stream)) is not None:
                file.write(rpc_pb2.SnapshotResponse.FromString(message).blob)
            file.flush()
            os.fsync(file.fileno())
        os.rename(part, path)
    except (CallError, OSError) as error:
        os.unlink(part)
        raise CommandError(EXIT_INTERRUPTED, str(error)) from None
    invocation.line(f"Snapshot saved at {path}")
