"""Every bound of the server in one place, each with the reason for its size.

A queue, buffer, retry or request without a bound is a way to lose the process; a bound nobody can find is a riddle for
its operator. Units stand last in the names. Values that an operator may change are defaults of ``kvserver.config``.
"""

from __future__ import annotations

REQUEST_BYTES_MAX = 1_572_864
"""Largest client request, 1.5 MiB: etcd's default for ``--max-request-bytes``; a Raft entry has to fit one append."""

TXN_OPERATIONS_MAX = 128
"""Operations in one list of a txn: etcd's default for ``--max-txn-ops``."""

WAL_SEGMENT_BYTES = 64 * 1024 * 1024
"""Size of a preallocated WAL segment: large enough that a rollover is rare, small enough that space comes back soon."""

WAL_ZERO_AHEAD_BYTES = 256 * 1024
"""Zeros written ahead of the log's end together with a batch: a block that was written before needs no journal commit
when it is written again, which takes the median sync of 20 KB from 260 to 140 us. More makes the one batch that pays
for it slower and gains nothing."""

WAL_FRAME_BYTES_MAX = 64 * 1024 * 1024
"""Raw bytes of one WAL frame, so of one record: bounds the memory that reading a log may take. Larger batches are
split into several frames."""

ENTRIES_RECORD_BYTES_MAX = 32 * 1024 * 1024
"""Entry data of one record: more is split into several, so that with their lengths they always fit a frame."""

REQUEST_BYTES_CONFIGURABLE_MAX = 32 * 1024 * 1024
"""Largest value of ``--max-request-bytes``: one entry has to fit one record, and one message a connection's share."""

WAL_COMPRESS_BYTES_MIN = 512
"""Records below this are stored raw: compressing 300 bytes saves no disk block. At most one sector (512), because a raw
payload must never hold a whole sector of zeros; see ``kvserver.storage.segment``."""

WAL_READ_BYTES = 1024 * 1024
"""Bytes read at a time when a log is scanned."""

SNAPSHOT_CHUNK_BYTES_MAX = 64 * 1024 * 1024
"""Largest chunk of a snapshot file, and so the memory that writing or reading one may take, however large the snapshot.
Most have a quarter of a megabyte; the largest hold one value of the largest configurable request, or two million
leases."""

SNAPSHOT_SYNC_BYTES = 8 * 1024 * 1024
"""A snapshot being written is synced whenever so much is dirty, so that its flush does not delay the log's syncs."""

SNAPSHOTS_KEPT = 2
"""Snapshots kept: the newest and one to fall back on."""

WIRE_MESSAGE_BYTES_MAX = REQUEST_BYTES_MAX + 512 * 1024
"""Largest gRPC message the server receives: the largest request and etcd's allowance for what gRPC adds, so that a
request slightly too large is refused by name ("request is too large"), a huge one before it is in memory."""

WIRE_STREAMS_MAX = 1000
"""Streams open at once on one connection: a client library's watches and calls fit by far, and what one peer may have
in flight stays bounded. Announced; a stream above it is refused, which clients repeat."""

WIRE_HEADER_LIST_BYTES_MAX = 64 * 1024
"""Decoded header list of one request: auth tokens are the largest thing in it. Above it HPACK bombs begin."""

WIRE_CONTINUATIONS_MAX = 64
"""CONTINUATION frames of one header block: the header list limit fits five full frames; 64 leaves room for peers that
fragment, and ends a flood (CVE-2024-27316)."""

WIRE_RESET_BURST = 2000
WIRE_RESETS_PER_SECOND = 1000
"""Streams that a peer may reset, or make us reset, without our calming it down (rapid reset, CVE-2023-44487,
CVE-2025-8671). The burst lets two rounds of a connection's deadlines expire at the same moment; the rate is below what
ordinary calls cost. The attacks send tens of thousands a second."""

WIRE_SETTINGS_BURST = 100
WIRE_SETTINGS_PER_SECOND = 10
"""SETTINGS frames accepted (CVE-2019-9515): libraries send one or two; some adapt windows once a round trip."""

WIRE_PING_BURST = 1000
WIRE_PINGS_PER_SECOND = 100
"""PINGs answered where the keep-alive rule does not apply, that is as a client (CVE-2019-9512)."""

WIRE_PING_MIN_SECONDS = 5.0
"""Keep-alive pings may come this often while streams are open: etcd's ``--grpc-keepalive-min-time``."""

WIRE_PING_IDLE_MIN_SECONDS = 7200.0
"""Pings without an open stream may come this often: what grpc-go enforces unless told otherwise."""

WIRE_PING_STRIKES_MAX = 2
"""Pings that may come too early between two answers: grpc-go's number. The next one is answered "too_many_pings"."""

WIRE_KEEPALIVE_INTERVAL_SECONDS = 7200.0
WIRE_KEEPALIVE_TIMEOUT_SECONDS = 20.0
"""The server pings a silent connection after the interval and drops it when nothing comes back for the timeout: etcd's
``--grpc-keepalive-interval`` and ``--grpc-keepalive-timeout``."""

WIRE_HANDSHAKE_SECONDS = 10.0
"""From accepting a connection to the client's preface and SETTINGS: a silent connection holds a descriptor so long."""

WIRE_LINGER_SECONDS = 1.0
"""How long a connection that ends with a GOAWAY still reads (and drops) what comes: closing a socket with unread data
would reset it, and the peer would not learn why."""

WIRE_IDLE_FRAMES_BASE = 1000
WIRE_IDLE_FRAMES_PER_WORK = 10
"""Frames that carry no work (WINDOW_UPDATE, PRIORITY, empty DATA, unknown types, resets of closed streams): a fixed
number, and so many more for each stream opened and each DATA frame in either direction. Clients send two or three
window updates a message; one-byte window games and empty-frame floods (CVE-2019-9511, -9518) reach the bound. One
frame a second is always allowed."""

WIRE_STREAM_WINDOW_BYTES = 1024 * 1024
"""Receive window of a stream: a request of the largest size needs one WINDOW_UPDATE."""

WIRE_CONNECTION_WINDOW_BYTES = 16 * 1024 * 1024
"""Receive window of a connection: what may be under way; given back on receipt, so that no stream waits for another."""

WIRE_PARTIAL_BYTES_MAX = 64 * 1024 * 1024
"""Bytes of unfinished request messages held for one connection; the stream that would exceed it is refused."""

WIRE_QUEUED_BYTES_MAX = 128 * 1024 * 1024
"""Answers held for one connection whose peer grants no window or does not read: a few large ranges at once. Above it
further answers fail. One answer alone may be larger."""

WIRE_STALL_SECONDS = 60.0
"""A connection for which more than two high-water marks wait and whose peer takes nothing for so long is dropped: its
memory would otherwise be held for as long as the peer likes."""

WIRE_STREAM_HIGH_WATER_BYTES = 1024 * 1024
WIRE_STREAM_LOW_WATER_BYTES = 256 * 1024
"""``buffered_bytes`` of a server stream above which its producer should stop, and to which it falls before
``on_drained`` is called."""

WIRE_SOCKET_HIGH_WATER_BYTES = 256 * 1024
"""Bytes in the transport's buffer above which no more frames are made and no more requests are read."""

WIRE_PUMP_BYTES = 1024 * 1024
"""Queued bytes turned into frames at one go for one connection: a large answer neither stalls the loop nor the other
streams."""

WIRE_STATUS_MESSAGE_BYTES_MAX = 4096
"""``grpc-message`` of an answer: clients refuse header lists above 8 KiB."""

WIRE_HEADER_BLOCKS_CACHED = 64
WIRE_HEADER_BLOCK_CACHED_BYTES_MAX = 1024
"""Header blocks (and request heads) remembered by a connection, and the largest remembered: a client uses a few
methods, all with small blocks."""

JSON_SCAN_BYTES_MAX = 65_536
"""How far into a body that is not JSON the gateway looks for the fault to name: some 10 ms of work."""

HTTP_FIRST_BYTES_SECONDS = 10.0
"""From accepting a connection to the bytes that tell gRPC from HTTP: a silent client holds a descriptor no longer."""

HTTP_HEAD_SECONDS = 10.0
"""From the first byte of an HTTP request's head to its last: ends slow-header attacks; an idle connection may stay."""

HTTP_BODY_PAUSE_SECONDS = 30.0
"""Longest pause within the body of a unary HTTP request: slow links have time, stalled ones do not hold a buffer."""

HTTP_HEAD_BYTES_MAX = 65_536
"""Request line and headers of an HTTP request: the same 64 KiB as a gRPC header list."""

GRPC_OVERHEAD_BYTES = 524_288
"""What a message may exceed ``--max-request-bytes`` by before it is refused unread: etcd's number."""

HTTP_HEADS_CACHED = 1024
HTTP_HEAD_CACHED_BYTES_MAX = 1024
"""Parsed request heads remembered, and the largest remembered: a client repeats its head but for Content-Length."""

ACCEPT_BATCH = 64
"""Connections accepted at one go: a burst is taken quickly, and the loop turns in between."""

ACCEPT_PAUSE_SECONDS = 0.5
"""Rest after accepting failed for want of descriptors or memory; trying at once would spin."""

DESCRIPTORS_RESERVED = 150
"""File descriptors that client connections leave to the log, snapshots and peers: etcd's number."""

REFUSED_CONNECTION_LOGS_PER_SECOND = 10
"""Log lines about connections that were no client's; a scanner must not fill the disk."""

PENDING_PROPOSALS_MAX = 100_000
"""Writes that wait for the disk: about a second's worth at full speed; more than that is "too many requests"."""

PENDING_READS_MAX = 100_000
"""Reads that wait for the leader to be confirmed: as many as writes; more than that is "too many requests"."""

PENDING_JOBS_MAX = 10_000
"""Long reads (large ranges, hashes) that wait for their turn: seconds of work; more is "too many requests"."""

JOBS_AT_ONCE = 8
"""Long work that takes turns: each holds what it has found so far, and a short one still overtakes a long one."""

LEASE_REVOKES_PER_SECOND = 1000
"""Expired leases that the leader revokes: after a pause of all clients the storm of deletes leaves room for others."""

SNAPSHOT_CATCHUP_ENTRIES = 5000
"""Applied entries kept in memory for members that lag: etcd's number; one that lags more is sent a snapshot."""

SNAPSHOT_SMALL_BYTES = 1_048_576
"""A snapshot is due after ``--snapshot-count`` entries, and when the log grew by as much as the last snapshot is
large, less this much: writing snapshots then costs at most about as much as writing the log, and small ones are never
put off."""

INLINE_WRITE_SECONDS_MAX = 0.005
"""A lone proposal is written on the loop thread only while writes take less than this on average: a slow disk must not
hold the loop."""

INLINE_WRITE_WEIGHT = 1 / 16
"""Weight of the newest write in that average: one slow one changes little, a disk that became slow shows at once."""

WORK_SLICE_SECONDS = 0.005
"""Time that long work (compaction, large reads, hashes) takes of the loop before requests get their turn again."""

JSON_SLICE_BYTES = 131_072
"""Answers above this are written as JSON in slices of about this size, the loop turning in between: some 5 ms each."""

JSON_LIST_ITEMS_MAX = 10_000
"""Elements of one list in a JSON request: far above every list the protocol allows, and some 10 ms of work."""

WATCHERS_PER_STREAM_MAX = 100_000
"""Watchers on one watch stream, about 400 bytes each: ten times what one client library was seen to hold; a client that
creates them in a loop is refused before it costs more than some tens of megabytes."""

HTTP_DRAIN_BYTES_MAX = 64 * 1024 * 1024
"""A body too large is read to its end, and dropped, up to this size, since a client that is still sending does not read
the refusal; beyond it the connection is closed."""

RAFT_MESSAGE_BYTES_MAX = 1024 * 1024
"""Entry data of one append message: a slow link can still carry a heartbeat within an election timeout behind it."""

RAFT_INFLIGHT_MESSAGES_MAX = 512
RAFT_INFLIGHT_BYTES_MAX = 64 * 1024 * 1024
"""Appends sent to one follower and not yet answered: enough to fill a long link with small messages, and a stop for
large ones long before memory runs out."""

RAFT_COMMITTED_ENTRIES_MAX = 4096
RAFT_COMMITTED_BYTES_MAX = 8 * 1024 * 1024
"""Committed entries handed out at once: what can be applied without holding the loop for longer than 50 ms."""

RAFT_UNCOMMITTED_BYTES_MAX = 256 * 1024 * 1024
"""Proposed and not yet committed: without a bound a leader cut off from its quorum collects proposals until it dies."""

RAFT_PENDING_READS_MAX = 4096
"""Read requests of all members that wait for the leader to confirm its leadership; a member batches its clients' reads
into one request, so this is far more than members times retries."""

SHUTDOWN_GRACE_SECONDS = 2.0
"""How long running calls may go on after a stop was asked for; streams never end by themselves."""

GC_YOUNG_OBJECTS = 50_000
"""Container objects made before the collector looks at the young ones: a batch of requests makes thousands and frees
them by reference counting."""

MVCC_SLICE_RECORDS = 2000
"""Records that one slice of long work in the store reads (large ranges, sorting, restoring): 2 to 4 ms."""

MVCC_COMPACTION_SLICE_RECORDS = 3000
"""Records that one slice of compaction looks at: about 8 ms."""

MVCC_HASH_SLICE_RECORDS = 4000
"""Records that one slice of hash_kv reads: 3 to 6 ms."""

MVCC_SNAPSHOT_BLOCK_BYTES = 256 * 1024
"""Record bytes of one chunk of a snapshot, and so of one step of taking it: 1 to 2 ms."""

WATCH_FLUSH_DELIVERIES_MAX = 2048
"""Deliveries of one flush of events; the next goes on with the rest, so that a wide fan-out does not hold the loop."""

WATCH_FLUSH_MATCHES_MAX = 4000
"""Changes, and pairs of a change and a group that watches it, of one flush; the next announces later revisions."""

WATCH_SYNC_MATCHES = 4000
"""Records read, and pairs of a record and a group that watches it, in one slice of catching up."""

WATCH_SYNC_WATCHERS = 1024
"""Unsynced watchers that catch up together in one slice."""

WATCH_REMEMBERED_KEYS = 4096
"""Keys whose watched ranges are remembered, so that a hot key is looked up once."""

LEASE_TTL_MAX_SECONDS = 9_000_000_000
"""Longest lease, as the protocol has it."""

RAFT_LOG_SLACK_ENTRIES = 256
"""Applied entries that may stay in memory beyond those wanted, so that they are dropped in batches."""

THREAD_SWITCH_SECONDS = 0.00005
"""How long a running thread may keep the interpreter while another waits for it; Python's default is 100 times that."""
