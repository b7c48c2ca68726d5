"""The worker's programs: `node`, `zygote`, `replica`, and others; chooses every adapter."""

import argparse
import gc
import sys
from pathlib import Path
from typing import Literal, NoReturn, get_args

from infra.contracts.evaluation import FormatName

PROGRAM = (sys.executable, "-m", "worker.main")


def run() -> None:
    """`python -m worker.main PROGRAM …`"""
    arguments = _parser().parse_args()
    match arguments.program:
        case "node":
            _node()
        case "zygote":
            _zygote(arguments)
        case "replica":
            _replica(arguments)
        case "import-gguf":
            _import_gguf(arguments.source, arguments.target)
        case "export":
            _export(arguments.source, arguments.target)
        case _:
            _evaluate(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="worker", description=__doc__)
    programs = parser.add_subparsers(dest="program", required=True)
    programs.add_parser("node", help="agent of one machine; settings: PLATFORM_NODE_*")
    for name, what in (("zygote", "fork server"), ("replica", "one worker")):
        program = programs.add_parser(name, help=f"{what}; started by the node agent")
        is_replica = name == "replica"
        program.add_argument("--link", type=int, required=not is_replica, help="inherited socket")
        program.add_argument("--parent", type=int, help="process id of the agent")
        program.add_argument("--cache", type=Path, required=True, help="folder of fetched models")
        program.add_argument("--store", type=Path, help="socket of the node's chunk store")
        program.add_argument(
            "--plain-http", action="append", default=[], help="registry without TLS, host:port"
        )
        if is_replica:
            program.add_argument(
                "--socket", help="instead of an inherited one: the agent's, in a container"
            )
            program.add_argument("--ranks", type=int, required=True, help="further processes")
    importer = programs.add_parser("import-gguf", help="GGUF file to Hugging Face folder")
    importer.add_argument("source", type=Path)
    importer.add_argument("target", type=Path)
    exporter = programs.add_parser("export", help="weights rounded to 8 bits, for any engine")
    exporter.add_argument("source", type=Path)
    exporter.add_argument("target", type=Path)
    evaluation = programs.add_parser("eval", help="perplexity of a model in several formats")
    evaluation.add_argument("folder", type=Path)
    evaluation.add_argument("--format", action="append", default=[], choices=get_args(FormatName))
    evaluation.add_argument("--tokens", type=int, required=True)
    evaluation.add_argument("--window", type=int, required=True)
    return parser


def _node() -> None:
    # structlog would load it to paint tracebacks: half of the time until the agent registers.
    sys.modules["rich"] = None  # type: ignore[assignment]
    gc.disable()  # imports make no garbage, and collections look at all that they made
    from infra.errors import PlatformError
    from infra.logs import configure
    from worker.node.nvml import gpus_ahead
    from worker.settings import child_environment, node_settings, visible_gpus

    try:
        settings = node_settings()
        configure(level=settings.log_level, as_json=settings.log_format == "json")
        open_gpus = gpus_ahead(visible_gpus())
        from worker.node.service import run_node  # the larger half, while the driver loads

        gc.freeze()
        gc.enable()
        run_node(settings, program=PROGRAM, environment=child_environment(), open_gpus=open_gpus)
    except PlatformError as error:
        hint = f"hint: {error.hint}\n" if error.hint else ""
        sys.exit(f"error: {error.detail}\n{hint}".rstrip())


def _zygote(arguments: argparse.Namespace) -> NoReturn:
    from worker.boot.process import begin

    begin("fl-zygote", parent=arguments.parent)
    from worker.boot.zygote import run_zygote

    def become(link: int, ranks: int) -> NoReturn:
        _become(link, arguments, origin="fork", num_ranks=ranks)

    run_zygote(arguments.link, preload=load, become=become)


def _replica(arguments: argparse.Namespace) -> NoReturn:
    from worker.boot.entrance import enter
    from worker.boot.process import begin

    link, listening = arguments.link, None
    if arguments.socket is None:
        begin("fl-replica", parent=arguments.parent)
    else:
        begin("fl-replica", parent=None)
        link, listening = enter(arguments.socket)
    load()
    gc.freeze()  # nothing of it ends before the process: no collection has to look at it
    _become(link, arguments, origin="spawn", num_ranks=arguments.ranks, listening=listening)


def load() -> None:
    """Imports everything a replica needs, and leaves no thread behind."""
    from worker.engine.preload import preload

    preload(
        without_torch=(
            "infra.sources.node_chunks",
            "infra.sources.sources",
            "worker.boot.replica",
            "worker.node.machine",
            "worker.server.app",
        ),
        with_torch=("worker.boot.climb", "worker.boot.follower"),
    )


def _become(
    link: int,
    arguments: argparse.Namespace,
    *,
    origin: Literal["fork", "spawn"],
    num_ranks: int,
    listening: int | None = None,
) -> NoReturn:
    """Composes a replica's process: the climb below it, the server above it, ranks beside it."""
    from infra.clock import Clock
    from infra.contracts.node import ReplicaAssignment
    from infra.sources.node_chunks import share_through
    from infra.sources.sources import Sources
    from worker.boot.climb import ModelClimb
    from worker.boot.follower import run_follower
    from worker.boot.ports import Climbed, Server
    from worker.boot.ranks import fork_ranks
    from worker.boot.replica import run_replica
    from worker.node.machine import cpus
    from worker.server.app import ReplicaServer
    from worker.server.defaults import read_sampling_defaults

    def build_server(climbed: Climbed, assignment: ReplicaAssignment, clock: Clock) -> Server:
        return ReplicaServer(
            climbed.engine,
            climbed.tokenizer,
            model=assignment.model,
            revision=assignment.revision,
            token=assignment.token,
            max_output_tokens=assignment.max_output_tokens,
            clock=clock,
            defaults=read_sampling_defaults(climbed.folder),
            listening=listening,
        )

    closes = [link] if listening is None else [link, listening]
    ranks = fork_ranks(num_ranks, run_follower, closes=closes)  # before anything starts a thread
    sources = Sources(
        plain_http=frozenset(arguments.plain_http), share=share_through(arguments.store)
    )
    climb = ModelClimb(sources, cache_dir=arguments.cache, cpus=cpus(), ranks=ranks)
    run_replica(link, origin=origin, climb=climb, build_server=build_server)


def _import_gguf(source: Path, target: Path) -> NoReturn:
    from worker.weights.import_program import run_import

    sys.exit(run_import(source, target, sys.stdout))


def _export(source: Path, target: Path) -> NoReturn:
    from worker.quantization.export_program import run_export

    sys.exit(run_export(source, target, sys.stdout))


def _evaluate(arguments: argparse.Namespace) -> NoReturn:
    from worker.engine.preload import after_fork
    from worker.evaluation.program import run_evaluation
    from worker.node.machine import cpus

    after_fork(cpus())
    code = run_evaluation(
        arguments.folder,
        sys.stdout,
        formats=arguments.format,
        most_tokens=arguments.tokens,
        window=arguments.window,
    )
    sys.exit(code)


if __name__ == "__main__":
    run()
