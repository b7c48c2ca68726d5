"""How many requests at once replicas have to carry, when some of them wait: pure."""

from control_plane.autoscaler.demand import Demand
from control_plane.autoscaler.window import Load


def wanted_concurrency(
    load: Load | None, demand: Demand, service_s: float, cold_start_s: float
) -> float:
    """The concurrency to size for, from the means of a window and what waits now.

    Requests that wait because replicas still climb are a stock, not a stream: a climb of a minute
    piles up sixty seconds of arrivals, and as many replicas as would serve them all at once would
    be ready when most of the work is done. So:

    1. the stream needs arrivals/s x service_s at once (Little's law);
    2. the stock is to be gone within one more cold start, the soonest that a further replica
       could help: waiting x service_s / cold_start_s at once, and never more than all of it;
    3. never more than there were at once: where requests take longer than the window is, the
       law would count those of a burst many times.
    """
    at_once = float(demand.concurrency) if load is None else load.concurrency
    wanted = float(demand.in_flight) if load is None else load.arrivals_per_s * service_s
    if demand.waiting and cold_start_s > 0:
        wanted += demand.waiting * min(1.0, service_s / cold_start_s)
    return min(at_once, wanted)


def service_time_s(load: Load | None, demand: Demand, *, known_s: float) -> float:
    """How long a request is in flight, as the window has it.

    While none is finished it takes as long as those in flight already took, if not longer.
    """
    if load is None:
        return known_s
    if load.executed >= 1:  # a part of one says nothing
        return load.executing_s / load.executed
    if demand.in_flight == 0:
        return known_s
    return max(known_s, load.executing_s / demand.in_flight)
