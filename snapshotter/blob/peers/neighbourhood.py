"""Who shares what with this node, as far as is known now: kept up by a thread, read from memory."""

import time
from threading import Condition, Event, Lock, Thread
from typing import Final

import structlog

from infra.errors import StoreUnavailable
from snapshotter.blob.peers.bans import Bans
from snapshotter.blob.peers.directory import Announcement, Directory, Peers
from snapshotter.blob.peers.peer import Peer
from snapshotter.blob.peers.shared_blobs import SharedBlobs

log = structlog.get_logger()

_BEAT_S: Final = 5.0
_FIRST_BEAT_S: Final = 0.025  # after a blob was opened; the next ones come twice as late each
_TRUST_S: Final = 15.0  # what a directory said that does not answer any more


class Neighbourhood:
    """Announces this node's blobs every few seconds, and at once when one is opened; then a few
    times more soon, since nodes that start together open it in the same moments.

    No read waits for the directory: one that does not answer leaves every blob to its origin.
    """

    def __init__(
        self, node_id: str, address: str, directory: Directory, shared: SharedBlobs
    ) -> None:
        self.node_id = node_id
        self._address = address
        self._directory = directory
        self._shared = shared
        self._lock = Lock()  # guards the peers, the bans and when claims are made again
        self._peers: Peers = {}
        self._heard_at = 0.0
        self._bans = Bans()
        self._claims_from = 0.0  # a directory that was too slow for them is left alone for a while
        self._condition = Condition()  # guards the next five
        self._is_heard = True  # the directory, the last time
        self._waiting: list[Event] = []
        self._is_wanted = True
        self._pause_s = _BEAT_S
        self._is_closed = False
        self._thread = Thread(target=self._run, name="neighbourhood", daemon=True)
        self._thread.start()

    def refresh(self, *, within_s: float) -> bool:
        """Announces and asks now; whether the directory has answered within that time.

        One that did not answer the last time is not waited for.
        """
        done = Event()
        with self._condition:
            self._is_wanted = True
            self._pause_s = _FIRST_BEAT_S / 2
            self._waiting.append(done)
            self._condition.notify()
            is_worth_waiting = self._is_heard
        return is_worth_waiting and done.wait(within_s) and self._is_heard

    def nudge(self) -> None:
        """Announces and asks soon; nobody waits for it."""
        with self._condition:
            self._is_wanted = True
            self._condition.notify()

    def peers_of(self, blob: str) -> tuple[Peer, ...]:
        """The other nodes that share a blob and may be asked now."""
        now = time.monotonic()
        with self._lock:
            if now - self._heard_at > _TRUST_S:
                return ()
            peers = self._peers.get(blob, ())
            return tuple(peer for peer in peers if not self._bans.is_banned(peer.node_id, now))

    def claim(self, blob: str, stripe: int, *, instead_of: Peer | None) -> Peer | None:
        """Who is to be asked for a stripe that it fetches from the origin, or None: this node is
        to fetch it, and others are told so.

        Waits for the directory, and no longer than a moment; one that does not answer is not
        asked for some seconds.
        """
        now = time.monotonic()
        with self._lock:
            if now < self._claims_from:
                return None
        own = Peer(self.node_id, self._address, can_fetch=True)
        before = None if instead_of is None else instead_of.node_id
        try:
            holder = self._directory.claim(blob, stripe, own, instead_of=before)
            with self._lock:
                is_banned = self._bans.is_banned(holder.node_id, now)
            if is_banned:
                holder = self._directory.claim(blob, stripe, own, instead_of=holder.node_id)
        except StoreUnavailable as error:
            log.info("peers.claim_failed", detail=error.detail)
            with self._lock:
                self._claims_from = time.monotonic() + _BEAT_S
            return None
        return None if holder.node_id == self.node_id else holder

    def lied(self, peer: Peer) -> None:
        """It gave wrong bytes."""
        log.warning("peer.lied", peer=peer.node_id, address=peer.address)
        with self._lock:
            self._bans.lied(peer.node_id, time.monotonic())

    def failed(self, peer: Peer, detail: str) -> None:
        """It could not be asked, or did not answer in time."""
        log.info("peer.failed", peer=peer.node_id, address=peer.address, detail=detail)
        with self._lock:
            self._bans.failed(peer.node_id, time.monotonic())

    def answered(self, peer: Peer) -> None:
        """It gave what was asked for."""
        with self._lock:
            self._bans.answered(peer.node_id)

    def close(self) -> None:
        """Takes this node out of the directory, if that answers."""
        with self._condition:
            self._is_closed = True
            self._condition.notify()
        self._thread.join()
        try:
            self._directory.leave(self._announcement())
        except StoreUnavailable as error:
            log.info("peers.not_left", detail=error.detail)

    def _run(self) -> None:
        while True:
            with self._condition:
                if not self._is_wanted and not self._is_closed:
                    self._condition.wait(self._pause_s)
                if self._is_closed:
                    return
                self._is_wanted = False
                self._pause_s = min(_BEAT_S, 2 * self._pause_s)
                waiting, self._waiting = self._waiting, []
            is_heard = self._beat()
            with self._condition:
                self._is_heard = is_heard
                if not is_heard:
                    self._pause_s = _BEAT_S
            for done in waiting:
                done.set()

    def _beat(self) -> bool:
        try:
            peers = self._directory.exchange(self._announcement())
        except StoreUnavailable as error:
            log.warning("peers.directory_unavailable", detail=error.detail)
            return False
        except Exception:  # whoever waits for a chunk must not wait for a thread that has died
            log.exception("peers.beat_failed")
            return False
        now = time.monotonic()
        with self._lock:
            self._peers = peers
            self._heard_at = now
            present = {peer.node_id for known in peers.values() for peer in known}
            self._bans.forget_but(present, now)
        return True

    def _announcement(self) -> Announcement:
        return Announcement(self.node_id, self._address, self._shared.announced())
