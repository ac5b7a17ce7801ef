from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pydantic
import pytest

from recipes import Client, ConfigConflictError, ConfigInvalidError, HotConfig, Put
from recipes.testing import FaultProxy, compact
from tests.recipes.conftest import Connect

pytestmark = pytest.mark.asyncio

SECONDS = 15


class Database(pydantic.BaseModel):
    host: str = "localhost"
    pool_size: int = 5


class Settings(pydantic.BaseModel):
    pool_size: int = pydantic.Field(default=4, ge=1)
    name: str = "app"
    db: Database = Database()


@dataclass(frozen=True)
class Plain:
    size: int
    tags: list[str] = field(default_factory=list)


async def test_api_as_printed(kv: Client) -> None:
    await kv.put("config/app", '{"pool_size": 8}')
    async with HotConfig(kv, "config/app", model=Settings) as config:
        assert config.current.pool_size == 8
        resized = asyncio.get_running_loop().create_future()

        @config.on_change("pool_size")
        def resize(old: int, new: int) -> None:
            resized.set_result((old, new))

        put = await kv.put("config/app", '{"pool_size": 9}')
        assert await asyncio.wait_for(resized, SECONDS) == (8, 9)
        assert config.current.pool_size == 9
        assert config.version == put.revision


async def test_an_invalid_update_is_refused_and_the_last_good_one_stays(
    kv: Client, caplog: pytest.LogCaptureFixture
) -> None:
    await kv.put("config/app", '{"pool_size": 8, "name": "good"}')
    async with HotConfig(kv, "config/app", model=Settings) as config:
        errors: list[ConfigInvalidError] = []
        config.on_invalid(errors.append)
        good = config.current
        for count, bad in enumerate(('{"pool_size": 0}', '{"pool_size": "many"}', "{", "", "[]"), 1):
            put = await kv.put("config/app", bad)
            error = await config.wait_refused(count, timeout=SECONDS)
            assert config.current is good
            assert error.mod_revision == put.revision
        assert errors[0].reason == "pool_size: Input should be greater than or equal to 1"
        assert "config/app is no valid Settings: pool_size" in caplog.text
        assert "many" not in caplog.text  # values may be secrets
        await kv.put("config/app", '{"pool_size": 3}')
        await config.wait_for(lambda settings: settings.pool_size == 3, timeout=SECONDS)
        assert config.last_error is None
        assert config.refused == 5


class Fragile(pydantic.BaseModel):
    size: int = 0

    @pydantic.field_validator("size")
    @classmethod
    def check(cls, size: int) -> int:
        if size < 0:
            raise KeyError("a validator that fails in its own way")
        return size


async def test_a_failing_validator_hurts_nothing_else(kv: Client) -> None:
    await kv.put("c", '{"size": 1}')
    async with HotConfig(kv, "c", model=Fragile) as config, kv.watch("other") as events:
        await kv.put("c", '{"size": -1}')
        assert "KeyError" in (await config.wait_refused(timeout=SECONDS)).reason
        await kv.put("c", '{"size": 1}')  # back to what is in force
        await kv.put("other", "x")
        assert (await events.next(SECONDS)).text == "x"
        assert config.last_error is None
        await kv.put("c", '{"size": 2}')
        await config.wait_for(lambda settings: settings.size == 2, timeout=SECONDS)


async def test_deletion_keeps_the_last_good_one_or_goes_back_to_the_default(kv: Client) -> None:
    await kv.put("config/app", '{"pool_size": 8}')
    async with (
        HotConfig(kv, "config/app", model=Settings) as strict,
        HotConfig(kv, "config/app", model=Settings, default=Settings(name="default")) as lenient,
    ):
        await kv.delete("config/app")
        error = await strict.wait_refused(timeout=SECONDS)
        assert "no configuration" in str(error)
        assert strict.current.pool_size == 8
        await lenient.wait_for(lambda settings: settings.name == "default", timeout=SECONDS)


async def test_starting_without_a_valid_one(kv: Client) -> None:
    with pytest.raises(ConfigInvalidError, match="no configuration at config/app: store one, or give default="):
        await HotConfig(kv, "config/app", model=Settings).open()
    await kv.put("config/app", '{"pool_size": -1}')
    with pytest.raises(ConfigInvalidError, match="pool_size"):
        await HotConfig(kv, "config/app", model=Settings, default=Settings()).open()
    async with HotConfig(kv, "config/none", model=Settings, default=Settings()) as config:
        assert config.current == Settings()
        assert config.version == 0


@pytest.mark.parametrize(
    ("key", "document"),
    [
        ("c.yaml", "pool_size: 7\ndb: {host: h}\n"),
        ("c.yml", "{pool_size: 7, db: {host: h}}"),
        ("c.toml", 'pool_size = 7\n[db]\nhost = "h"\n'),
        ("c", '{"pool_size": 7, "db": {"host": "h"}}'),
    ],
)
async def test_formats(kv: Client, key: str, document: str) -> None:
    await kv.put(key, document)
    async with HotConfig(kv, key, model=Settings) as config:
        assert (config.current.pool_size, config.current.db.host) == (7, "h")
        await kv.put(key, ":\n :=")
        error = await config.wait_refused(timeout=SECONDS)
        assert error.reason


async def test_a_dataclass(kv: Client) -> None:
    await kv.put("c", '{"size": 3, "tags": ["x"]}')
    async with HotConfig(kv, "c", model=Plain) as config:
        assert config.current == Plain(3, ["x"])


async def test_a_tree_of_keys_is_read_at_one_revision(kv: Client) -> None:
    await kv.txn(then=[Put("c/pool_size", "7"), Put("c/db/host", "h"), Put("c/db/pool_size", "9")])
    async with HotConfig(kv, "c", model=Settings, tree=True) as config:
        assert (config.current.pool_size, config.current.db) == (7, Database(host="h", pool_size=9))
        seen: list[tuple[str, int]] = []
        done = asyncio.Event()

        @config.on_change()
        def note(old: Settings, new: Settings) -> None:
            seen.append((new.db.host, new.db.pool_size))
            if new.db.host == "h19":
                done.set()

        for number in range(20):
            await kv.txn(then=[Put("c/db/host", f"h{number}"), Put("c/db/pool_size", str(number))])
        await asyncio.wait_for(done.wait(), SECONDS)
        # Changes that come fast may be taken over together, but never half of one, and never an older one later.
        numbers = [number for _, number in seen]
        assert seen == [(f"h{number}", number) for number in numbers]
        assert numbers == sorted(set(numbers))
        await kv.put("c/db", "x")
        assert "both a value and a group" in (await config.wait_refused(timeout=SECONDS)).reason


async def test_callbacks_run_in_order_may_call_the_client_and_may_fail(
    kv: Client, caplog: pytest.LogCaptureFixture
) -> None:
    await kv.put("c", '{"pool_size": 1}')
    async with HotConfig(kv, "c", model=Settings) as config:
        log: list[str] = []
        done = asyncio.Event()

        @config.on_change("db.host")
        def unchanged(old: str, new: str) -> None:
            log.append("db")

        @config.on_change("pool_size")
        def fail(old: int, new: int) -> None:
            raise ZeroDivisionError

        @config.on_change("pool_size")
        async def call(old: int, new: int) -> None:
            await kv.put("seen", str(new))
            log.append(f"{old}->{new}")
            if new == 4:
                done.set()

        for size in (2, 3, 4):
            await kv.put("c", f'{{"pool_size": {size}}}')
        await asyncio.wait_for(done.wait(), SECONDS)
        assert log == ["1->2", "2->3", "3->4"]
        assert "a callback for pool_size failed" in caplog.text


async def test_a_burst_is_applied_once(kv: Client) -> None:
    await kv.put("c", '{"pool_size": 1}')
    async with HotConfig(kv, "c", model=Settings, debounce=0.1) as config:
        swaps: list[int] = []
        config.on_change("pool_size")(lambda old, new: swaps.append(new))
        for size in range(2, 12):
            await kv.put("c", f'{{"pool_size": {size}}}')
        await config.wait_for(lambda settings: settings.pool_size == 11, timeout=SECONDS)
        await kv.get("a round trip")
        assert swaps[-1:] == [11]
        assert len(swaps) < 10


async def test_publish(kv: Client, connect: Connect) -> None:
    other = await connect()
    async with (
        HotConfig(kv, "c", model=Settings, default=Settings()) as one,
        HotConfig(other, "c", model=Settings, default=Settings()) as two,
    ):
        version = await one.publish(Settings(pool_size=9))
        await two.wait_for(lambda settings: settings.pool_size == 9, timeout=SECONDS)
        await one.wait_for(lambda settings: settings.pool_size == 9, timeout=SECONDS)
        assert one.version == two.version == version
        await two.publish(Settings(pool_size=10))
        with pytest.raises(ConfigConflictError, match="no longer at version"):
            await one.publish(Settings(pool_size=11), expect_version=version)
        with pytest.raises(ConfigInvalidError):
            await two.publish(Settings.model_construct(pool_size=-1))
        await one.wait_for(lambda settings: settings.pool_size == 10, timeout=SECONDS)
    async with HotConfig(kv, "c.yaml", model=Settings, default=Settings()) as config:
        await config.publish(Settings(name="é"))
        item = await kv.get("c.yaml")
        assert item is not None
        assert "name: é" in item.text


async def test_outages_and_compaction(endpoint: str, namespace: str, connect: Connect) -> None:
    other = await connect()
    await other.put("c", '{"pool_size": 1}')
    async with (
        FaultProxy(endpoint) as proxy,
        Client(proxy.endpoint, namespace=namespace) as kv,
        HotConfig(kv, "c", model=Settings) as config,
    ):
        proxy.cut()
        await other.put("c", '{"pool_size": 2}')
        await other.put("c", '{"pool_size": 3}')
        await compact(other)
        assert config.current.pool_size == 1
        proxy.restore()
        await config.wait_for(lambda settings: settings.pool_size == 3, timeout=SECONDS)
        await other.put("c", '{"pool_size": 4}')
        await config.wait_for(lambda settings: settings.pool_size == 4, timeout=SECONDS)


async def test_the_full_reading_finds_what_the_watch_did_not(kv: Client) -> None:
    await kv.put("c", '{"pool_size": 1}')
    async with HotConfig(kv, "c", model=Settings, resync=0.05) as config:
        subscription = config._mirror._subscription
        assert subscription is not None
        subscription.close()  # the watch is silently dead
        await kv.put("c", '{"pool_size": 2}')
        await config.wait_for(lambda settings: settings.pool_size == 2, timeout=SECONDS)


async def test_misuse(kv: Client) -> None:
    config = HotConfig(kv, "c", model=Settings, default=Settings())
    with pytest.raises(RuntimeError, match="not open"):
        _ = config.current
    with pytest.raises(ValueError, match="empty"):
        HotConfig(kv, "", model=Settings)
    async with HotConfig(kv, "t", model=Settings, tree=True, default=Settings()) as tree:
        with pytest.raises(TypeError, match="documents"):
            await tree.publish(Settings())
