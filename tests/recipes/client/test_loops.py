from __future__ import annotations

import asyncio

import pytest

from recipes import Client


def test_use_on_another_loop_says_so(endpoint: str) -> None:
    async def first() -> Client:
        kv = Client(endpoint)
        await kv.get("k")
        return kv

    async def second(kv: Client) -> None:
        with pytest.raises(RuntimeError, match="another event loop"):
            await kv.get("k")

    with asyncio.Runner() as one:
        kv = one.run(first())
        with asyncio.Runner() as two:
            two.run(second(kv))
        one.run(kv.close())
