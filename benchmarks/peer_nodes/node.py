"""One node of the peers' benchmark: fetches a blob with its neighbours and says how that went.

Runs as a program in a network namespace of its own; speaks JSON lines on standard input and output.
"""

import json
import os
import sys
import threading
import time
from hashlib import sha256
from pathlib import Path

import structlog

from benchmarks.peer_nodes.origin import RangeSource
from snapshotter.blob.blob import Blob
from snapshotter.blob.codec import RawCodec
from snapshotter.blob.fetcher import Fetcher
from snapshotter.blob.flight import Priority
from snapshotter.blob.peers.peering import Peering, PeerTerms
from snapshotter.blob.peers.redis_directory import RedisDirectory
from snapshotter.blob.source import Decoded
from snapshotter.blob.store import ChunkStore
from snapshotter.blob.stored_blob import BlobRef
from snapshotter.index.chunk_table import ChunkTable


def main() -> None:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    orders = json.loads(sys.stdin.readline())
    ref = BlobRef(orders["digest"], ChunkTable.parse(bytes.fromhex(orders["table"])))
    store = ChunkStore(Path(orders["folder"]), capacity_bytes=1 << 40, boot_id="bench")
    fetcher = Fetcher(store)
    origin = Decoded(RangeSource(orders["origin"]), RawCodec())
    peering = None
    sources = [origin]
    if orders["shares"]:
        terms = PeerTerms(
            orders["node"],
            orders["host"],
            0,
            "bench",
            upload_bytes_per_s=orders["upload_bytes_per_s"],
        )
        peering = Peering(store, RedisDirectory(orders["redis"]), terms)
        sources = list(peering.before(ref, origin))
    blob = Blob(ref, sources, fetcher, deadline_s=120)
    if peering is not None:
        peering.opened(blob)
        if orders["lies"]:
            _corrupt_what_is_given(peering)
    _say(is_up=True)

    sys.stdin.readline()  # all begin together
    if peering is not None:
        peering.opened(blob)
    if orders["dies_after_s"]:
        threading.Timer(orders["dies_after_s"], os._exit, [9]).start()
    began_at = time.monotonic()
    for flight in blob.prefetch(range(len(ref.table)), Priority.TRACE):
        flight.landed.wait()
    seconds = time.monotonic() - began_at
    cpu_s = time.process_time()
    text = sha256()
    for offset in range(0, blob.size, 4 << 20):
        text.update(blob.read(offset, 4 << 20))
    _say(
        seconds=seconds,
        is_right=f"sha256:{text.hexdigest()}" == ref.digest,
        fetched=dict(fetcher.fetched_bytes),
        uploaded=0 if peering is None else peering.server.cap.uploaded_bytes,
        cpu_s=cpu_s,
    )
    sys.stdin.readline()
    os._exit(0)  # the folder goes with the benchmark


def _corrupt_what_is_given(peering: Peering) -> None:
    """Every piece that this node gives is taken from another place of its file."""
    give = os.sendfile

    def give_other(out: int, file: int, offset: int, count: int) -> int:
        return give(out, file, offset ^ (1 << 20), count)

    os.sendfile = give_other


def _say(**facts: object) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
