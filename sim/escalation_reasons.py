"""What about a variant itself calls for packets: what it asks of switches and transports, incasts, short flows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from sim.fabric.topology import Topology
from sim.results.metrics import format_percent
from sim.results.run_results import VariantResult
from sim.results.statistics import Estimate
from sim.results.store import StoredTables
from sim.scenario.build_cluster import build_topology
from sim.scenario.schema import Scenario

CROWD = 4.0
"""An incast: senders that could together fill the receiver's link so many times over. An all-to-all makes 1."""

SHORT_SHARE = 0.1
"""Short flows matter when they are at least this share of a workload's messages."""

INSTANTS = 200
"""At how many arrivals of messages the crowds are counted."""


def percent(share: float) -> str:
    """Its size, without a sign."""
    return format_percent(Estimate(abs(share), None, None, 1), signed=False)


def reasons_of_settings(scenario: Scenario) -> list[str]:
    """What a variant asks for that fluid leaves out: transports, what switches hold and mark, what a fault loses."""
    packet, transport = scenario.packet, scenario.packet.transport
    reasons = []
    if transport.kind != "window":
        reasons.append(f"transport: {transport.kind} steers by queues and losses, which fluid does not have")
    if transport.receiver == "go_back_n":
        reasons.append("loss: a receiver that goes back loses what is behind a gap, and fluid loses nothing")
    if packet.buffer is not None or scenario.imported_buffer_bytes is not None:
        reasons.append("loss: buffers are finite, and fluid has no queue that could overflow")
    if packet.ecn is not None or packet.pfc or packet.trim:
        reasons.append("loss: switches mark, pause or trim by their queues, which fluid does not have")
    down = [f.link or f.switch or f"host {f.host}" for f in scenario.faults if f.state == "down"]
    if down:
        reasons.append(f"loss: what is on its way across {down[0]} when it goes down is lost, in fluid it only waits")
    return reasons


def reasons_of_traffic(scenario: Scenario, results: Sequence[VariantResult]) -> list[str]:
    """Incasts and short flows among the messages that a variant's fluid runs sent."""
    topology = build_topology(scenario.cluster)
    crowds, shorts = [], []
    for result in results:
        flows = _flows_between_hosts(result, topology)
        if len(flows):
            crowds.append(largest_crowd(flows, topology))
            shorts += short_shares(flows, topology)
    reasons = []
    if crowds and max(crowds)[0] >= CROWD:
        times, senders, receiver = max(crowds)
        reasons.append(
            f"incast: {senders} messages at once could fill the link into accelerator {receiver} {times:.1f} times "
            f"over (from {CROWD:g} times on, queues count)"
        )
    if shorts and max(shorts)[0] >= SHORT_SHARE:
        share, workload = max(shorts)
        reasons.append(
            f"short flows: {percent(share)} of {workload}'s messages are shorter than a bandwidth-delay product, "
            "where storing and forwarding counts"
        )
    return reasons


def _flows_between_hosts(result: VariantResult, topology: Topology) -> pd.DataFrame:
    if "flows" not in result.tables:
        return pd.DataFrame()
    names = ["workload", "source", "destination", "size_bytes", "ready_s", "received_s", "row_weight"]
    flows = columns_of(result, "flows", names)
    host = topology.host_of_accelerator
    return flows[host[flows.source.to_numpy()] != host[flows.destination.to_numpy()]]


def columns_of(result: VariantResult, table: str, names: list[str]) -> pd.DataFrame:
    tables = result.tables
    return tables.read(table, names) if isinstance(tables, StoredTables) else tables[table][names]


def largest_crowd(flows: pd.DataFrame, t: Topology) -> tuple[float, int, int]:
    """(how many times over, messages, accelerator): the fullest that a receiver's link could be.

    A sender's NIC shares its rate evenly among the messages that it has in flight; what all of them could send to one
    receiver is set against the rate of its link. Seen at the arrivals of INSTANTS messages.
    """
    accelerator = flows.destination.to_numpy()
    source, destination = t.nic_of_accelerator[flows.source.to_numpy()], t.nic_of_accelerator[accelerator]
    begin = flows.ready_s.to_numpy(np.float64)
    end = np.nan_to_num(flows.received_s.to_numpy(np.float64), nan=np.inf)
    weight = flows.row_weight.to_numpy(np.float64)
    arrivals = np.unique(begin[np.isfinite(begin)])
    if not len(arrivals):
        return 0.0, 0, 0
    instants = arrivals[np.unique(np.linspace(0, len(arrivals) - 1, INSTANTS).astype(np.int64))]
    best = (0.0, 0, 0)
    for now_s in instants:
        active = np.flatnonzero((begin <= now_s) & (now_s < end))
        if not len(active):
            continue
        a, b = source[active], destination[active]
        shared_by = np.bincount(a, weight[active], t.num_nics)
        offered = np.bincount(b, weight[active] * t.nic_rate[a] / shared_by[a], t.num_nics) / t.nic_rate
        fullest = int(offered.argmax())
        if offered[fullest] > best[0]:
            into = active[b == fullest]
            best = (float(offered[fullest]), round(float(weight[into].sum())), int(accelerator[into[0]]))
    return best


def short_shares(flows: pd.DataFrame, t: Topology) -> list[tuple[float, str]]:
    """(share of messages below a bandwidth-delay product of their path, workload), NIC rate times idle round trip."""
    source, destination = flows.source.to_numpy(), flows.destination.to_numpy()
    product = t.nic_rate[t.nic_of_accelerator[source]] * 2 * t.latency_s(source, destination)
    is_short = flows.size_bytes.to_numpy() < product
    shares = pd.Series(is_short, dtype=np.float64).groupby(flows.workload.astype(str).to_numpy()).mean()
    return [(float(share), str(workload)) for workload, share in shares.items()]
