"""Makes an Ec2Capacity from what the settings say."""

from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor

from control_plane.capacity.ec2.calls import Calls, Clients, aws_clients
from control_plane.capacity.ec2.events import EventQueue
from control_plane.capacity.ec2.growing import Growing
from control_plane.capacity.ec2.provider import Ec2Capacity
from control_plane.capacity.ec2.view import Reader
from infra.clock import Clock

_THREADS = 8


def ec2_capacity(
    deployment: str,
    *,
    clock: Clock,
    queue_url: str | None = None,
    is_leading: Callable[[], bool] = lambda: True,
    clients: Clients | None = None,
    threads: Executor | None = None,
    look_s: float = 15.0,
    poll_s: int = 20,
) -> Ec2Capacity:
    """The groups with the tag `firstlight:deployment` of this value.

    Raises DependencyMissing without boto3, BadSpec without a region.
    """
    calls = Calls(
        clients or aws_clients(),
        threads or ThreadPoolExecutor(_THREADS, thread_name_prefix="aws"),
    )
    reader = Reader(calls, deployment)
    growing = Growing(calls, reader, clock=clock)
    events = None if queue_url is None else EventQueue(calls, queue_url, wait_s=poll_s)
    return Ec2Capacity(
        *(calls, reader, growing),
        clock=clock,
        events=events,
        is_leading=is_leading,
        look_s=look_s,
    )
