"""Samples behind the figures: flow times, token latencies and link loads, taken from the tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sim.results.run_results import RunResults, VariantResult
from sim.results.statistics import Estimate, mean_interval, percentile_interval, percentiles_of_sorted
from sim.results.store import StoredTables

Float64 = NDArray[np.float64]

VIRTUAL_TIERS = ("injection",)
"""Limits modelled as links that are no cables: not drawn."""

LATENCIES = {
    "ttft": "time to first token",
    "itl": "time between tokens",
    "tpot": "time per output token",
    "e2el": "end-to-end latency",
}


PERCENTS_OF_CURVE = np.concatenate([np.linspace(0, 98, 197), np.linspace(98.05, 100, 40)])
"""Where a distribution is drawn: finer in its tail."""


@dataclass(frozen=True, slots=True)
class SampleSet:
    """One variant's samples of one quantity, per seed, in seconds, sorted. num_total counts those that never came."""

    by_seed: tuple[Float64, ...]
    num_total: int

    @property
    def num_missing(self) -> int:
        return self.num_total - sum(map(len, self.by_seed))

    def percentile(self, percent: float) -> Estimate:
        """A percentile with its interval: over seeds where there are several, else from order statistics."""
        if len(self.by_seed) == 1:
            value, low, high = percentile_interval(self.by_seed[0], percent)
            if low is None or high is None:
                low = high = None
            return Estimate(value, low, high, 1)
        return mean_interval([percentile_interval(samples, percent)[0] for samples in self.by_seed])

    def distribution(self) -> tuple[Float64, Float64]:
        """The curve that goes through every `percentile`: (value, share of all samples up to it).

            value(q) = mean over seeds of each seed's q-th percentile

        Seeds pooled would give another curve where they differ, and the one with the most samples the most weight.
        Samples that never came (a flow that failed) end it below 1.
        """
        came = [samples for samples in self.by_seed if len(samples)]
        value = np.mean([percentiles_of_sorted(samples, PERCENTS_OF_CURVE) for samples in came], axis=0)
        return value, PERCENTS_OF_CURVE / 100 * (1 - self.num_missing / self.num_total)


def table(result: VariantResult, name: str, columns: Sequence[str]) -> pd.DataFrame | None:
    """Some columns of a result's table; None where there is no such table, or it is empty or lacks one."""
    tables: Mapping[str, pd.DataFrame] = result.tables
    if name not in tables:
        return None
    if isinstance(tables, StoredTables):
        try:
            frame = tables.read(name, columns)
        except (KeyError, ValueError):
            return None
        if frame.shape[1] != len(columns):
            return None
    else:
        if any(column not in tables[name].columns for column in columns):
            return None
        frame = tables[name][list(columns)]
    return frame if len(frame) else None


def workloads_in(run: RunResults, name: str) -> list[str]:
    """The workloads named in a table, over all results, in order of first appearance."""
    found: dict[str, None] = {}
    for result in run.results.values():
        frame = table(result, name, ["workload"])
        if frame is not None:
            found.update(dict.fromkeys(str(w) for w in frame["workload"].unique()))
    return list(found)


def flow_times(run: RunResults, workload: str) -> dict[str, SampleSet]:
    """Flow completion times (received - ready) of a workload per variant; flows that never ended count."""
    out = {}
    for variant in run.variants:
        by_seed, num_total = [], 0
        for result in run.of_variant(variant):
            frame = table(result, "flows", ["workload", "ready_s", "received_s"])
            if frame is None:
                continue
            own = frame[(frame["workload"] == workload).to_numpy()]
            times = (own["received_s"] - own["ready_s"]).to_numpy(dtype=np.float64)
            num_total += len(times)
            by_seed.append(np.sort(times[np.isfinite(times)]))
        if any(len(samples) for samples in by_seed):
            out[variant] = SampleSet(tuple(by_seed), num_total)
    return out


def request_latencies(result: VariantResult, workload: str) -> pd.DataFrame | None:
    """Per request: arrival_s, ttft, tpot, e2el in seconds; NaN where the request did not get that far."""
    columns = ["workload", "request", "arrival_s", "first_token_s", "finished_s", "output_tokens"]
    frame = table(result, "requests", columns)
    if frame is None:
        return None
    own = frame[(frame["workload"] == workload).to_numpy()]
    if not len(own):
        return None
    arrival, first, finished = (
        own[c].to_numpy(dtype=np.float64) for c in ("arrival_s", "first_token_s", "finished_s")
    )
    later_tokens = own["output_tokens"].to_numpy(dtype=np.float64, na_value=np.nan) - 1
    with np.errstate(divide="ignore", invalid="ignore"):
        tpot = np.where(later_tokens > 0, (finished - first) / later_tokens, np.nan)
    return pd.DataFrame(
        {"arrival_s": arrival, "ttft": first - arrival, "tpot": tpot, "e2el": finished - arrival}
    )


def times_between_tokens(result: VariantResult, workload: str) -> Float64 | None:
    """Every gap between two tokens of one request that did not come together, in seconds, sorted; None without times.

    As in the metrics (`inter_token_gaps_s`), tokens of one step, drafted ones, have no gap between them.
    Rows lie request by request, in order of time, as a serving workload records them; there may be so many that they
    are read a part at a time.
    """
    tables: Mapping[str, pd.DataFrame] = result.tables
    if "token_times" not in tables:
        return None
    if isinstance(tables, StoredTables):
        num_rows = tables.num_rows("token_times")
        frames = tables.chunks("token_times", ["workload", "request", "time_s"])
    else:
        whole = tables["token_times"]
        num_rows, frames = len(whole), iter([whole])
    gaps = np.empty(num_rows)
    num, last_request, last_s = 0, -1, 0.0
    for frame in frames:
        own = frame[(frame["workload"] == workload).to_numpy()]
        if not len(own):
            continue
        request = np.append(last_request, own["request"].to_numpy())
        time_s = np.append(last_s, own["time_s"].to_numpy(dtype=np.float64))
        gap_s = np.diff(time_s)
        found = gap_s[(request[1:] == request[:-1]) & (gap_s > 0)]
        gaps[num : num + len(found)] = found
        num, last_request, last_s = num + len(found), request[-1], time_s[-1]
    if last_request < 0:
        return None
    gaps = gaps[:num]
    gaps.sort()
    return gaps


def latencies(run: RunResults, workload: str) -> dict[str, dict[str, SampleSet]]:
    """Quantity (ttft, itl, e2el) → variant → samples of a serving workload."""
    out: dict[str, dict[str, SampleSet]] = {"ttft": {}, "itl": {}, "e2el": {}}
    for variant in run.variants:
        collected: dict[str, list[Float64]] = {quantity: [] for quantity in out}
        num_requests = 0
        for result in run.of_variant(variant):
            requests = request_latencies(result, workload)
            if requests is not None:
                num_requests += len(requests)
                for quantity in ("ttft", "e2el"):
                    samples = requests[quantity].to_numpy()
                    collected[quantity].append(np.sort(samples[np.isfinite(samples)]))
            gaps = times_between_tokens(result, workload)
            if gaps is not None:
                collected["itl"].append(gaps)
        for quantity, by_seed in collected.items():
            if any(len(samples) for samples in by_seed):
                total = sum(len(s) for s in by_seed) if quantity == "itl" else num_requests
                out[quantity][variant] = SampleSet(tuple(by_seed), total)
    return {quantity: found for quantity, found in out.items() if found}


@dataclass(frozen=True, slots=True)
class LoadMap:
    """Load over the fair share of each pair of switches, a matrix [lower, upper] per direction; NaN: no link.

    Parallel links of a pair (lanes, planes) show their most loaded one; links_per_pair says how many there
    are at most, hottest names the most loaded link of all.
    """

    up: Float64 | None
    down: Float64 | None
    links_per_pair: int = 1
    hottest: str = ""

    def of(self, direction: str) -> Float64 | None:
        """The matrix of "up" or "down"; of anything else the larger of both, pair by pair."""
        if direction in ("up", "down"):
            return self.up if direction == "up" else self.down
        if self.up is None or self.down is None:
            return self.up if self.down is None else self.down
        return np.fmax(self.up, self.down)

    @property
    def largest(self) -> float:
        found = [float(np.nanmax(m)) for m in (self.up, self.down) if m is not None and np.isfinite(m).any()]
        return max(found, default=float("nan"))


def load_maps(result: VariantResult) -> dict[str, LoadMap]:
    """Tier → load of its switch pairs (leaf × spine; in a fat tree edge × aggregation, pod × core).

    Tiers between hosts and switches have no such pairs; a tier that carried nothing has no load.
    """
    frame = table(result, "links", ["link", "tier", "direction", "load_over_fair", "leaf", "spine"])
    if frame is None:
        return {}
    frame = frame.dropna(subset=["leaf", "spine", "load_over_fair"])
    frame = frame[((frame["leaf"] >= 0) & (frame["spine"] >= 0)).to_numpy()]
    out = {}
    for tier, part in frame.groupby("tier", observed=True, sort=False):
        shape = int(part["leaf"].max()) + 1, int(part["spine"].max()) + 1
        matrices: dict[str, Float64] = {}
        for direction, links in part.groupby("direction", observed=True):
            matrix = np.full(shape, np.nan)
            leaf, spine = links["leaf"].to_numpy(dtype=np.int64), links["spine"].to_numpy(dtype=np.int64)
            np.fmax.at(matrix, (leaf, spine), links["load_over_fair"].to_numpy(dtype=np.float64))
            matrices[str(direction)] = matrix
        per_pair = int(part.groupby(["direction", "leaf", "spine"], observed=True).size().max())
        hottest = str(part["link"].iloc[int(np.argmax(part["load_over_fair"]))])
        out[str(tier)] = LoadMap(matrices.get("up"), matrices.get("down"), per_pair, hottest)
    return out


def slowdowns(run: RunResults, workload: str) -> dict[str, pd.DataFrame]:
    """Variant → slowdown by size: from_bytes, below_bytes, num_flows (of all seeds), p50 and p99 (their means).

    Slowdown: completion time over that of the flow alone on the fabric. Sizes in bins of a power of ten.
    """
    columns = ["workload", "from_bytes", "below_bytes", "num_flows", "p50", "p99"]
    out = {}
    for variant in run.variants:
        frames = [table(result, "slowdowns", columns) for result in run.of_variant(variant)]
        own = [f[(f["workload"] == workload).to_numpy()] for f in frames if f is not None]
        if own and any(len(frame) for frame in own):
            bins = pd.concat(own).groupby(["from_bytes", "below_bytes"], as_index=False)
            out[variant] = bins.agg({"num_flows": "sum", "p50": "mean", "p99": "mean"})
    return out


def tier_loads(result: VariantResult) -> dict[tuple[str, str], Float64]:
    """(tier, direction) → load over the fair share of each of its links, those without traffic included."""
    frame = table(result, "links", ["tier", "direction", "load_over_fair"])
    if frame is None:
        return {}
    frame = frame.dropna(subset=["load_over_fair"])
    groups = frame.groupby(["tier", "direction"], observed=True, sort=False)["load_over_fair"]
    found = {(str(t), str(d)): loads.to_numpy(dtype=np.float64) for (t, d), loads in groups}
    return {key: loads for key, loads in found.items() if key[0] not in VIRTUAL_TIERS}


MOST_STEPS = 64
"""Of a curve over time: finer ones show the beat between a workload's period and the bins, not the load."""


@dataclass(frozen=True, slots=True)
class UtilisationOverTime:
    """Utilisation of a tier's links per stretch of time: median, 90th percentile and largest over links.

    time_s  [stretches + 1] their edges; the others [stretches]
    busiest, busiest_mean  the link with the largest mean over the whole time, and that mean
    """

    time_s: Float64
    p50: Float64
    p90: Float64
    largest: Float64
    busiest: str
    busiest_mean: float

    @property
    def p50_mean(self) -> float:
        """The median link's utilisation, averaged over time."""
        return float(np.average(self.p50, weights=np.diff(self.time_s)))


def utilisation_over_time(result: VariantResult) -> dict[str, UtilisationOverTime]:
    """Tier → utilisation over time, of tiers that were used. A link without a row in a bin was idle in it."""
    series = table(result, "link_series", ["time_s", "span_s", "link", "utilisation"])
    links = table(result, "links", ["link", "tier"])
    if series is None or links is None:
        return {}
    tier_of = links.drop_duplicates("link").set_index("link")["tier"].astype(str)
    bins, first, bin_index = np.unique(
        series["time_s"].to_numpy(dtype=np.float64), return_index=True, return_inverse=True
    )
    span = series["span_s"].to_numpy(dtype=np.float64)[first]
    together = -(-len(bins) // MOST_STEPS)
    starts = np.arange(0, max(len(bins) - together // 2, 1), together)  # a short rest joins the last stretch
    spans = np.add.reduceat(span, starts)
    edges = np.append(bins[starts], bins[-1] + span[-1])
    tiers = series["link"].map(tier_of).to_numpy()
    utilisation = series["utilisation"].to_numpy(dtype=np.float64)
    codes, names = pd.factorize(series["link"])
    out = {}
    for tier in dict.fromkeys(tier_of):
        if tier in VIRTUAL_TIERS:
            continue
        own = tiers == tier
        num_links = int((tier_of == tier).sum())
        if not (utilisation[own] > 0).any():
            continue
        link, column = np.unique(codes[own], return_inverse=True)
        matrix = np.zeros((len(bins), max(num_links, int(column.max()) + 1)))
        matrix[bin_index[own], column] = np.nan_to_num(utilisation[own])
        mean = np.add.reduceat(matrix * span[:, None], starts, axis=0) / spans[:, None]
        p50, p90, largest = np.percentile(mean, [50, 90, 100], axis=1)
        of_link = span @ matrix / span.sum()
        busiest = int(of_link.argmax())
        name = str(names[link[busiest]])
        out[tier] = UtilisationOverTime(edges, p50, p90, largest, name, float(of_link[busiest]))
    return out
