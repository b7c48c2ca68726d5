"""`platform nodes`: the machines, their GPUs, and who has them."""

from collections.abc import Sequence
from typing import Annotated

import typer
from rich.text import Text

from control_plane.cli.session import printable, session_of
from control_plane.cli.table import table
from control_plane.cli.units import amount, duration
from infra.contracts.base import NodeId
from infra.contracts.node import Gpu, Leaving, NodeStatus

HEADINGS = (
    *("NODE", "STATE", "RUNS", "CPUS", "MEMORY", "GPUS", "PARKED", "ASLEEP", "REPLICAS", "AGE"),
)
GPU_HEADINGS = ("NODE", "GPU", "CLASS", "MEMORY", "USED", "DRIVER", "HOLDER")
NUMBERS = frozenset(HEADINGS[3:]) | {"USED"}
RUNS = {"process": "processes", "container": "containers"}

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def nodes(context: typer.Context, json: Json = False) -> None:
    """List machines with their GPUs, and who has those."""
    session = session_of(context)
    found = session.platform.nodes()
    if json:
        session.print_json(f"[{','.join(node.model_dump_json() for node in found)}]")
    elif found:
        session.out.print(*listing(found, unix_now=session.unix_now()), sep="\n")
    else:
        session.err.print("no node is registered")


def listing(found: Sequence[NodeStatus], *, unix_now: float) -> list[Text]:
    """One line a node, one line a GPU where there are any, why nodes leave, and why they keep
    workers parked."""
    lines = table(HEADINGS, (_row(node, unix_now) for node in found), numbers=NUMBERS)
    gpus = [_gpu_row(node.node_id, gpu) for node in found for gpu in node.gpus]
    if gpus:
        lines += [Text(), *table(GPU_HEADINGS, gpus, numbers=NUMBERS)]
    remarks = [
        *(_why_leaving(node.node_id, node.leaving, unix_now) for node in found if node.leaving),
        *(_why_parked(node) for node in found if node.standby_reason),
    ]
    return [*lines, Text(), *remarks] if remarks else lines


def _why_leaving(node_id: NodeId, leaving: Leaving, unix_now: float) -> Text:
    if leaving.at is None:
        when = "leaves, not known when"
    elif leaving.at > unix_now:
        when = f"leaves in {duration(leaving.at - unix_now)}"
    else:
        when = f"was to leave {duration(unix_now - leaving.at)} ago"
    return Text(f"{node_id} {when}: {printable(leaving.reason)}")


def _why_parked(node: NodeStatus) -> Text:
    return Text(f"{node.node_id} keeps {node.standby} parked: {printable(node.standby_reason)}")


def _row(node: NodeStatus, unix_now: float) -> list[Text]:
    return [
        Text(node.node_id),
        Text("leaving", style="yellow") if node.leaving else Text("ready"),
        Text(RUNS[node.runtime]),
        Text(str(node.cpus)),
        Text(amount(node.memory_bytes)),
        Text(str(len(node.gpus))),
        Text(f"{node.standby_ready}/{node.standby}"),
        Text(str(len(node.sleepers))),
        Text(str(len(node.replicas))),
        Text(duration(unix_now - node.started_at)),
    ]


def _gpu_row(node_id: NodeId, gpu: Gpu) -> list[Text]:
    return [
        Text(node_id),
        Text(printable(gpu.gpu_id)),
        Text(printable(gpu.kind)),
        Text(amount(gpu.memory_bytes)),
        Text(amount(gpu.used_bytes)),
        Text(printable(gpu.driver)),
        _holder(gpu),
    ]


def _holder(gpu: Gpu) -> Text:
    if gpu.trouble is not None:
        return Text(printable(gpu.trouble), style="red")
    if gpu.sleeper is not None:
        return Text(f"{gpu.sleeper} sleeps", style="bright_black")
    return Text(gpu.replica_id or "-")
