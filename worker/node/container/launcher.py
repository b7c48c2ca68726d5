"""Workers as containers, one each; see the port. An image is to them what a fork server is."""

import asyncio
import secrets
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from infra.contracts.stage import Rung
from infra.contracts.worker_link import FromWorker, ToWorker
from infra.errors import PlatformError
from infra.supervise import TaskSet
from worker.node.container.cdi import Edits
from worker.node.container.containers import ContainerFailed, Containers
from worker.node.container.furnishing import CACHE, Furnishing
from worker.node.container.image import Image
from worker.node.container.image_keeper import ImageKeepers
from worker.node.container.place import Place, remove_places
from worker.node.container.spec import INSIDE, Limits, container_spec
from worker.node.container.worker import ContainerWorker, Site
from worker.node.launcher import Exit, Listener
from worker.node.plan import Origin, WorkerId

log = structlog.get_logger()

SOURCE = "container"  # what the report says of a runtime stage
CLOSE_S = 5.0  # for killed containers to be removed
_THREADS = 8

Tell = Callable[[FromWorker], None]


@dataclass(frozen=True, slots=True)
class Premises:
    """Where containers of this node are kept, and what all of them are given."""

    folder: Path
    cgroup: str  # their parent, as `/firstlight`
    environment: Mapping[str, str]
    devices: Edits
    open_files: int


class ContainerLauncher:
    """Belongs to the event loop.

    What earlier agents of this node left is removed before the first container is started.
    """

    runs_images = True

    def __init__(
        self,
        containers: Containers,
        images: ImageKeepers,
        furnishing: Furnishing,
        premises: Premises,
    ) -> None:
        self._containers = containers
        self._images = images
        self._premises = premises
        self._listener: Listener | None = None
        self._workers: dict[WorkerId, ContainerWorker] = {}
        self._threads = ThreadPoolExecutor(_THREADS, "containers")
        self._site = Site(containers, furnishing, self._threads, self._specify, self._cgroup)
        self._prefix = f"fl-{secrets.token_hex(4)}"
        self._zygote: asyncio.Task[None] | None = None
        self._cleaning: asyncio.Task[None] | None = None
        self._tasks = TaskSet()
        self._lives: set[asyncio.Task[None]] = set()

    def listen(self, listener: Listener) -> None:
        self._listener = listener

    def pin(self, indexes: Mapping[str, str]) -> None:
        self._images.pin(indexes)

    def climbs_from(self, origin: Origin, *, image: str | None = None) -> tuple[Rung, str]:
        return (Rung.IMAGE if self._images.of(image).is_here else Rung.NODE), SOURCE

    def start_zygote(self) -> None:
        """Up is when our own image is here: from then on a container is all that a worker needs."""
        self._zygote = self._tasks.start(self._bring_image(), name="image")

    def stop_zygote(self) -> None:
        if self._zygote is not None:
            self._zygote.cancel()
            self._zygote = None

    def fork(self, worker_id: WorkerId, *, ranks: int, image: str | None = None) -> None:
        self._launch(worker_id, ranks, image)

    def spawn(
        self, worker_id: WorkerId, log_path: Path, *, ranks: int, image: str | None = None
    ) -> None:
        """What it prints before it is a replica is not that replica's log."""
        self._launch(worker_id, ranks, image)

    def send(self, worker_id: WorkerId, message: ToWorker) -> None:
        worker = self._workers.get(worker_id)
        if worker is not None:
            worker.send(message)

    def kill(self, worker_id: WorkerId) -> None:
        worker = self._workers.get(worker_id)
        if worker is not None:
            worker.kill()

    async def close(self) -> None:
        living = [task for task in self._lives if not task.done()]
        for worker in tuple(self._workers.values()):
            worker.kill()
        self.stop_zygote()
        await self._images.close()
        if living:
            _, left = await asyncio.wait(living, timeout=CLOSE_S)
            if left:
                log.warning("containers.left", count=len(left))
        await self._tasks.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    # One worker --------------------------------------------------------------------------------

    def _launch(self, worker_id: WorkerId, ranks: int, image: str | None) -> None:
        tell = partial(self._said, worker_id)
        worker = ContainerWorker(
            f"{self._prefix}-{worker_id}",
            self._premises.folder,
            self._site,
            tell=tell,
            ended=partial(self._ended, worker_id),
        )
        self._workers[worker_id] = worker
        living = worker.live(lambda: self._image(image, tell), ranks=ranks)
        task = self._tasks.start(living, name=f"worker-{worker_id}")
        self._lives.add(task)
        task.add_done_callback(self._lives.discard)

    def _said(self, worker_id: WorkerId, message: FromWorker) -> None:
        if worker_id in self._workers:
            self._heard.on_message(worker_id, message)

    def _ended(self, worker_id: WorkerId, end: Exit) -> None:
        del self._workers[worker_id]
        self._heard.on_exit(worker_id, end)

    async def _image(self, image: str | None, tell: Tell) -> Image:
        await self._clean()
        return await self._images.of(image).ensure(tell)

    async def _bring_image(self) -> None:
        try:
            await self._image(None, lambda message: None)
        except PlatformError as error:
            self._heard.on_zygote_exit(Exit(why=error.detail, code=error.slug))
        except ContainerFailed as error:
            self._heard.on_zygote_exit(Exit(why=str(error)))
        else:
            self._heard.on_zygote_up()

    async def _clean(self) -> None:
        """Once; tried again by the next who asks where it failed."""
        if self._cleaning is None or (self._cleaning.done() and self._cleaning.exception()):
            self._cleaning = asyncio.create_task(self._remove_left(), name="left containers")
        await asyncio.shield(self._cleaning)

    async def _remove_left(self) -> None:
        loop = asyncio.get_running_loop()
        for name in await loop.run_in_executor(self._threads, self._containers.left_behind):
            if not name.startswith(self._prefix):
                log.info("container.left-behind", container=name)
                await loop.run_in_executor(self._threads, self._containers.remove, name)
        remove_places(self._premises.folder, but=self._prefix)

    def _specify(self, image: Image, name: str, place: Place, ranks: int) -> dict[str, Any]:
        return container_spec(
            image.program,
            ("replica", "--socket", f"{INSIDE}/link.sock", "--cache", CACHE, "--ranks", str(ranks)),
            name=name,
            inside=str(place.inside),
            cgroup=self._cgroup(name),
            environment=self._premises.environment,
            limits=Limits(open_files=self._premises.open_files),
            devices=self._premises.devices,
        )

    def _cgroup(self, name: str) -> str:
        return f"{self._premises.cgroup}/{name}"

    @property
    def _heard(self) -> Listener:
        assert self._listener is not None, "listen() comes first"
        return self._listener
