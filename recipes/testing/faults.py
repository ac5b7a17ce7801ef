"""Faults as functions: what goes wrong in the field, on demand."""

from __future__ import annotations

import asyncio

from kvserver.proto import rpc_pb2
from recipes.client.client import Client
from recipes.errors import LeaseNotFoundError
from recipes.session import Session

LOST_SECONDS_MAX = 10.0
"""How long :func:`expire_session` waits for the session to notice."""


async def expire_session(session: Session) -> None:
    """End a session's lease on the server, as if its TTL had passed, and wait until the session knows.

    Args:
        session: An open session.
    """
    try:
        await session.client.revoke_lease(session)
    except LeaseNotFoundError:
        pass  # it expired by itself meanwhile
    session.probe()
    async with asyncio.timeout(LOST_SECONDS_MAX):
        await session.lost.wait()


def pause_session(session: Session) -> None:
    """Stop renewing a session and telling its state, as if its process were stopped; see :func:`resume_session`.

    Its local clock runs on, as a stopped process's does.
    """
    if session._keeper is not None:
        session._hub().remove(session._keeper)


def resume_session(session: Session) -> None:
    """Let a paused session go on, as if its process were continued."""
    if session._keeper is not None:
        session._hub().add(session._keeper)


def drop_connection(client: Client, *, sessions: bool = True) -> None:
    """Cut a client's connection, as a network failure would; it reconnects by itself.

    Args:
        client: The client.
        sessions: Also cut the connection over which its sessions are renewed.
    """
    client._core.channel.drop()
    if sessions:
        for hub in (client._core._loop_keepalives, client._core._thread_keepalives):
            if hub is not None:
                hub.drop()


async def compact(client: Client) -> int:
    """Compact the store's history up to the present; answer the revision.

    A watch that is disconnected now and needs anything older will find its history gone.
    """
    request = rpc_pb2.RangeRequest(key=b"\0", count_only=True)
    revision = (await client.rpc.kv.range(request)).header.revision
    await client.compact(revision, physical=True)
    return revision
