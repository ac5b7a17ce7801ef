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
from functools import partial
from queue import SimpleQueue

from kvserver import limits
from kvserver.errors import KvError, StartupError
from kvserver.node.crash_points import CrashPoints
from kvserver.node.engine import Engine, Persist, SnapshotOrder
from kvserver.node.monitor import Monitor
from kvserver.runtime import Clock
from kvserver.storage import Position, SnapshotInfo, Snapshotter, StorageFailedError, Wal, WriteBatch

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
            except Exception as error:
                log.exception("the log thread failed")
                outcome = StorageFailedError(f"the write-ahead log cannot be written: {error!r}")
            try:
                self._loop.call_soon_threadsafe(done, outcome)
            except RuntimeError:
                log.debug("the loop was closed while the last write ran")
                return


class Runner:
    """Drives one engine.

    Args:
        engine: what to drive.
        wal: its log, replayed.
        snapshotter: its snapshots.
        segment_positions: the first entry's index and the position of each log segment.
        clock: monotonic time.
        monitor: gets the measurements.
        tick_seconds: the engine's tick.
        slow_apply_seconds: applying for longer than this is worth a warning.
        crash_points: where a test wants the process to die.
        on_failure: called once when the member had to stop by itself.
        flush: called at the end of a turn, to send what it answered.
    """

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
        slow_apply_seconds: float,
        crash_points: CrashPoints | None = None,
        on_failure: Callable[[StartupError], None],
        flush: Callable[[], None] = lambda: None,
    ) -> None:
        self.engine = engine
        self._wal = wal
        self._snapshotter = snapshotter
        self._clock = clock
        self._tick_seconds = tick_seconds
        self._slow_apply_seconds = slow_apply_seconds
        self._crash = crash_points or CrashPoints()
        self._on_failure = on_failure
        self._flush = flush
        self._loop = asyncio.get_running_loop()
        self._disk = DiskThread(wal, self._loop)
        self._snapshot_thread = ThreadPoolExecutor(1, thread_name_prefix="kvserver-snapshot")
        self._snapshot_task: asyncio.Task[None] | None = None
        self._ticker: asyncio.TimerHandle | None = None
        self._turn_scheduled = False
        self._work_scheduled = False
        self._failed = False
        self._stopping = False
        self._drained: asyncio.Event | None = None
        self._idle: asyncio.Future[None] | None = None
        self._write_seconds = 0.0
        self._in_flight: Persist | None = None
        self._written_at = 0.0
        self._release_positions = segment_positions
        self._snapshot_positions: list[Position] = []
        self._monitor = monitor
        self.ready: asyncio.Future[None] = self._loop.create_future()
        """Done when this member serves: it leads, and has applied all that was committed before; fails if it cannot."""

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

    async def drain(self, grace_seconds: float) -> None:
        """Refuse new requests, and let those under way end for at most ``grace_seconds``."""
        self.engine.drain()
        if self._failed or self._ticker is None or self.engine.is_drained:
            return
        self._drained = asyncio.Event()
        try:
            async with asyncio.timeout(grace_seconds):
                await self._drained.wait()
        except TimeoutError:
            log.warning("requests did not end within %.1f s of the stop", grace_seconds)

    async def stop(self) -> None:
        """Refuse new requests, finish the write under way, give up a snapshot, end the threads."""
        self._stopping = True
        self.engine.stop()
        self._monitor.stop()
        if self._ticker is not None:
            self._ticker.cancel()
        if self._snapshot_task is not None:
            await self._snapshot_task
        if self._in_flight is not None and not self._failed:
            self._idle = self._loop.create_future()
            await self._idle
        await self._loop.run_in_executor(None, self._end_threads)

    def _end_threads(self) -> None:
        self._disk.close()
        self._snapshot_thread.shutdown()

    # -- turns ----------------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        self._turn_scheduled = False
        if self._failed or self._stopping:
            return
        try:
            self._run_turn()
        except Exception as error:
            self._fail(error)

    def _run_turn(self) -> None:
        engine = self.engine
        now = self._clock.monotonic
        # What is applied in this turn was asked for before it: a lease never gets less than its full time.
        engine.machine.now = now()
        crash = self._crash
        self._turn_scheduled = True  # what wakes the engine in here is seen by the next ready
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
                self._written_at = now()
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
            started = now()
            answers = engine.apply()
            for done, result in answers:
                try:
                    done(result)
                except Exception:
                    log.exception("an answer could not be given")
            if answers:
                crash.reach("after_answers")
                if now() - started > self._slow_apply_seconds:
                    self._monitor.slow_applies += 1
                    log.warning("applying and answering %d requests took %.3f s", len(answers), now() - started)
        self._turn_scheduled = False
        self._flush()
        if engine.has_work:
            self._schedule_work()
        if not self.ready.done() and engine.is_serving:
            self.ready.set_result(None)
        if self._drained is not None and engine.is_drained:
            self._drained.set()

    def _schedule_work(self) -> None:
        if not self._work_scheduled:
            self._work_scheduled = True
            self._loop.call_soon(self._work)

    def _work(self) -> None:
        self._work_scheduled = False
        if self._failed or self._stopping:
            return
        until = self._clock.monotonic() + limits.WORK_SLICE_SECONDS
        try:
            while more := self.engine.work():
                if self._clock.monotonic() >= until:
                    break
        except Exception as error:
            self._fail(error)
            return
        if more:
            self._schedule_work()
        elif self._drained is not None and self.engine.is_drained:
            self._drained.set()

    def _tick(self) -> None:
        self._ticker = self._loop.call_later(self._tick_seconds, self._tick)
        try:
            self.engine.tick(self._clock.monotonic())
        except Exception as error:
            self._fail(error)

    # -- disk -----------------------------------------------------------------------------------------------------

    def _written_by_thread(self, outcome: Position | StorageFailedError) -> None:
        if isinstance(outcome, StorageFailedError):
            self._fail(outcome)
            return
        self._turn_scheduled = True  # right below
        try:
            self._written(outcome)
        except Exception as error:
            self._fail(error)
            return
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
        if position is not None:
            self._wal.release_before(position)

    def _fail(self, error: Exception) -> None:
        """Stop for good: nothing is acknowledged any more, and the process has to end.

        After a failed write nobody knows what is on the disk. After a failed turn entries may have been handed out and
        not applied, and this member would differ from its log.
        """
        if self._failed:
            return
        self._failed = True
        if isinstance(error, StorageFailedError):
            what = "the disk failed"
            log.critical("%s, the member stops: %s", what, error)
        else:
            what = "applying the log failed"
            log.critical("%s, the member stops", what, exc_info=error)
        failure = StartupError(f"{what}: {error}")
        if self._ticker is not None:
            self._ticker.cancel()
        self.engine.stop()
        if not self.ready.done():
            self.ready.set_exception(failure)
        if self._idle is not None and not self._idle.done():
            self._idle.set_result(None)
        if self._drained is not None:
            self._drained.set()
        self._on_failure(failure)

    # -- snapshots ------------------------------------------------------------------------------------------------

    async def _save_snapshot(self, order: SnapshotOrder) -> None:
        started = self._clock.monotonic()
        try:
            info = await self._write_snapshot(order)
        except Exception as error:
            # The log is whole, so nothing is lost; what a full disk does to the log shows there.
            log.error("could not save the snapshot at index %d", order.index, exc_info=error)
            self.engine.snapshot_failed(KvError(f"kvserver: snapshot failed: {error}"))
            return
        if info is None:
            return
        self._crash.reach("after_snapshot_before_marker")
        seconds = self._clock.monotonic() - started
        self._monitor.snapshot_seconds.observe(seconds)
        log.info("saved snapshot at index %d, %d bytes, in %.3f s", order.index, info.size_bytes, seconds)
        self.engine.snapshot_saved(order, info.size_bytes)

    async def _write_snapshot(self, order: SnapshotOrder) -> SnapshotInfo | None:
        """Write a snapshot: chunks are made on the loop, one a pass, compressed and written on a thread.

        Returns:
            The file, or None if the member stops meanwhile.
        """
        run = partial(self._loop.run_in_executor, self._snapshot_thread)
        writer = await run(self._snapshotter.create, order.index, order.term)
        try:
            for chunk in order.chunks:
                if self._stopping:
                    return None
                await run(writer.write, chunk)
            return await run(writer.commit)
        finally:
            await run(writer.abort)  # nothing, after a commit
