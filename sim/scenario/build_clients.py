"""From the clients of a serving workload to who sends its requests."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sim.engine.random import RandomStreams
from sim.scenario.clients import ClosedLoopArrivals, ExponentialTime, FixedTime, LognormalTime
from sim.scenario.schema import Scenario
from sim.scenario.serving import Serving
from sim.serving.clients import Clients, ClosedLoop, OpenLoop, Patience, Sessions, ThinkTime
from sim.serving.fleet import Fleet, Outage, Scaling
from sim.serving.front import Front
from sim.serving.pools_front import PoolsFront


def build_front(
    w: Serving, arrival_s: np.ndarray, num_turns: np.ndarray | None, streams: RandomStreams,
    outages: Sequence[Outage] = (),
) -> Front | None:  # fmt: skip
    """None for an open loop whose clients wait for ever, on replicas that stay: nobody reacts to anything.

    arrival_s    of requests, or with num_turns of sessions
    """
    if not w.is_reactive and not outages:
        return None
    clients: Clients = OpenLoop(arrival_s)
    if isinstance(w.arrivals, ClosedLoopArrivals):
        rng = streams.stream(f"workload.{w.name}.think")
        think = None if w.arrivals.think_time is None else think_times(w.arrivals.think_time, rng, len(arrival_s))
        clients = ClosedLoop(w.arrivals.concurrency, len(arrival_s), think, w.duration_s, w.arrivals.ramp_s)
    if w.sessions is not None and num_turns is not None:
        rng = streams.stream(f"workload.{w.name}.turn_think")
        law = w.sessions.think_time
        clients = Sessions(clients, num_turns, None if law is None else think_times(law, rng, int(num_turns.sum())))
    if w.disaggregation is not None:
        return PoolsFront(clients)
    c = w.client
    is_for_first = c.timeout_ends_with == "first_token"
    patience = Patience(c.timeout_s, is_for_first, c.retries, c.backoff_s, c.on_failure == "retry")
    a = w.autoscale
    scaling = None if a is None else Scaling(
        a.min, a.max, a.target_outstanding, a.interval_s, a.provisioning_delay_s, a.cooldown_s
    )  # fmt: skip
    num_accelerators = w.parallelism.num_accelerators
    return Front(clients, patience, Fleet(outages, w.router.report_interval_s, scaling, w.replicas, num_accelerators))


def outages_of(scenario: Scenario, w: Serving, host_of: np.ndarray) -> list[Outage]:
    """The faults that take replicas of a workload down: their own, and those of hosts on which they lie."""
    ranks, n = scenario.ranks_of(w), w.parallelism.num_accelerators
    hosts = [{int(host_of[rank]) for rank in ranks[i * n : (i + 1) * n]} for i in range(w.most_replicas)]
    found = []
    for fault in scenario.faults:
        hit: list[int] = []
        if fault.replica is not None:
            name, _, index = fault.replica.rpartition("/")
            hit = [int(index)] if name == w.name else []
        elif fault.host is not None and fault.state == "down":
            hit = [i for i, lies_on in enumerate(hosts) if fault.host in lies_on]
        if hit:
            found.append(Outage(tuple(hit), fault.at_s, fault.until_s))
    return found


def think_times(
    law: FixedTime | ExponentialTime | LognormalTime, rng: np.random.Generator, num: int
) -> ThinkTime:
    """After each of so many requests."""
    match law:
        case FixedTime():
            return lambda request: law.time_s
        case ExponentialTime():
            times_s = rng.exponential(law.mean_s, num)
        case LognormalTime():
            times_s = rng.lognormal(math.log(law.mean_s) - law.sigma**2 / 2, law.sigma, num)
    return times_s.tolist().__getitem__
