"""Our engine beside vLLM, llama.cpp, OpenVINO GenAI and transformers: same prompts, same cores."""

import argparse
import asyncio
import json
import logging
import os
import signal
import statistics
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from rich.console import Console

from benchmarks.engine_peers.install import RECIPES, Environment, NotInstalled, install_all, say
from benchmarks.engine_peers.ours import engine_settings, our_replica
from benchmarks.engine_peers.servers import CONTEXT, STREAMS, THREADS, NotStarted, Running, running
from benchmarks.measure import workloads
from benchmarks.measure.client import RequestFailed, complete
from benchmarks.measure.machine import Machine, measure_machine
from benchmarks.measure.own import OWN_SECTIONS
from benchmarks.measure.report import (
    FORMATS,
    OURS,
    PLAIN,
    Results,
    as_markdown,
    engines_table,
    targets,
    targets_table,
)
from benchmarks.measure.weights import ModelFacts, read_facts
from benchmarks.measure.workloads import Prompts

THIS_MACHINE = "this machine"  # in the place of a format and of an engine

Values = dict[str, float]
Sample = Callable[[Running, Prompts, str], Coroutine[None, None, Values]]


@dataclass(frozen=True, slots=True)
class Setup:
    """What one run compares, and how long it takes over it."""

    model: Path
    facts: ModelFacts
    formats: Sequence[str]
    sections: Sequence[str]
    rounds: int
    most_samples: int  # of a section
    with_ours: bool
    environments: Mapping[str, Environment | NotInstalled]


async def _decode(server: Running, prompts: Prompts, seed: str) -> Values:
    return {"tpot": await workloads.decode(server.endpoint, prompts, seed)}


async def _throughput(
    server: Running, prompts: Prompts, seed: str, *, streams: int, prompt_tokens: int
) -> Values:
    rate = await workloads.throughput(
        server.endpoint, prompts, seed, streams=streams, prompt_tokens=prompt_tokens
    )
    return {f"throughput/{streams}/{prompt_tokens}": rate}


async def _prefill(server: Running, prompts: Prompts, seed: str) -> Values:
    return {"prefill": await workloads.prefill(server.endpoint, prompts, seed)}


async def _prefix(server: Running, prompts: Prompts, seed: str) -> Values:
    cold_s, warm_s = await workloads.prefix(server.endpoint, prompts, seed)
    return {"prefix/cold": cold_s, "prefix/warm": warm_s}


async def _gaps(server: Running, prompts: Prompts, seed: str) -> Values:
    seen = await workloads.gaps(server.endpoint, prompts, seed)
    return {"gap/median": seen.median_s, "gap/p99": seen.p99_s, "gap/worst": seen.worst_s}


# Of every engine, in this order within a round.
SECTIONS: dict[str, tuple[Sample, ...]] = {
    "decode": (_decode,),
    "throughput": (
        *(partial(_throughput, streams=streams, prompt_tokens=128) for streams in (8, 16, 32)),
        partial(_throughput, streams=1, prompt_tokens=128),
        partial(_throughput, streams=32, prompt_tokens=189),
    ),
    "prefill": (_prefill,),
    "prefix": (_prefix,),
    "gaps": (_gaps,),
}


def main() -> None:
    """Prints the tables. An interrupted run ends its servers, and prints what it has."""
    logging.disable()  # of the control plane's stand-in, whose polls are cut when a replica goes
    signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))
    try:
        _run(_arguments())
    except KeyboardInterrupt:
        say("interrupted: every server that was started has ended")
        sys.exit(130)


def _run(arguments: argparse.Namespace) -> None:
    model = Path(os.environ["FIRSTLIGHT_TEST_MODEL"])  # noqa: TID251 - set by scripts/bench
    peers = [] if arguments.ours_only else arguments.peers
    setup = Setup(
        model=model,
        facts=read_facts(model),
        formats=arguments.formats,
        sections=arguments.sections,
        rounds=arguments.rounds or (1 if arguments.quick else 3),
        most_samples=3 if arguments.quick else 5,
        with_ours=not arguments.peers_only,
        environments=install_all(peers),
    )
    results = Results()
    if arguments.resume and arguments.output and arguments.output.with_suffix(".json").exists():
        earlier = json.loads(arguments.output.with_suffix(".json").read_text())
        results = Results.from_json(earlier)
    try:
        asyncio.run(compare(setup, results))
    finally:
        publish(results, peers, arguments.output)


async def compare(setup: Setup, results: Results) -> None:
    """Format by format, so that only the engines of one are in memory."""
    prompts = Prompts(setup.model)
    for number_format in setup.formats:
        if any(section in SECTIONS for section in setup.sections):
            async with _contenders(setup, number_format, results) as servers:
                await _rounds(setup, servers, prompts, results)
        if setup.with_ours:
            for name in (name for name in OWN_SECTIONS if name in setup.sections):
                say(f"{number_format}: {name}")
                try:
                    await OWN_SECTIONS[name](setup.model, setup.facts, number_format, results)
                except (RequestFailed, NotStarted) as error:
                    results.remarks.append(f"{name}, {number_format}: {error}")


@asynccontextmanager
async def _contenders(
    setup: Setup, number_format: str, results: Results
) -> AsyncIterator[list[Running]]:
    """Every engine that starts, asleep; why one does not is remarked."""
    async with AsyncExitStack() as stack:
        servers: list[Running] = []
        for name, environment in setup.environments.items():
            try:
                if isinstance(environment, NotInstalled):
                    raise environment
                say(f"{number_format}: starting {name}")
                server = await stack.enter_async_context(
                    running(name, number_format, setup.model, environment)
                )
                await _warm_up(server)
            except (NotInstalled, NotStarted, RequestFailed) as error:
                results.remarks.append(f"{name}, {number_format}: {error}")
                continue
            servers.append(server)
        if setup.with_ours:
            settings = engine_settings(number_format, kv_cache_tokens=STREAMS * CONTEXT)
            replica = our_replica(number_format, setup.model, settings)
            servers.append(await stack.enter_async_context(replica))
            await _warm_up(servers[-1])
        for server in servers:
            results.add("ready", number_format, server.name, server.ready_s)
        if setup.with_ours and "decode" in setup.sections:
            settings = engine_settings(number_format, speculation="none")
            replica = our_replica(number_format, setup.model, settings)
            plain = await stack.enter_async_context(replica)
            servers.append(replace(plain, name=PLAIN))
            await _warm_up(servers[-1])
        yield servers


async def _warm_up(server: Running) -> None:
    """What an engine compiles or allocates at first use is not measured; then it sleeps."""
    try:
        for length in (8, 300):
            prompt = list(range(1000, 1000 + length))
            await complete(server.endpoint, prompt, max_tokens=8)
    finally:
        server.stop_computing()


async def _rounds(
    setup: Setup, servers: Sequence[Running], prompts: Prompts, results: Results
) -> None:
    """A B C, A B C: neighbours in time are what is compared, as machines drift."""
    for number in range(setup.rounds):
        machine = measure_machine(THREADS)
        for name, value in asdict(machine).items():
            results.add(name, THIS_MACHINE, THIS_MACHINE, value)
        for section in (name for name in SECTIONS if name in setup.sections):
            for index, sample in enumerate(SECTIONS[section][: setup.most_samples]):
                for server in (each for each in servers if _has_part(each, section)):
                    seed = f"{number}/{section}/{index}"
                    values = await _take(server, sample, prompts, seed, results)
                    _record(server, values | _shares(setup.facts, machine, server, values), results)
    for server in (each for each in servers if each.name != PLAIN):
        results.add("pss", server.number_format, server.name, server.pss_bytes())


def _has_part(server: Running, section: str) -> bool:
    """Ours without guesses is there for one stream alone: with more there are none anyway."""
    return server.name != PLAIN or section == "decode"


async def _take(
    server: Running, sample: Sample, prompts: Prompts, seed: str, results: Results
) -> Values:
    """What was measured; nothing where that failed, which is remarked."""
    say(f"{server.number_format} {seed} {server.name}")
    try:
        with server.awake():
            return await sample(server, prompts, seed)
    except (RequestFailed, OSError) as error:
        results.remarks.append(f"{server.name}, {server.number_format}, {seed}: {error}")
        return {}


def _record(server: Running, values: Values, results: Results) -> None:
    for metric, value in values.items():
        if server.name == PLAIN:
            results.add(f"{metric}/plain", server.number_format, OURS, value)
        else:
            results.add(metric, server.number_format, server.name, value)


def _shares(facts: ModelFacts, machine: Machine, server: Running, values: Values) -> Values:
    """MBU and MFU: of what the machine can do now, by the bytes and products of the format."""
    shares: Values = {}
    weight_bytes = facts.weight_bytes(server.number_format)
    if "tpot" in values and weight_bytes is not None:
        shares["mbu"] = weight_bytes / values["tpot"] / machine.read_bytes
    if "prefill" in values:
        is_integer = server.number_format != "bf16" and server.name in {OURS, "vllm"}
        peak = machine.int8_ops if is_integer else machine.bf16_flops
        shares["mfu"] = values["prefill"] * facts.operations_per_token / peak
    return shares


def _headline(results: Results) -> str:
    """What the machine could do, at the median of the rounds, and at worst and best."""
    said = []
    for name, what, unit in (
        ("read_bytes", "reads", "GB/s"),
        ("bf16_flops", "multiplies", "GFLOP/s in bf16"),
        ("int8_ops", "multiplies", "GOP/s in int8"),
    ):
        values = results.samples.get((name, THIS_MACHINE, THIS_MACHINE), [])
        if values:
            low, middle, high = min(values), statistics.median(values), max(values)
            said.append(f"{what} {middle / 1e9:.0f} ({low / 1e9:.0f} to {high / 1e9:.0f}) {unit}")
    return f"this machine, {THREADS} threads: {', '.join(said)}" if said else ""


def publish(results: Results, peers: Sequence[str], output: Path | None) -> None:
    """On the screen, and as JSON and Markdown beside each other where asked."""
    headline = _headline(results)
    tables = [engines_table(results, peers), targets_table(targets(results))]
    console = Console(width=max(180, Console().width))
    if headline:
        console.print(headline)
    for table in tables:
        console.print(table)
    for remark in results.remarks:
        console.print(f"- {remark}", markup=False)
    if output is not None:
        output.with_suffix(".json").write_text(json.dumps(results.as_json(), indent=1))
        remarks = "\n".join(f"- {remark}" for remark in results.remarks)
        parts = [headline, *map(as_markdown, tables), remarks]
        output.with_suffix(".md").write_text("\n\n".join(part for part in parts if part) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench engine", description=__doc__)
    every = (*SECTIONS, *OWN_SECTIONS)
    parser.add_argument("--peers", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--sections", nargs="+", choices=every, default=list(every))
    parser.add_argument("--rounds", type=int, help="of every engine, interleaved (3)")
    parser.add_argument(
        "--quick", action="store_true", help="one round of the most telling samples"
    )
    parser.add_argument("--ours-only", action="store_true", help="no peers, nothing to install")
    parser.add_argument("--peers-only", action="store_true", help="the figures to beat")
    parser.add_argument("--output", type=Path, help="also write OUTPUT.json and OUTPUT.md")
    parser.add_argument("--resume", action="store_true", help="add to the samples of OUTPUT.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
