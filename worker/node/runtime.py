"""Chooses what workers run as: the one place that knows both launchers."""

from worker.node.clock import NodeClock
from worker.node.launcher import Launcher
from worker.node.process_launcher import ProcessLauncher, Programs
from worker.settings import NodeSettings


def build_launcher(settings: NodeSettings, programs: Programs, clock: NodeClock) -> Launcher:
    """The launcher of `settings.runtime`; what containers need is imported for containers only."""
    if settings.runtime == "process":
        return ProcessLauncher(programs)
    from worker.node.container.composition import container_launcher

    return container_launcher(settings, clock)
