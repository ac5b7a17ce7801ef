"""The asyncio shell around the engine: carries out its orders on a real loop, clock and disk.

Everything happens on the loop thread but disk writes: one thread writes the log, another one snapshots. A lone proposal
is written on the loop thread itself, which saves two thread hops, as long as the disk has been answering fast; batches
and slow disks go to the thread. A failed write is final: nothing is acknowledged any more and the process has to end.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue

from kvserver import limits
from kvserver.errors import KvError, StartupError
from kvserver.node.crash_points import CrashPoints
from kvserver.node.engine import Engine, Persist, SnapshotOrder
from kvserver.node.monitor import Monitor
from kvserver.runtime import Clock
from kvserver.storage import Position, Snapshotter, StorageFailedError, Wal, WriteBatch

log = logging.getLogger(__name__)


class DiskThread:
    """The thread that writes the log; one batch at a time, in order."""

    def __init__(self, wal: Wal, loop: asyncio.AbstractEventLoop) -> None:
        self._wal = wal
        self._loop = loop
        self._queue: SimpleQueue[tuple[WriteBatch, Callable[[Position | StorageFailedError], None]] | None] = (
            SimpleQueue()
        )
        self._thread = threading.Thread(target=self._run, name="kvserver-wal", daemon=True)
        self._thread.start()

    def submit(self, batch: WriteBatch, done: Callable[[Position | StorageFailedError], None]) -> None:
        """Write a batch; ``done`` is called on the loop thread with its position, or the failure."""
        self._queue.put((batch, done))

    def close(self) -> None:
        """Finish what was submitted and end the thread."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            batch, done = item
            try:
                outcome: Position | StorageFailedError = self._wal.write(batch)
            except StorageFailedError as error:
                outcome = error
            try:
                self._loop.call_soon_threadsafe(done, outcome)
            except RuntimeError:
                log.debug("the loop was closed while the last write ran")
                return


class Runner:
    """Drives one engine."""

    def __init__(
        self,
        engine: Engine,
        wal: Wal,
        snapshotter: Snapshotter,
        *,
        segment_positions: list[tuple[int, Position]],
        clock: Clock,
        monitor: Monitor,
        tick_seconds: float,
        crash_points: CrashPoints | None = None,
        on_failure: Callable[[StartupError], None],
        flush: Callable[[], None] = lambda: None,
    ) -> None:
        self.engine = engine
        self._wal = wal
        self._snapshotter = snapshotter
        self._clock = clock
        self._tick_seconds = tick_seconds
        self._crash = crash_points or CrashPoints()
        self._on_failure = on_failure
        self.flush = flush
        self._loop = asyncio.get_running_loop()
        self._disk = DiskThread(wal, self._loop)
        self._snapshot_thread = ThreadPoolExecutor(1, thread_name_prefix="kvserver-snapshot")
        self._snapshot_task: asyncio.Task[None] | None = None
        self._ticker: asyncio.TimerHandle | None = None
        self._turn_scheduled = False
        self._work_scheduled = False
        self._failed = False
        self._idle: asyncio.Future[None] | None = None
        self._write_seconds = 0.0
        self._in_flight: Persist | None = None
        self._written_at = 0.0
        self._release_positions = segment_positions
        self._snapshot_positions: list[Position] = []
        self._monitor = monitor
        self.ready: asyncio.Future[None] = self._loop.create_future()
        """Done when this member serves: it leads, and has applied an entry of its term."""

    # -- life -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to tick and to run turns."""
        self.engine.machine.now = self._clock.monotonic()
        self._monitor.start()
        self._ticker = self._loop.call_later(self._tick_seconds, self._tick)
        self.engine.start()

    def wake(self) -> None:
        """Schedule a turn: all that arrives in this pass of the loop is handled in one."""
        if not self._turn_scheduled:
            self._turn_scheduled = True
            self._loop.call_soon(self._turn)

    async def stop(self) -> None:
        """Refuse new requests, finish the write under way, end the threads."""
        self.engine.stop()
        self._monitor.stop()
        if self._ticker is not None:
            self._ticker.cancel()
        if self._snapshot_task is not None:
            await self._snapshot_task
        if self._in_flight is not None and not self._failed:
            self._idle = self._loop.create_future()
            await self._idle
        await self._loop.run_in_executor(None, self._disk.close)
        self._snapshot_thread.shutdown()

    # -- turns ----------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        self._turn_scheduled = False
        if self._failed:
            return
        try:
            self._run_turn()
        except StorageFailedError as error:
            self._fail("the disk failed", error)
        except Exception as error:
            # Entries may have been handed out and not applied: going on would make this member differ from the log.
            log.exception("a turn of the engine failed")
            self._fail("applying the log failed", error)

    def _run_turn(self) -> None:
        engine = self.engine
        # What is applied in this turn was asked for before it: a lease never gets less than its full time.
        engine.machine.now = self._clock.monotonic()
        crash = self._crash
        while (output := engine.ready()) is not None:
            persist = output.persist
            if persist is not None:
                crash.reach("before_save")
                for record_type, payload in persist.records:
                    self._wal.append(record_type, payload)
                batch = self._wal.seal()
                if persist.ready is not None:
                    self._monitor.batch_entries.observe(len(persist.ready.entries))
                self._in_flight = persist
                self._written_at = self._clock.monotonic()
                if batch is not None:
                    self._monitor.wal_bytes += batch.payload_bytes
                if batch is None:
                    self._written(None)
                elif engine.pending_count <= 1 and self._write_seconds < limits.INLINE_WRITE_SECONDS_MAX:
                    self._written(self._wal.write(batch))
                else:
                    self._disk.submit(batch, self._written_by_thread)
            if output.snapshot is not None:
                self._snapshot_task = self._loop.create_task(self._save_snapshot(output.snapshot))
            crash.reach("after_save_before_apply")
            answers = engine.apply()
            for done, result in answers:
                try:
                    done(result)
                except Exception:
                    log.exception("an answer could not be given")
            if answers:
                crash.reach("after_answers")
        self.flush()
        if engine.has_work:
            self._schedule_work()
        if engine.reads_are_local and not self.ready.done():
            self.ready.set_result(None)

    def _schedule_work(self) -> None:
        if not self._work_scheduled:
            self._work_scheduled = True
            self._loop.call_soon(self._work)

    def _work(self) -> None:
        self._work_scheduled = False
        until = self._clock.monotonic() + limits.WORK_SLICE_SECONDS
        while more := self.engine.work():
            if self._clock.monotonic() >= until:
                break
        if more:
            self._schedule_work()

    def _tick(self) -> None:
        self._ticker = self._loop.call_later(self._tick_seconds, self._tick)
        self.engine.tick(self._clock.monotonic())

    # -- disk -----------------------------------------------------------------------------------------------------

    def _written_by_thread(self, outcome: Position | StorageFailedError) -> None:
        if isinstance(outcome, StorageFailedError):
            self._fail("the disk failed", outcome)
            return
        self._written(outcome)
        self._turn()

    def _written(self, position: Position | None) -> None:
        persist = self._in_flight
        assert persist is not None
        self._in_flight = None
        seconds = self._clock.monotonic() - self._written_at
        self._write_seconds += (seconds - self._write_seconds) * limits.INLINE_WRITE_WEIGHT
        self._monitor.fsync_seconds.observe(seconds)
        self._crash.reach("after_save")
        if position is not None:
            if persist.first_entry_index:
                self._note_position(persist.first_entry_index, position)
            if persist.marker_index:
                self._release_log(persist.marker_index)
        self.engine.persisted(persist)
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    def _note_position(self, first_index: int, position: Position) -> None:
        """Remember one (index, position) a segment: enough to know which segments a snapshot makes needless."""
        positions = self._release_positions
        if not positions or positions[-1][1].segment != position.segment:
            positions.append((first_index, position))

    def _release_log(self, snapshot_index: int) -> None:
        """Drop what only the snapshots before the previous one needed, now that the newest counts."""
        needed = None
        for first_index, position in self._release_positions:
            if first_index <= snapshot_index + 1:
                needed = position
        oldest = None
        if needed is not None:
            self._snapshot_positions.append(needed)
            if len(self._snapshot_positions) > 1:
                oldest = self._snapshot_positions.pop(0)
                segment = oldest.segment
                self._release_positions = [item for item in self._release_positions if item[1].segment >= segment]
        self._snapshot_thread.submit(self._release_before, oldest)

    def _release_before(self, position: Position | None) -> None:
        """On the snapshot thread: unlinking large files takes tens of milliseconds."""
        self._snapshotter.prune()
        if position is None:
            return
        try:
            self._wal.release_before(position)
        except StorageFailedError as error:
            log.warning("old log segments stay: %s", error)

    def _fail(self, what: str, error: Exception) -> None:
        """Stop for good: nothing is acknowledged any more, and the process has to end."""
        self._failed = True
        log.critical("%s, the member stops: %s", what, error)
        self.engine.stop()
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)
        self._on_failure(StartupError(f"{what}: {error}"))

    # -- snapshots ------------------------------------------------------------------------------------------------

    async def _save_snapshot(self, order: SnapshotOrder) -> None:
        """Save a snapshot: chunks are made on the loop, one a pass, compressed and written on a thread."""
        run = self._loop.run_in_executor
        thread = self._snapshot_thread
        started = self._clock.monotonic()
        try:
            writer = await run(thread, self._snapshotter.create, order.index, order.term)
            try:
                for chunk in order.chunks:
                    await run(thread, writer.write, chunk)
                info = await run(thread, writer.commit)
            except BaseException:
                await run(thread, writer.abort)
                raise
            self._crash.reach("after_snapshot_before_marker")
        except (StorageFailedError, OSError) as error:
            log.error("could not save the snapshot at index %d: %s", order.index, error)
            self.engine.snapshot_failed(KvError(f"snapshot failed: {error}"))
            return
        self._monitor.snapshot_seconds.observe(self._clock.monotonic() - started)
        log.info(
            "saved snapshot at index %d, %d bytes, in %.3f s",
            order.index,
            info.size_bytes,
            self._clock.monotonic() - started,
        )
        self.engine.snapshot_saved(order, info.size_bytes)
