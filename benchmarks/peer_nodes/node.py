"""One node of the peers' benchmark: fetches a blob with its neighbours and says how that went.

Runs as a program in a network namespace of its own; speaks JSON lines on standard input and output.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path

import structlog

from benchmarks.peer_nodes.load import LOADS, TOKEN
from snapshotter.blob.fetcher import Fetcher
from snapshotter.blob.peers.peering import Alone, Peering, PeerTerms
from snapshotter.blob.peers.redis_directory import RedisDirectory
from snapshotter.blob.store import ChunkStore


def main() -> None:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    orders = json.loads(sys.stdin.readline())
    store = ChunkStore(Path(orders["folder"]) / "store", capacity_bytes=1 << 40, boot_id="bench")
    fetcher = Fetcher(store)
    peering = None
    if orders["shares"]:
        terms = PeerTerms(
            orders["node"],
            orders["host"],
            0,
            TOKEN,
            upload_bytes_per_s=orders["upload_bytes_per_s"],
        )
        peering = Peering(store, RedisDirectory(orders["redis"]), terms)
        if orders["lies"]:
            _corrupt_what_is_given()
    load = LOADS[orders["what"]](orders, fetcher, peering or Alone())
    _say(is_up=True)

    sys.stdin.readline()  # all begin together
    if orders["dies_after_s"]:
        threading.Timer(orders["dies_after_s"], os._exit, [9]).start()
    cpu_s = time.process_time()
    seconds = load.run()
    cpu_s = time.process_time() - cpu_s
    _say(
        seconds=seconds,
        is_right=load.is_right(),
        fetched=dict(fetcher.fetched_bytes),
        uploaded=0 if peering is None else peering.server.cap.uploaded_bytes,
        cpu_s=cpu_s,
    )
    sys.stdin.readline()
    os._exit(0)  # the folder goes with the benchmark


def _corrupt_what_is_given() -> None:
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
