"""The harness that users test with."""

from __future__ import annotations

import pytest

from recipes.testing import EmbeddedNode

pytest_plugins = ["pytester"]


def test_a_node_without_a_loop() -> None:
    with EmbeddedNode() as node:
        assert node.endpoint.startswith("127.0.0.1:")
    with pytest.raises(RuntimeError, match="not running"):
        _ = node.endpoint


@pytest.mark.asyncio
async def test_a_node_as_an_async_context_manager() -> None:
    async with EmbeddedNode() as node, node.client(namespace="x/") as kv:
        await kv.put("k", "v")
        assert await kv.get("k") is not None


def test_fixtures(pytester: pytest.Pytester) -> None:
    pytester.makeconftest('pytest_plugins = ["recipes.testing.plugin"]')
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.asyncio
        @pytest.mark.parametrize("number", [1, 2])
        async def test_it(kv_node, kv, number):
            assert await kv.get("k") is None
            await kv.put("k", "v")
        """
    )
    result = pytester.runpytest_inprocess("-o", "asyncio_default_fixture_loop_scope=function")
    result.assert_outcomes(passed=2)
