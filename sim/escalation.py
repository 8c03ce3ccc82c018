"""`fidelity: auto`: which variants run again packet by packet, and why.

Every variant has run in fluid (or, where only packets can express it, in packets). A variant escalates for reasons of
its own: what it asks of switches and transports, loss, an incast, short flows; and because its verdict against the
best is contested. With it escalate its *rivals*, the variants of the same traffic on the same cluster: figures of two
fidelities do not compare. See docs/decisions/009-escalation.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from sim.fabric.topology import Topology
from sim.results.main_metric import main_metric
from sim.results.metrics import format_percent, format_value, meaning_of
from sim.results.run_results import RunResults, VariantResult
from sim.results.statistics import Estimate, mean_interval, paired_difference
from sim.results.store import StoredTables
from sim.scenario.build_cluster import build_topology
from sim.scenario.estimate import MOST_PACKET_HOPS, PACKET_HOPS_PER_S, planned_cost
from sim.scenario.load import LoadedScenario
from sim.scenario.schema import Scenario

FIDELITY_ERROR = 0.05
"""How far fluid and packets may lie apart where fluid is of use: what `spindle validate` holds them to."""

CROWD = 4.0
"""An incast: senders that could together fill the receiver's link so many times over. An all-to-all makes 1."""

SHORT_SHARE = 0.1
"""Short flows matter when they are at least this share of a workload's messages."""

INSTANTS = 200
"""At how many arrivals of messages the crowds are counted."""


@dataclass(slots=True)
class Decision:
    """because: sentences per variant that runs again (or ran in packets from the start); empty: fluid is enough.

    stays: variants with reasons that fluid has to do for all the same, and why.
    """

    because: dict[str, list[str]] = field(default_factory=dict)
    stays: dict[str, str] = field(default_factory=dict)

    def escalated(self, loaded: LoadedScenario) -> list[tuple[str, Scenario]]:
        """What is to run again, at packet level."""
        return [
            (label, scenario.in_fidelity("packet"))
            for label, scenario in loaded.variants
            if self.because.get(label) and label not in self.stays and scenario.first_fidelity == "fluid"
        ]


def decide(loaded: LoadedScenario, run: RunResults, most_packet_hops: float | None = None) -> Decision:
    """From the first results of every variant and seed; depends on nothing else but the limit on packet-hops."""
    autos = {label: scenario for label, scenario in loaded.variants if scenario.fidelity == "auto"}
    decision = Decision({label: [] for label in autos})
    for label, scenario in autos.items():
        decision.because[label] += [_first_clause(sentence) for _, sentence in scenario.why_not("fluid")]
        decision.because[label] += reasons_of_settings(scenario)
        if scenario.first_fidelity == "fluid":
            decision.because[label] += reasons_of_traffic(scenario, run.of_variant(label))
    for label, reason in contested(run).items():
        if label in autos:
            decision.because[label].append(reason)
    for rivals in groups_of_rivals(loaded.variants):
        _close(rivals, dict(loaded.variants), decision)
    _keep_within_budget(loaded, run, decision, most_packet_hops or MOST_PACKET_HOPS)
    return decision


def _first_clause(sentence: str) -> str:
    return sentence.partition(";")[0]


def _percent(share: float) -> str:
    return format_percent(Estimate(abs(share), None, None, 1), signed=False)


# --- a variant's own reasons ------------------------------------------------------------------------------------------


def reasons_of_settings(scenario: Scenario) -> list[str]:
    """What a variant asks for that fluid leaves out: transports, what switches hold and mark, what a fault loses."""
    packet, transport = scenario.packet, scenario.packet.transport
    reasons = []
    if transport.kind != "window":
        reasons.append(f"transport: {transport.kind} steers by queues and losses, which fluid does not have")
    if transport.receiver == "go_back_n":
        reasons.append("loss: a receiver that goes back loses what is behind a gap, and fluid loses nothing")
    imported = getattr(scenario.cluster.fabric, "queue_bytes", None)
    if packet.buffer is not None or imported is not None:
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
            f"short flows: {_percent(share)} of {workload}'s messages are shorter than a bandwidth-delay product, "
            "where storing and forwarding counts"
        )
    return reasons


def _flows_between_hosts(result: VariantResult, topology: Topology) -> pd.DataFrame:
    if "flows" not in result.tables:
        return pd.DataFrame()
    names = ["workload", "source", "destination", "size_bytes", "ready_s", "received_s", "row_weight"]
    flows = _columns(result, "flows", names)
    host = topology.host_of_accelerator
    return flows[host[flows.source.to_numpy()] != host[flows.destination.to_numpy()]]


def _columns(result: VariantResult, table: str, names: list[str]) -> pd.DataFrame:
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


# --- rivals -----------------------------------------------------------------------------------------------------------


def contested(run: RunResults) -> dict[str, str]:
    """Variants whose verdict on the metric that answers the question fluid cannot give, and the best with them.

    Among those that ran in fluid: what ran in packets does not compare with them.
    """
    whole = run.comparable()
    in_fluid = tuple(name for name in whole.variants if whole.fidelity_of(name) == "fluid")
    whole = replace(whole, variants=in_fluid)
    key = main_metric(whole)
    contenders = [name for name in in_fluid if name != whole.ideal_variant]
    if key is None or (run.answer is not None and key != run.answer):
        missing = f"the answer, {run.answer}, is a metric of packets"
        return dict.fromkeys(contenders, missing) if run.answer is not None else {}
    meaning = meaning_of(key)
    means = {name: mean_interval(whole.values(name, key)).mean for name in contenders}
    sign = -1.0 if meaning.better == "higher" else 1.0
    ranked = sorted((sign * mean, i) for i, mean in enumerate(means.values()) if mean is not None)
    names = [contenders[i] for _, i in ranked]
    found: dict[str, str] = {}
    for name in names[1:]:
        best = names[0]
        gap = paired_difference(whole.values(name, key), whole.values(best, key), meaning.better, meaning.is_share)
        apart = gap.difference.mean if meaning.is_share else gap.relative.mean
        if apart is None:
            continue
        own, other = format_value(means[name], meaning), format_value(means[best], meaning)
        if abs(apart) < FIDELITY_ERROR:
            by = _percent(apart) if abs(apart) >= 0.0005 else "less than 0.1 %"
            why = f"{by} apart in fluid, which may be {_percent(FIDELITY_ERROR)} off"
        elif gap.verdict == "unclear":
            why = "an interval that includes 0"
        else:
            continue
        found.setdefault(best, f"contested: {meaning.label} {other}, {name} {own}: {why}")
        found[name] = f"contested: {meaning.label} {own}, {best} {other}: {why}"
    return found


def groups_of_rivals(variants: Sequence[tuple[str, Scenario]]) -> list[list[str]]:
    """Labels of variants that carry the same traffic over the same cluster."""
    groups: dict[str, list[str]] = {}
    for label, scenario in variants:
        same = scenario.model_dump_json(include={"cluster", "workloads", "cost", "max_time_s"})
        groups.setdefault(same, []).append(label)
    return list(groups.values())


def _close(rivals: Sequence[str], scenarios: Mapping[str, Scenario], decision: Decision) -> None:
    """One that escalates takes its rivals along; what packets cannot express stays in fluid."""
    why_not = {
        name: [_first_clause(sentence) for _, sentence in scenarios[name].why_not("packet")]
        for name in rivals
        if scenarios[name].fidelity == "auto"
    }
    first = next(
        (n for n in rivals if scenarios[n].fidelity == "packet" or (decision.because.get(n) and not why_not[n])), None
    )
    for name, sentences in why_not.items():
        if first is not None and not decision.because[name]:
            decision.because[name].append(f"rival of {first}: figures of two fidelities do not compare")
        if decision.because[name] and sentences:
            decision.stays[name] = sentences[0]


# --- cost -------------------------------------------------------------------------------------------------------------


def _keep_within_budget(loaded: LoadedScenario, run: RunResults, decision: Decision, most: float) -> None:
    """Group by group, in the scenario's order, as long as the packet-hops of all together stay below the limit."""
    scenarios = dict(loaded.variants)
    escalated = {label for label, _ in decision.escalated(loaded)}
    in_packets = [s for s in scenarios.values() if s.first_fidelity == "packet"]
    spent = float(sum(planned_cost(s, loaded.seeds[0]).packet_hops for s in in_packets) * len(loaded.seeds))
    for rivals in groups_of_rivals(loaded.variants):
        chosen = [name for name in rivals if name in escalated]
        hops = sum(_packet_hops(scenarios[name], run.of_variant(name)) for name in chosen)
        if spent + hops <= most:
            spent += hops
            continue
        for name in chosen:
            decision.stays[name] = (
                f"it and its rivals need about {hops:.2g} packet-hops ({hops / PACKET_HOPS_PER_S / 60:.0f} minutes of "
                f"one core), {spent + hops:.2g} with what runs in packets already, above the {most:.2g} allowed; allow "
                f"them with --max-packet-hops {spent + hops:.2g}"
            )


def _packet_hops(scenario: Scenario, results: Sequence[VariantResult]) -> float:
    """Of all seeds: what is planned, or what the fluid runs carried over their links, whichever is more."""
    planned = planned_cost(scenario, results[0].seed).packet_hops * len(results)
    carried = 0.0
    for result in results:
        links = _columns(result, "links", ["tier", "wire_bytes"])
        carried += float(links.wire_bytes[links.tier != "injection"].sum()) / scenario.packet.mtu_bytes
    return max(planned, carried)
