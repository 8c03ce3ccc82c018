"""What each metric means: its name for people, its unit, which direction is better, and how to print it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from sim.results.statistics import Better, Estimate

Quantity = Literal["seconds", "milliseconds", "bytes", "bytes_per_s", "share", "ratio", "per_second", "count"]


@dataclass(frozen=True, slots=True)
class MetricMeaning:
    """A metric key taken apart: `<kind>.<workload>.<name>`, or `links.<name>` for the whole fabric."""

    key: str
    kind: str
    workload: str | None
    name: str
    label: str
    quantity: Quantity
    better: Better
    rate_of: str = ""

    @property
    def is_share(self) -> bool:
        return self.quantity == "share"

    @property
    def is_never_negative(self) -> bool:
        """Times, bytes, rates, counts, ratios and shares of a whole; a tax may be a gain."""
        return self.name != "network_tax"

    @property
    def full_label(self) -> str:
        return f"{self.workload}: {self.label}" if self.workload else self.label


_STATISTICS = {"mean": "mean", "median": "median", "std": "standard deviation of", "max": "largest"}
_LATENCIES = {
    "ttft": "time to first token",
    "tpot": "time per output token",
    "itl": "time between tokens",
    "e2el": "end-to-end latency",
    "kv_transit": "time from first to last byte of keys and values",
    "kv_wait": "wait of keys and values for room",
    "kv_exposed": "wait of the second token for keys and values",
}
_PLAIN: dict[str, tuple[str, Quantity, Better, str]] = {
    "completion_time_s": ("completion time", "seconds", "lower", ""),
    "acknowledged_s": ("time to the last acknowledgement", "seconds", "lower", ""),
    "delivered_bytes": ("bytes delivered", "bytes", None, ""),
    "extra_pieces": ("extra pieces of split flows", "count", None, ""),
    "reorder.max_displacement": ("largest displacement of a packet", "count", "lower", ""),
    "reorder.max_held_bytes": ("most held out of order", "bytes", "lower", ""),
    "retransmitted_share": ("packets sent again", "share", "lower", ""),
    "spurious_retransmissions": ("packets sent again in vain", "count", "lower", ""),
    "jain_index": ("Jain's fairness index", "ratio", "higher", ""),
    "queue_wait_p50_s": ("median wait in queues", "seconds", "lower", ""),
    "queue_wait_p99_s": ("p99 wait in queues", "seconds", "lower", ""),
    "queue_wait_max_s": ("longest wait in a queue", "seconds", "lower", ""),
    "longest_queue_bytes": ("longest queue", "bytes", "lower", ""),
    "marked_share": ("packets marked", "share", "lower", ""),
    "dropped_share": ("packets dropped", "share", "lower", ""),
    "lost_share": ("packets lost on faulty links", "share", "lower", ""),
    "trimmed_share": ("packets trimmed", "share", "lower", ""),
    "max_paused_share": ("time the most paused link stood", "share", "lower", ""),
    "bus_bytes_per_s": ("bus bandwidth", "bytes_per_s", "higher", ""),
    "num_steps": ("steps", "count", None, ""),
    "communication_share": ("share of communication", "share", "lower", ""),
    "completed": ("requests completed", "count", "higher", ""),
    "duration_s": ("time to serve all", "seconds", "lower", ""),
    "total_input_tokens": ("input tokens", "count", None, ""),
    "total_output_tokens": ("output tokens", "count", None, ""),
    "request_throughput": ("request throughput", "per_second", "higher", "requests"),
    "request_goodput": ("request goodput", "per_second", "higher", "requests"),
    "slo_attainment": ("requests within their targets", "share", "higher", ""),
    "output_throughput": ("output throughput", "per_second", "higher", "tokens"),
    "total_token_throughput": ("token throughput", "per_second", "higher", "tokens"),
    "num_preemptions": ("preemptions", "count", "lower", ""),
    "spec_decode_num_drafts": ("steps of sequences with drafts", "count", None, ""),
    "spec_decode_draft_tokens": ("tokens drafted", "count", None, ""),
    "spec_decode_accepted_tokens": ("drafted tokens accepted", "count", None, ""),
    "spec_decode_acceptance_length": ("tokens per step of a sequence with drafts", "count", "higher", ""),
    "discarded_tokens": ("tokens computed for requests that had ended", "count", "lower", ""),
    "num_swapped": ("preemptions to host memory", "count", "lower", ""),
    "timed_out": ("requests timed out", "count", "lower", ""),
    "num_retries": ("attempts after the first", "count", "lower", ""),
    "accelerator_seconds": ("accelerator-seconds paid", "seconds", "lower", ""),
    "lost_output_tokens": ("output tokens lost", "count", "lower", ""),
    "prefix_cache_hit_rate": ("share of prompt tokens found in the cache", "share", "higher", ""),
    "kv_device_hit_rate": ("share of prompt tokens found on the device", "share", "higher", ""),
    "kv_host_hit_rate": ("share of prompt tokens fetched from host memory", "share", "higher", ""),
    "kv_disk_hit_rate": ("share of prompt tokens fetched from disk", "share", "higher", ""),
    "kv_host_fetched_bytes": ("keys and values from the host to the device", "bytes", None, ""),
    "kv_host_stored_bytes": ("keys and values from the device to the host", "bytes", None, ""),
    "kv_host_fetch_s": ("time of fetches over the host's link", "seconds", None, ""),
    "kv_host_store_s": ("time of stores over the host's link", "seconds", None, ""),
    "kv_disk_fetched_bytes": ("keys and values read from disk", "bytes", None, ""),
    "kv_disk_stored_bytes": ("keys and values written to disk", "bytes", None, ""),
    "kv_disk_fetch_s": ("time of reads from disk", "seconds", None, ""),
    "kv_disk_store_s": ("time of writes to disk", "seconds", None, ""),
    "adapter_loads": ("adapters loaded", "count", "lower", ""),
    "adapter_evictions": ("adapters evicted", "count", "lower", ""),
    "adapter_load_s": ("time of loading adapters", "seconds", "lower", ""),
    "adapter_evict_s": ("time of evicting adapters", "seconds", "lower", ""),
    "adapter_hit_rate": ("requests that found their adapter loaded", "share", "higher", ""),
    "measured_share": ("time on measured rows", "share", "higher", ""),
    "weight_bytes": ("weights on an accelerator", "bytes", "lower", ""),
    "kv_tokens": ("tokens that the cache holds", "count", "higher", ""),
    "prefill_weight_bytes": ("weights on an accelerator that prefills", "bytes", "lower", ""),
    "decode_weight_bytes": ("weights on an accelerator that decodes", "bytes", "lower", ""),
    "prefill_kv_tokens": ("tokens that the cache of a prefill replica holds", "count", "higher", ""),
    "decode_kv_tokens": ("tokens that the cache of a decode replica holds", "count", "higher", ""),
    "kv_transfer_bytes": ("keys and values sent", "bytes", None, ""),
    "prefill_utilization": ("time the prefill pool is busy", "share", None, ""),
    "decode_utilization": ("time the decode pool is busy", "share", None, ""),
    "arrived": ("requests arrived", "count", None, ""),
    "failed": ("requests failed", "count", "lower", ""),
    "unfinished": ("requests unfinished", "count", "lower", ""),
    "network_tax": ("network tax", "share", "lower", ""),
    "max_load_over_fair": ("hottest link over fair share", "ratio", "lower", ""),
    "payload_bytes": ("payload sent by hosts", "bytes", None, ""),
    "wire_bytes": ("wire bytes sent by hosts", "bytes", None, ""),
    "max_utilisation": ("largest link utilisation", "share", None, ""),
}
_FAMILIES: dict[str, tuple[str, Quantity, Better]] = {
    "fct_s": ("flow completion time", "seconds", "lower"),
    "slowdown": ("slowdown", "ratio", "lower"),
    "repetition_s": ("repetition time", "seconds", "lower"),
    "reorder": ("reordering", "count", "lower"),
    "step_s": ("step time", "seconds", "lower"),
    "communication_s": ("communication per step", "seconds", "lower"),
}
_PARTS = {
    "queue": "wait in the queue",
    "prefill": "prefill",
    "decode": "decode",
    "host": "host time",
    "in_host_communication": "communication inside the host",
    "fabric": "uncontended time in the fabric",
    "fabric_contention": "contention in the fabric",
    "kv_transfer": "wait for keys and values",
    "recompute": "computing again",
    "waiting_again": "waiting again",
    "adapter_load": "wait for loads of adapters",
}
"""Parts of an end-to-end latency."""
_PART_NAME = re.compile(rf"mean_({'|'.join(_PARTS)})_ms")
_LATENCY_NAME = re.compile(r"(mean|median|std|p\d+)_(ttft|tpot|itl|e2el|kv_transit|kv_wait|kv_exposed)_ms")


_SIZE_BIN = re.compile(r"1e(\d+)-1e(\d+)")


def meaning_of(key: str) -> MetricMeaning:
    """Take a metric key apart. An unknown name keeps its words, a unit by its ending, no direction."""
    kind, _, rest = key.partition(".")
    workload: str | None = None
    name = rest or kind
    if kind != "links" and "." in rest:
        # A workload's name may hold dots itself, so known metric names are matched from the right.
        workload, _, name = rest.rpartition(".")
        head, _, family = workload.rpartition(".")
        if head and _SIZE_BIN.fullmatch(family):  # slowdown.1e4-1e5.p99: of flows of these sizes
            name = f"{family}.{name}"
            head, _, family = head.rpartition(".")
        if head and family in _FAMILIES:
            workload, name = head, f"{family}.{name}"
    label, quantity, better, rate_of = _described(name)
    return MetricMeaning(key, kind, workload, name, label, quantity, better, rate_of)


def _described(name: str) -> tuple[str, Quantity, Better, str]:
    if name in _PLAIN:
        return _PLAIN[name]
    if match := _LATENCY_NAME.fullmatch(name):
        return f"{_STATISTICS.get(match[1], match[1])} {_LATENCIES[match[2]]}", "milliseconds", "lower", ""
    if match := _PART_NAME.fullmatch(name):
        return f"mean {_PARTS[match[1]]} of a request", "milliseconds", None, ""
    family, _, statistic = name.partition(".")
    if family in _FAMILIES:
        label, quantity, better = _FAMILIES[family]
        if "." in statistic:
            sizes, _, statistic = statistic.partition(".")
            label += f" of flows of {sizes} B"
        return f"{_STATISTICS.get(statistic, statistic)} {label}".strip(), quantity, better, ""
    endings: tuple[tuple[str, Quantity], ...] = (
        ("_bytes_per_s", "bytes_per_s"), ("_bytes", "bytes"), ("_ms", "milliseconds"), ("_s", "seconds"),
    )  # fmt: skip
    for ending, quantity in endings:
        if name.endswith(ending):
            return name.removesuffix(ending).replace("_", " "), quantity, None, ""
    return name.replace("_", " "), "count", None, ""


_SCALES: dict[Quantity, tuple[tuple[float, str], ...]] = {
    "seconds": ((1e-9, "ns"), (1e-6, "µs"), (1e-3, "ms"), (1.0, "s")),
    "milliseconds": ((1e-3, "µs"), (1.0, "ms"), (1e3, "s")),
    "bytes": ((1.0, "B"), (1e3, "kB"), (1e6, "MB"), (1e9, "GB"), (1e12, "TB")),
    "bytes_per_s": ((1.0, "B/s"), (1e3, "kB/s"), (1e6, "MB/s"), (1e9, "GB/s"), (1e12, "TB/s")),
    "share": ((0.01, "%"),),
    "ratio": ((1.0, "×"),),
    "count": ((1.0, ""),),
}


def unit_for(meaning: MetricMeaning, magnitude: float | None) -> tuple[float, str]:
    """The unit in which a value of this size reads well: (value of one unit, its symbol)."""
    if meaning.quantity == "per_second":
        return 1.0, f"{meaning.rate_of}/s" if meaning.rate_of else "/s"
    scales = _SCALES[meaning.quantity]
    size = abs(magnitude) if magnitude is not None and math.isfinite(magnitude) else 0.0
    if size == 0.0:
        return scales[-1] if len(scales) == 1 or meaning.quantity == "seconds" else _unscaled(scales)
    fitting = [scale for scale in scales if size >= scale[0] * 0.9995]
    return fitting[-1] if fitting else scales[0]


def common_unit(meaning: MetricMeaning, values: Sequence[float | None]) -> tuple[float, str]:
    """One unit for several values: the smallest one's, unless the largest then needs five digits."""
    sizes = [abs(v) for v in values if v is not None and math.isfinite(v) and v != 0]
    if not sizes:
        return unit_for(meaning, None)
    small = unit_for(meaning, min(sizes))
    return small if max(sizes) / small[0] < 10_000 else unit_for(meaning, max(sizes))


def _unscaled(scales: tuple[tuple[float, str], ...]) -> tuple[float, str]:
    return next(scale for scale in scales if scale[0] == 1.0)


def decimals_for(value: float, significant: int = 4) -> int:
    """Decimals that show a number with so many significant digits."""
    if value == 0 or not math.isfinite(value):
        return 0
    return max(0, significant - 1 - math.floor(math.log10(abs(value)) + 1e-9))


def number(value: float, decimals: int) -> str:
    """A number with thin-space thousands and a true minus sign."""
    text = f"{value:,.{decimals}f}".replace(",", "\u202f")
    if float(f"{value:.{decimals}f}") == 0:
        text = text.lstrip("-")
    return text.replace("-", "−")


ROUNDING = 1e-6
"""A time below this share of its smallest unit is a difference of sums that should be equal, and shown as 0."""


def _decimals(meaning: MetricMeaning, scaled: float) -> int:
    if meaning.quantity == "share":
        return 1 if abs(scaled) < 100 else 0
    if meaning.quantity == "ratio":
        return 2 if abs(scaled) < 100 else 0
    if meaning.quantity == "count" and float(scaled).is_integer():
        return 0
    if meaning.quantity in ("seconds", "milliseconds") and abs(scaled) < ROUNDING:
        return 0
    return decimals_for(scaled)


def with_unit(text: str, unit: str) -> str:
    return f"{text}\u00a0{unit}" if unit else text


def format_value(
    value: float | int | None, meaning: MetricMeaning, scale: tuple[float, str] | None = None
) -> str:
    """One value with its unit, four significant digits: 327.1 µs; "–" where there is none.

    scale: the unit to use (`common_unit`); by default the value's own.
    """
    if value is None or not math.isfinite(value):
        return "–"
    factor, unit = scale or unit_for(meaning, value)
    scaled = value / factor
    return with_unit(number(scaled, _decimals(meaning, scaled)), unit)


def cut_at_zero(estimate: Estimate, meaning: MetricMeaning) -> Estimate:
    """The interval as it is shown: from 0 on for what cannot be negative.

    Student's t knows nothing of signs, and of few seeds that differ widely it reaches below 0. summary.json and all
    comparisons keep it as computed.
    """
    if estimate.low is None or not meaning.is_never_negative:
        return estimate
    return replace(estimate, low=max(0.0, estimate.low))


def format_interval(
    estimate: Estimate, meaning: MetricMeaning, scale: tuple[float, str] | None = None
) -> str:
    """The interval in the mean's unit and digits, cut at 0: "[325.0, 329.2]"; empty where there is none."""
    estimate = cut_at_zero(estimate, meaning)
    if estimate.mean is None or estimate.low is None or estimate.high is None:
        return ""
    factor, _ = scale or unit_for(meaning, estimate.mean)
    decimals = _decimals(meaning, estimate.mean / factor)
    if meaning.quantity == "count":
        decimals = max(decimals, 0 if estimate.low == estimate.high else 1)
    return f"[{number(estimate.low / factor, decimals)}, {number(estimate.high / factor, decimals)}]"


def format_percent(estimate: Estimate, signed: bool = True) -> str:
    """A share as percent with its interval: "−72.3 % [−73.1, −71.4]"."""
    if estimate.mean is None:
        return "–"
    bounds = [b for b in (estimate.low, estimate.high) if b is not None]
    largest = 100 * max(abs(b) for b in (estimate.mean, *bounds))
    decimals = 0 if largest >= 100 else 1
    sign = "+" if signed and round(100 * estimate.mean, decimals) > 0 else ""
    text = f"{sign}{number(100 * estimate.mean, decimals)}\u00a0%"
    if len(bounds) < 2:
        return text
    return f"{text} [{', '.join(number(100 * b, decimals) for b in bounds)}]"
