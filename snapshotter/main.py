"""The snapshotter's programs: `serve` on each node, and those that `platform images` runs."""

import argparse
import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from pydantic import ValidationError

from infra.errors import PlatformError
from snapshotter.settings import SnapshotterSettings

if TYPE_CHECKING:  # each program loads what it needs
    from infra.containerd.client import Containerd
    from infra.registry.client import Registry
    from infra.registry.reference import Reference
    from snapshotter.blob.peers.peering import Sharing
    from snapshotter.blob.store import ChunkStore
    from snapshotter.blob.weights.proven import ProvenWeights
    from snapshotter.containerd.puller import Puller
    from snapshotter.index.publish import Published, Publisher

PROGRAM = (sys.executable, "-m", "snapshotter.main")


def run() -> NoReturn:
    """`python -m snapshotter.main PROGRAM …`: data on stdout, the reason of a failure on stderr."""
    arguments = _parser().parse_args()
    program: Callable[[argparse.Namespace], None] = arguments.run
    try:
        program(arguments)
    except KeyboardInterrupt:
        sys.exit(130)
    except ValidationError as error:
        for wrong in error.errors():  # of the settings: nothing else comes from outside as one
            name = "_".join(("PLATFORM_SNAPSHOTTER", *map(str, wrong["loc"]))).upper()
            print(f"error: {name}: {wrong['msg']}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    except PlatformError as error:
        print(f"error: {error.detail}", file=sys.stderr)  # noqa: T201
        if error.hint is not None:
            print(f"hint: {error.hint}", file=sys.stderr)  # noqa: T201
        sys.exit(1)
    sys.exit(0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="snapshotter", description=__doc__)
    programs = parser.add_subparsers(dest="program", required=True)

    pull = programs.add_parser(
        "pull", help="bring an image into containerd, as lazily as it can be"
    )
    pull.add_argument("reference")
    pull.add_argument("--index", type=_digest, help="mount layers by this one only, of that digest")
    listing = programs.add_parser("ls", help="list the images that containerd has")
    remove = programs.add_parser("rm", help="take an image from containerd")
    remove.add_argument("name")
    serve = programs.add_parser("serve", help="containerd's plugin, until SIGTERM")
    keeper = programs.add_parser("keeper", help="keeps layers mounted; started by serve")
    keeper.add_argument("--descriptor", type=int, help="of the folder that another one kept")
    for program, run_program in ((serve, _serve), (keeper, _keeper)):
        program.set_defaults(run=run_program)

    for program, run_program in ((pull, _pull), (listing, _list), (remove, _remove)):
        program.set_defaults(run=run_program)
        program.add_argument("--address", type=Path, help="containerd's socket")
    pull.add_argument("--snapshotter", help="its name in containerd's configuration")
    for program in (pull, listing):
        program.add_argument("--json", action="store_true", help="print JSON")

    index = programs.add_parser("index", help="push an index beside an image: it is lazy then")
    index.add_argument("reference")
    index.add_argument("--background", action="store_true", help="last of all, in lines of JSON")
    index.add_argument("--index", type=_digest, help="in the background: the only one to find")
    convert = programs.add_parser("convert", help="push an image in chunks of zstd, with an index")
    convert.add_argument("reference")
    convert.add_argument("target")
    for program, run_program in ((index, _index), (convert, _convert)):
        program.set_defaults(run=run_program)
        program.add_argument("--json", action="store_true", help="print JSON")
        program.add_argument("--least-layer-bytes", type=int, help="smaller layers have none")
    return parser


def _digest(said: str) -> str:
    """Raises ValueError for what is none."""
    from infra.registry.reference import DIGEST

    if not DIGEST.fullmatch(said):
        raise ValueError("sha256:… is a digest")
    return said


def _pull(arguments: argparse.Namespace) -> None:
    from infra.registry.reference import Reference
    from snapshotter.containerd.pull_report import JsonPullReport, PullReport

    settings = SnapshotterSettings()
    image = Reference.parse(arguments.reference)
    report = JsonPullReport(sys.stdout) if arguments.json else PullReport(sys.stdout, sys.stderr)
    with _containerd(settings, arguments) as containerd:
        puller = _puller(containerd, _registry(settings), arguments.snapshotter or settings.name)
        report.finish(puller.pull(image, report.layer, index=arguments.index))


def _puller(
    containerd: "Containerd",
    registry: "Registry",
    snapshotter: str,
    on_image: Callable[["Reference", str | None], None] | None = None,
) -> "Puller":
    from infra.clock import SystemClock
    from snapshotter.containerd.puller import Puller, ignore_image
    from snapshotter.registry.image import this_architecture

    return Puller(
        containerd,
        registry,
        snapshotter=snapshotter,
        architecture=this_architecture(),
        clock=SystemClock.start(),
        on_image=on_image or ignore_image,
    )


def _list(arguments: argparse.Namespace) -> None:
    from snapshotter.containerd.image_list import list_images, write_images

    with _containerd(SnapshotterSettings(), arguments) as containerd:
        write_images(list_images(containerd), sys.stdout, as_json=arguments.json)


def _remove(arguments: argparse.Namespace) -> None:
    from snapshotter.containerd.image_list import remove_image

    with _containerd(SnapshotterSettings(), arguments) as containerd:
        remove_image(containerd, arguments.name)


def _index(arguments: argparse.Namespace) -> None:
    from infra.registry.reference import Reference

    if arguments.background:
        _index_in_background(arguments)
        return
    with _publisher(arguments) as publisher:
        _told(publisher.index(Reference.parse(arguments.reference)), arguments)


def _index_in_background(arguments: argparse.Namespace) -> None:
    """For a control plane, which has requests to answer meanwhile."""
    from infra.registry.reference import Reference
    from snapshotter.index.publish_report import run_in_background

    os.nice(19)

    def index(on_progress: Callable[[float], None]) -> "Published":
        with _publisher(arguments, on_progress) as publisher:
            return publisher.find_or_index(
                Reference.parse(arguments.reference), pin=arguments.index
            )

    if not run_in_background(index, sys.stdout):
        sys.exit(1)


def _convert(arguments: argparse.Namespace) -> None:
    from infra.registry.reference import Reference

    target = Reference.parse(arguments.target)
    with _publisher(arguments) as publisher:
        _told(publisher.convert(Reference.parse(arguments.reference), target), arguments)


@contextmanager
def _publisher(
    arguments: argparse.Namespace, on_progress: Callable[[float], None] = lambda fraction: None
) -> Iterator["Publisher"]:
    from snapshotter.index.publish import LEAST_LAYER_BYTES, Publisher
    from snapshotter.index.publish_report import write_layer
    from snapshotter.registry.image import this_architecture

    registry = _registry(SnapshotterSettings())
    least_bytes = arguments.least_layer_bytes
    yield Publisher(
        registry,
        architecture=this_architecture(),
        on_layer=lambda layer: write_layer(layer, sys.stderr),
        on_progress=on_progress,
        least_layer_bytes=LEAST_LAYER_BYTES if least_bytes is None else least_bytes,
    )
    registry.close()


def _told(published: "Published", arguments: argparse.Namespace) -> None:
    from snapshotter.index.publish_report import write_published

    write_published(published, sys.stdout, as_json=arguments.json)


def _serve(arguments: argparse.Namespace) -> None:
    from infra.clock import SystemClock
    from infra.contracts.image_pull import PullOrder
    from infra.registry.reference import Reference
    from snapshotter.containerd.daemon import Daemon
    from snapshotter.containerd.folders import Folders
    from snapshotter.containerd.index_files import IndexFiles
    from snapshotter.containerd.indexed_layers import IndexedLayers
    from snapshotter.containerd.pull_report import Report
    from snapshotter.containerd.pull_server import PullServer
    from snapshotter.containerd.server import SnapshotsServer
    from snapshotter.containerd.snapshotter import Snapshotter
    from snapshotter.containerd.store import SnapshotStore
    from snapshotter.fs.control_client import ControlClient
    from snapshotter.fs.keeper_process import KeeperProcess
    from snapshotter.fs.layer_mounts import LayerMounts
    from snapshotter.fs.layout import Layout
    from snapshotter.trace.files import TraceFiles

    settings = _settings_of_a_daemon()
    clock = SystemClock.start()
    with Daemon.lock(settings.state_dir):
        layout = Layout(settings.fs_dir)
        keeper = KeeperProcess(layout, (*PROGRAM, "keeper"))
        control = ControlClient(layout.control)
        registry = _registry(settings)
        store = SnapshotStore(settings.state_dir / "snapshots.db")
        files = IndexFiles(settings.indexes_dir)
        files.keep_only(store.layers())
        layers = IndexedLayers(
            registry,
            files,
            TraceFiles(settings.traces_dir),
            LayerMounts(layout, control),
            control,
            keeper.serves,
            clock=clock,
        )
        folders = Folders(settings.state_dir / "snapshots")
        snapshotter = Snapshotter(store, folders, layers, clock=clock)

        def pull(order: PullOrder, report: Report) -> None:
            image = Reference.parse(order.reference)
            expect = layers.expect if order.snapshotter == settings.name else None
            with _connected(order.containerd, order.namespace) as containerd:
                puller = _puller(containerd, registry, order.snapshotter, expect)
                report.finish(puller.pull(image, report.layer, index=order.index))

        pulls = PullServer(settings.pull_socket, pull)
        server = SnapshotsServer(snapshotter, settings.socket)
        Daemon(snapshotter, server, pulls, keeper).run()
        store.close()


def _keeper(arguments: argparse.Namespace) -> None:
    from snapshotter.fs.keeper import keep
    from snapshotter.fs.layout import Layout

    settings = _settings_of_a_daemon()
    layout = Layout(settings.fs_dir)
    sys.exit(keep(layout, _data_process(settings), arguments.descriptor))


def _data_process(settings: SnapshotterSettings) -> Callable[[int], None]:
    """Serves layers on a descriptor; all that it needs is imported now, before a fork."""
    from infra.clock import boot_id
    from infra.json_socket import JsonServer
    from infra.sources.sources import Sources
    from snapshotter.blob.fetcher import Fetcher
    from snapshotter.blob.freed_memory import keep_freed_memory
    from snapshotter.blob.starts import Starts, ignore_trace
    from snapshotter.blob.store import ChunkStore
    from snapshotter.blob.weights.open_weights import OpenWeights
    from snapshotter.containerd.index_files import IndexFiles
    from snapshotter.containerd.layer_opener import LayerOpener
    from snapshotter.fs.data_process import DataProcess
    from snapshotter.fs.layout import Layout
    from snapshotter.trace.files import TraceFiles
    from snapshotter.trace.shared import TracePusher

    share, proven = _sharing(settings), _proven(settings)

    def serve(descriptor: int) -> None:
        # a layer's tree has no garbage, and a pull waits for 200,000 objects of it
        gc.freeze()
        gc.set_threshold(100_000)
        keep_freed_memory()
        store = ChunkStore(
            settings.chunks_dir, capacity_bytes=settings.cache_bytes, boot_id=boot_id()
        )
        fetcher = Fetcher(store, background_bytes_per_s=settings.background_bytes_per_s)
        registry = _registry(settings)
        on_new_trace = TracePusher(registry) if settings.share_traces else ignore_trace
        starts = Starts(TraceFiles(settings.traces_dir), on_new_trace=on_new_trace)
        starts.watch()
        sharing = share(store)
        deadline_s = settings.read_deadline_s
        origins = Sources(plain_http=settings.plain_http)
        weights = OpenWeights(origins.remote, fetcher, sharing, proven, deadline_s=deadline_s)
        JsonServer(settings.weights_socket, weights.verbs).start()
        opener = LayerOpener(
            IndexFiles(settings.indexes_dir),
            registry,
            fetcher,
            starts,
            sharing,
            deadline_s=deadline_s,
        )
        layout = Layout(settings.fs_dir)
        verbs = opener.verbs()
        process = DataProcess(layout, descriptor, opener, verbs, opener.close, retry_s=deadline_s)
        process.serve()

    return serve


def _sharing(settings: SnapshotterSettings) -> Callable[["ChunkStore"], "Sharing"]:
    """With other nodes, where they are named; who cannot listen neither gives nor takes."""
    import structlog

    from snapshotter.blob.peers.peering import Alone, Peering, PeerTerms
    from snapshotter.blob.peers.redis_directory import RedisDirectory

    def share(store: "ChunkStore") -> "Sharing":
        if settings.peers_listen is None:
            return Alone()
        assert settings.peers_redis_url is not None and settings.peers_token is not None
        host, _, port = settings.peers_listen.rpartition(":")
        terms = PeerTerms(
            settings.node,
            host.strip("[]"),
            int(port),
            settings.peers_token.get_secret_value(),
            settings.peers_address or settings.peers_listen,
            settings.peers_upload_bytes_per_s,
        )
        try:
            return Peering(store, RedisDirectory(settings.peers_redis_url), terms)
        except OSError as error:
            structlog.get_logger().error("peers.not_shared", error=error.strerror)
            return Alone()

    return share


def _proven(settings: SnapshotterSettings) -> "ProvenWeights":
    """What is known of weights, by all nodes that share chunks and can show it."""
    from snapshotter.blob.weights.proven import MemoryProvenWeights, RedisProvenWeights

    if settings.peers_redis_url is None or settings.peers_token is None:
        return MemoryProvenWeights()
    token = settings.peers_token.get_secret_value()
    return RedisProvenWeights(settings.peers_redis_url, token=token)


def _settings_of_a_daemon() -> SnapshotterSettings:
    from infra.logs import configure

    settings = SnapshotterSettings()
    configure(level=settings.log_level, as_json=settings.log_format == "json")
    return settings


@contextmanager
def _containerd(
    settings: SnapshotterSettings, arguments: argparse.Namespace
) -> Iterator["Containerd"]:
    address = arguments.address or settings.containerd_socket
    with _connected(address, settings.containerd_namespace) as containerd:
        yield containerd


@contextmanager
def _connected(address: Path, namespace: str) -> Iterator["Containerd"]:
    from infra.containerd.client import Containerd
    from snapshotter.containerd.problems import check_listening, told_as_problems

    check_listening(address)
    with (
        told_as_problems(address),
        Containerd(address, namespace=namespace) as containerd,
    ):
        yield containerd


def _registry(settings: SnapshotterSettings) -> "Registry":
    from infra.registry.authorization import Authorization, docker_logins
    from infra.registry.client import Registry
    from infra.registry.connections import Connections

    connections = Connections(is_plain=settings.is_plain)
    logins = docker_logins(settings.docker_config)
    return Registry(connections, Authorization(connections, logins))


if __name__ == "__main__":
    run()
