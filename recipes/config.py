"""Configuration that changes while the program runs, and is always whole and valid.

Keys: one document at ``<key>`` (JSON, YAML or TOML), or with ``tree=True`` a key per field below ``<key>/``, nested by
slashes, with texts as values.

Everything is read at one revision, parsed, validated against the model, and only then swapped in; ``current`` is
never half of anything. What does not parse or validate is refused, counted and reported, and the last good
configuration stays in force. Callbacks run on a task of their own, in order, and may call the client.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import random
import tomllib
from collections import deque
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Generic, Literal, TypeAlias, TypeVar

import pydantic
import yaml

from kvserver.proto import kv_pb2
from recipes.client.client import Client
from recipes.client.keys import to_bytes, to_text
from recipes.client.txn import ModRevision, Put
from recipes.errors import ClientError, ConfigConflictError, ConfigInvalidError
from recipes.mirror import Change, Mirror

logger = logging.getLogger(__name__)

Model = TypeVar("Model")
Format: TypeAlias = Literal["json", "yaml", "toml"]
Callback: TypeAlias = Callable[..., Awaitable[None] | None]
Tree: TypeAlias = "dict[str, Tree | str]"

RESYNC_SECONDS = 300.0
"""How often everything is read anew, as a belt to the watch's braces."""


class HotConfig(Generic[Model]):
    """A configuration kept current.

    Args:
        client: The client.
        key: The document's key, or with ``tree`` what the fields' keys begin with.
        model: A pydantic model or a dataclass; what ``current`` is an instance of.
        format: How the document is written; by default what the key ends with (``.yaml``, ``.toml``), else JSON.
        tree: A key per field instead of one document.
        default: In force while there is no configuration; without one, starting requires a valid one.
        debounce: Seconds without further change to wait for before applying, so that a burst is applied once.
        debounce_max: Seconds after which a burst is applied though it goes on.
        resync: Seconds between full readings.

    Attributes:
        refused: How many configurations were refused since the start.
        last_error: Why the last one was refused; None when the newest is in force.

    ::

        async with HotConfig(kv, "config/app", model=Settings) as config:
            config.current.pool_size

            @config.on_change("pool_size")
            def resize(old: int, new: int) -> None: ...
    """

    def __init__(
        self,
        client: Client,
        key: str,
        *,
        model: type[Model],
        format: Format | None = None,
        tree: bool = False,
        default: Model | None = None,
        debounce: float = 0.0,
        debounce_max: float = 1.0,
        resync: float = RESYNC_SECONDS,
    ) -> None:
        if not key:
            raise ValueError("the key is empty")
        self.refused = 0
        self.last_error: ConfigInvalidError | None = None
        self._client = client
        self._key = key
        self._tree = tree
        self._format: Format = format if format is not None else _format_of(key)
        self._adapter: pydantic.TypeAdapter[Model] = pydantic.TypeAdapter(model)
        self._model_name = getattr(model, "__name__", str(model))
        self._default = default
        self._debounce = debounce
        self._debounce_max = debounce_max
        self._resync = resync
        self._rng = random.Random()
        self._current: Model | None = None
        self._version = 0
        self._applied_raw: dict[bytes, bytes] | None = None
        self._callbacks: list[tuple[str | None, Callback]] = []
        self._invalid_callbacks: list[Callable[[ConfigInvalidError], None]] = []
        self._changes: deque[tuple[Model, Model]] = deque()
        self._changed_event = asyncio.Event()
        self._waiters: set[asyncio.Future[None]] = set()
        self._burst_since: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: list[asyncio.Task[None]] = []
        prefix = to_bytes(key) + b"/" if tree else to_bytes(key)
        self._cut = len(client.namespace) + len(prefix)
        self._mirror = Mirror(
            client, prefix, on_change=self._on_mirror_change, on_failed=self._on_mirror_failed, single=not tree
        )

    # reading

    @property
    def current(self) -> Model:
        """The configuration in force: whole, valid, not to be modified.

        Raises:
            RuntimeError: it was not opened.
        """
        if self._current is None:
            raise RuntimeError('the configuration is not open: "async with HotConfig(...)" or "await config.open()"')
        return self._current

    @property
    def version(self) -> int:
        """The revision at which the configuration in force was written; 0 for the default."""
        return self._version

    @property
    def stale_seconds(self) -> float:
        """For how long the configuration has been out of touch with the servers; 0 while it is in touch."""
        return self._mirror.stale_seconds

    async def wait_for(self, condition: Callable[[Model], bool], *, timeout: float | None = None) -> Model:
        """Wait until a configuration is in force for which ``condition`` holds; answer it.

        Args:
            condition: What to wait for.
            timeout: Seconds to wait; for ever when None.

        Raises:
            TimeoutError: it did not come in time.
        """
        await self._wait(lambda: condition(self.current), timeout)
        return self.current

    async def wait_refused(self, count: int = 1, *, timeout: float | None = None) -> ConfigInvalidError:
        """Wait until at least ``count`` configurations have been refused; answer the last error."""
        await self._wait(lambda: self.refused >= count and self.last_error is not None, timeout)
        assert self.last_error is not None
        return self.last_error

    async def _wait(self, holds: Callable[[], bool], timeout: float | None) -> None:
        async with asyncio.timeout(timeout):
            while not holds():
                waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
                self._waiters.add(waiter)
                try:
                    await waiter
                finally:
                    self._waiters.discard(waiter)

    def on_change(self, field: str | None = None) -> Callable[[Callback], Callback]:
        """Have a function called with ``(old, new)`` after each swap that changes a field.

        It may be ``async``. Functions run one after the other on a task of their own, in the order of the swaps.

        Args:
            field: The field, dotted for nested ones (``"db.pool_size"``); None for the whole configuration.
        """

        def register(callback: Callback) -> Callback:
            self._callbacks.append((field, callback))
            return callback

        return register

    def on_invalid(self, callback: Callable[[ConfigInvalidError], None]) -> Callable[[ConfigInvalidError], None]:
        """Have ``callback(error)`` called when a configuration is refused; usable as a decorator. It must not block."""
        self._invalid_callbacks.append(callback)
        return callback

    # writing

    async def publish(self, value: Model, *, expect_version: int | None = None, timeout: float | None = None) -> int:
        """Validate and store a configuration; answer its version.

        Args:
            value: The new configuration.
            expect_version: The version that it replaces, the one in force by default; 0 for "there is none".
            timeout: Deadline in seconds.

        Raises:
            ConfigInvalidError: it does not fit the model.
            ConfigConflictError: somebody else stored another version meanwhile.
            OutcomeUnknownError: the answer was lost.
        """
        if self._tree:
            raise TypeError("publish() stores documents; write the keys of a tree in one kv.txn(...)")
        plain = self._adapter.dump_python(value, mode="json")
        document = self._write(plain)
        self._parse({b"": document})
        expected = self._version if expect_version is None else expect_version
        result = await self._client.txn(
            when=[ModRevision(self._key) == expected], then=[Put(self._key, document)], timeout=timeout
        )
        if not result:
            raise ConfigConflictError(
                f"{self._key} is no longer at version {expected}: somebody else changed it; read it and try again"
            )
        return result.revision

    def _write(self, plain: object) -> bytes:
        if self._format == "yaml":
            return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True).encode()
        if self._format == "toml":
            raise TypeError("publish() writes JSON and YAML; write TOML documents with kv.put(...)")
        return pydantic.TypeAdapter(object).dump_json(plain, indent=2)

    # applying

    def _parse(self, raw: dict[bytes, bytes]) -> Model:
        """Answer the validated configuration.

        Raises:
            ConfigInvalidError: it does not parse or validate; carries no secrets, only places and reasons.
        """
        try:
            if self._tree:
                return self._adapter.validate_strings(_nest(raw))
            document = raw[b""]
            if self._format == "json":
                return self._adapter.validate_json(document)
            if self._format == "yaml":
                return self._adapter.validate_python(yaml.safe_load(document))
            return self._adapter.validate_python(tomllib.loads(document.decode()))
        except pydantic.ValidationError as error:
            reason = "; ".join(
                f"{'.'.join(map(str, line['loc'])) or 'document'}: {line['msg']}"
                for line in error.errors(include_url=False, include_input=False, include_context=False)
            )
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark is not None else ""
            reason = f"not YAML{place}: {getattr(error, 'problem', None) or type(error).__name__}"
        except (ValueError, TypeError) as error:
            reason = str(error)
        except Exception as error:  # a validator of the application's failed in its own way
            reason = f"{type(error).__name__}: {error}"
        raise ConfigInvalidError(
            f"{self._key} is no valid {self._model_name}: {reason}; the last good configuration stays", reason=reason
        )

    def _on_mirror_change(self, changes: list[Change]) -> None:
        if self._current is None:
            return  # the first listing; open() applies it
        loop = asyncio.get_running_loop()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._debounce <= 0:
            self._apply()
            return
        if self._burst_since is None:
            self._burst_since = loop.time()
        delay = min(self._debounce, max(0.0, self._burst_since + self._debounce_max - loop.time()))
        self._timer = loop.call_later(delay, self._apply)

    def _on_mirror_failed(self, error: ClientError) -> None:
        logger.error("configuration %s is no longer followed: %s", self._key, error)

    def _apply(self) -> None:
        """Parse what the mirror has, all of one revision, and swap it in or refuse it."""
        self._timer = None
        self._burst_since = None
        state = self._mirror.state
        raw = {key[self._cut :]: kv.value for key, kv in state.items()}
        if raw == self._applied_raw:  # back to what is in force
            self._version = _newest(state)
            self.last_error = None
            self._wake()
            return
        try:
            if raw:
                new = self._parse(raw)
            elif self._default is not None:
                new = self._default
            else:
                raise ConfigInvalidError(
                    f"there is no configuration at {self._key}: store one, or give default=", reason="it does not exist"
                )
        except ConfigInvalidError as error:
            error.mod_revision = _newest(state)
            if self._current is None:
                raise
            self._refuse(error)
            return
        old, self._current = self._current, new
        self._applied_raw = raw
        self._version = _newest(state)
        self.last_error = None
        if old is not None and old != new:
            logger.info("configuration %s: version %d is in force", self._key, self._version)
            self._changes.append((old, new))
            self._changed_event.set()
        self._wake()

    def _refuse(self, error: ConfigInvalidError) -> None:
        self.refused += 1
        self.last_error = error
        logger.error("configuration refused: %s", error)
        for callback in list(self._invalid_callbacks):
            try:
                callback(error)
            except Exception:
                logger.exception("configuration %s: an on_invalid callback failed", self._key)
        self._wake()

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _call_back(self) -> None:
        while True:
            await self._changed_event.wait()
            self._changed_event.clear()
            while self._changes:
                old, new = self._changes.popleft()
                for field, callback in list(self._callbacks):
                    before, after = (old, new) if field is None else (_field(old, field), _field(new, field))
                    if before == after:
                        continue
                    try:
                        outcome = callback(before, after)
                        if inspect.isawaitable(outcome):
                            await outcome
                    except Exception:
                        logger.exception("configuration %s: a callback for %s failed", self._key, field or "changes")

    async def _resync_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._resync * (0.5 + self._rng.random()))
            try:
                await self._mirror.resync()
            except ClientError as error:
                logger.info("configuration %s: %s", self._key, error)

    # life

    async def open(self) -> HotConfig[Model]:
        """Read the configuration and begin to follow it.

        Raises:
            ConfigInvalidError: there is none that is valid, and no default for when there is none.
            ClientError: the servers could not be asked.
        """
        try:
            await self._mirror.start()
            self._apply()
        except BaseException:
            await self._mirror.close()
            raise
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._call_back()), loop.create_task(self._resync_for_ever())]
        return self

    async def close(self) -> None:
        """Stop following; ``current`` stays as it is."""
        if self._timer is not None:
            self._timer.cancel()
        await self._mirror.close()
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def __aenter__(self) -> HotConfig[Model]:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


def _format_of(key: str) -> Format:
    if key.endswith((".yaml", ".yml")):
        return "yaml"
    return "toml" if key.endswith(".toml") else "json"


def _newest(state: dict[bytes, kv_pb2.KeyValue]) -> int:
    return max((kv.mod_revision for kv in state.values()), default=0)


def _nest(raw: dict[bytes, bytes]) -> Tree:
    """Answer keys with slashes as nested dictionaries.

    >>> _nest({b"db/host": b"h", b"size": b"3"})
    {'db': {'host': 'h'}, 'size': '3'}
    """
    root: Tree = {}
    for key in sorted(raw):
        *parents, name = to_text(key).split("/")
        node = root
        for parent in parents:
            child = node.setdefault(parent, {})
            if not isinstance(child, dict):
                raise ValueError(f"{to_text(key)}: {parent!r} is both a value and a group of fields")
            node = child
        if name in node:
            raise ValueError(f"{to_text(key)}: {name!r} is both a value and a group of fields")
        node[name] = raw[key].decode()
    return root


def _field(value: object, path: str) -> object:
    for name in path.split("."):
        value = value.get(name) if isinstance(value, dict) else getattr(value, name)
    return value
