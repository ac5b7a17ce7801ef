"""Something held under a session: its token, its guard, its loss, and the body of a ``with`` that depends on it."""

from __future__ import annotations

import asyncio
from typing import Literal, TypeAlias

from recipes.client.clock import SessionState
from recipes.client.keys import to_text
from recipes.client.txn import Compare
from recipes.contender import Contender
from recipes.errors import SessionLostError
from recipes.session import LostEvent, Session

OnLost: TypeAlias = Literal["cancel", "event"]
"""What a loss does to the body: cancel it and raise, or only set ``lost``."""


class Held:
    """What is held; made by a recipe.

    Without fencing no distributed lock excludes a holder that was paused: it wakes up, believes, and writes. Put
    :meth:`guard` into the txns that write what the lock protects, or hand :attr:`fencing_token` to a store that refuses
    smaller tokens than it has seen.

    Attributes:
        session: What keeps it.
        lost: Set when it is lost: the session ended, or somebody deleted its key.
    """

    def __init__(self, contender: Contender, session: Session, *, what: str) -> None:
        self._contender = contender
        self._what = what
        self._given_up = False
        self.session = session
        self.lost = LostEvent(self._is_lost)
        session.add_listener(self._session_changed)
        contender.on_deleted(self.lost.set)

    def _is_lost(self) -> bool:
        return self._contender.deleted or self.session.state is SessionState.LOST

    def _session_changed(self, state: SessionState) -> None:
        if state is SessionState.LOST:
            self.lost.set()

    def _dismiss(self) -> None:
        """It is given up on purpose: nobody is to be told of a loss."""
        self._given_up = True
        self.session.remove_listener(self._session_changed)

    @property
    def key(self) -> str:
        """The key, below the client's namespace."""
        return to_text(self._contender.key)

    @property
    def fencing_token(self) -> int:
        """A number that grows with every holder: the create revision of the key."""
        return self._contender.token

    def guard(self) -> Compare:
        """Answer the condition that this is still held; a txn with it does nothing once it is lost.

        ::

            await kv.txn(when=[held.guard()], then=[Put("result", "...")])
        """
        return self._contender.guard()

    def check(self) -> None:
        """Raise if it is lost.

        Raises:
            SessionLostError: it is.
        """
        if self.lost.is_set():
            raise self.lost_error()

    def lost_error(self) -> SessionLostError:
        """Answer an error that says what was lost and why."""
        if self.session.state is SessionState.LOST:
            return SessionLostError(f"{self._what} is no longer held: {self.session.lost_error()}")
        return SessionLostError(f"{self._what} is no longer held: somebody deleted its key {self.key!r}")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._what}, fencing_token={self.fencing_token}, lost={self.lost.is_set()})"


class Body:
    """Ties the body of a ``with`` to something held: cancels it on loss, and turns that into an error.

    The cancellation is the body's own affair: it is taken back when the body is left, as ``asyncio.timeout`` does.
    """

    def __init__(self, held: Held) -> None:
        self._held = held
        self._task = asyncio.current_task()
        self._cancelling = self._task.cancelling() if self._task is not None else 0
        self._cancelled = False
        self._over = False
        held.lost.add_callback(self._cancel)

    def _cancel(self) -> None:
        if not self._over and not self._held._given_up and self._task is not None:
            self._cancelled = True
            self._task.cancel()

    async def leave(self, kind: type[BaseException] | None) -> None:
        """End the tie as the body is left with an exception of ``kind``, None for none.

        Raises:
            SessionLostError: it was lost, and the body has no other exception.
        """
        lost = self._held.lost.is_set() and not self._held._given_up
        self._over = True
        if self._cancelled and self._task is not None:
            delivered = kind is not None and issubclass(kind, asyncio.CancelledError)
            from_outside = self._task.uncancel() > self._cancelling
            if not delivered:
                # The body ended before the cancellation reached it, or swallowed it; it must not hit what comes next.
                try:
                    await asyncio.sleep(0)
                except asyncio.CancelledError:
                    if from_outside:
                        raise
            elif from_outside:
                return
            elif delivered:
                kind = None
        if kind is None and lost:
            raise self._held.lost_error()
