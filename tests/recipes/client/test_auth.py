"""Authentication, against a genuine etcd of its own: our node has none yet."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kvserver.errors import Code
from kvserver.proto import auth_pb2, rpc_pb2
from recipes import Client, ClientError, Lock
from tests.recipes.conftest import EtcdProcess

pytestmark = pytest.mark.asyncio


@pytest.fixture
def own_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdProcess]:
    process = EtcdProcess(tmp_path_factory.mktemp("etcd-auth"))
    yield process
    process.stop()


async def test_user_and_password(own_etcd: EtcdProcess) -> None:
    async with Client(own_etcd.endpoint) as kv:
        auth = kv.rpc.auth
        await auth.user_add(rpc_pb2.AuthUserAddRequest(name="root", password="r"))
        await auth.user_grant_role(rpc_pb2.AuthUserGrantRoleRequest(user="root", role="root"))
        await auth.role_add(rpc_pb2.AuthRoleAddRequest(name="app"))
        permission = auth_pb2.Permission(permType=auth_pb2.Permission.READWRITE, key=b"app/", range_end=b"app0")
        await auth.role_grant_permission(rpc_pb2.AuthRoleGrantPermissionRequest(name="app", perm=permission))
        await auth.user_add(rpc_pb2.AuthUserAddRequest(name="alice", password="a"))
        await auth.user_grant_role(rpc_pb2.AuthUserGrantRoleRequest(user="alice", role="app"))
        await auth.auth_enable(rpc_pb2.AuthEnableRequest())
        with pytest.raises(ClientError) as refused:
            await kv.get("app/k")
        assert refused.value.code in (Code.INVALID_ARGUMENT, Code.PERMISSION_DENIED)
    async with Client(own_etcd.endpoint, user="alice", password="wrong") as kv:
        with pytest.raises(ClientError, match="authentication failed"):
            await kv.get("app/k")
    async with Client(own_etcd.endpoint, user="alice", password="a", namespace="app/") as kv:
        await kv.put("k", "v")
        async with kv.watch("k") as events, Lock(kv, "jobs"):
            await kv.put("k", "w")
            assert (await events.next(10)).text == "w"
            kv._core.channel._metadata = ((b"token", b"stale.1"),)  # as after a restart of the server
            item = await kv.get("k")
            assert item is not None
            await kv.put("k", "x")
            assert (await events.next(10)).text == "x"
        with pytest.raises(ClientError) as denied:
            await Client("", _core=kv._core).get("other")
        assert denied.value.code == Code.PERMISSION_DENIED
        forbidden = Client("", _core=kv._core).watch("other")
        with pytest.raises(ClientError) as denied:
            await forbidden.next(10)
        assert denied.value.code == Code.PERMISSION_DENIED
