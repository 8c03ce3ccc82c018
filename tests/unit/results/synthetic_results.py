"""Made-up but plausible results: a shift, a training neighbour and a serving job on a leaf-spine fabric.

The laws: under `ecmp` the shift takes an integer multiple (2 … 5) of the ideal time, as hashed flows do;
`ethereal` and `spray` are equal; `ideal` has no fabric. Nothing here comes from the simulator.
"""

from __future__ import annotations

import numpy as np

from sim.engine.recorder import Recorder
from sim.results.run_results import RunResults, VariantResult

IDEAL_S = 327.1e-6
NETWORK = {"single path": 1.0, "one assigned path": 0.12, "spray": 0.10, "ideal": 0.0}
SCENARIO = "name: shift on a leaf-spine\ncluster:\n  fabric: {kind: leaf_spine, leaves: 8}\n"


def make_run(
    variants=("single path", "one assigned path", "spray"),
    num_seeds=5,
    leaves=8,
    spines=8,
    hosts_per_leaf=8,
    num_requests=200,
    with_serving=True,
    with_traffic=True,
    with_fabric=True,
    **overrides,
) -> RunResults:
    run = RunResults(
        scenario_name="shift on a leaf-spine",
        question="Does a one-to-one shift between racks need packet spraying?",
        seeds=tuple(range(1, num_seeds + 1)),
        variants=tuple(variants),
        version="0.1.0",
        calibration="3f2a91c07d",
        ideal_variant="ideal" if "ideal" in variants else None,
        scenario_text=SCENARIO,
    )
    for variant in variants:
        for seed in run.seeds:
            rng = np.random.default_rng(seed)
            share = NETWORK.get(variant, 0.05 + 0.9 * (sum(map(ord, variant)) % 17) / 17)
            recorder, metrics = Recorder(), {}
            multiple = int(rng.choice([3, 4, 4, 5])) if share == 1.0 else 1 + (0 if share < 0.15 else share)
            if with_traffic:
                _traffic(recorder, metrics, rng, IDEAL_S * multiple, leaves * hosts_per_leaf, share)
            if with_fabric:
                _neighbour(recorder, metrics, rng, multiple)
            if with_serving:
                _serving(recorder, metrics, rng, share, num_requests)
            if with_fabric:
                _links(recorder, metrics, rng, leaves, spines, hosts_per_leaf, share, multiple)
            notes = {
                "fidelity": "fluid",
                "cost_sources": {"roofline": 0.82, "own measurement": 0.18},
                "warnings": [],
            }
            run.results[variant, seed] = VariantResult(variant, seed, metrics, recorder.frames(), notes)
    for name, value in overrides.items():
        setattr(run, name, value)
    return run


def _traffic(recorder, metrics, rng, completion_s, num_hosts, share):
    factor = rng.integers(1, 4, num_hosts) / 3 if share == 1.0 else np.ones(num_hosts)
    received = completion_s * factor * (1 - 0.01 * rng.random(num_hosts))
    received[0] = completion_s
    hosts = np.arange(num_hosts)
    recorder.append(
        "flows", workload="shift", repetition=0, message=hosts, source=hosts,
        destination=(hosts + 8) % num_hosts, size_bytes=16_000_000, ready_s=0.0, started_s=0.0,
        received_s=received, acknowledged_s=received + 2e-6, delivered_bytes=16_000_000, outcome="delivered",
    )  # fmt: skip
    metrics["traffic.shift.completion_time_s"] = completion_s
    metrics["traffic.shift.fct_s.mean"] = float(received.mean())
    metrics["traffic.shift.fct_s.p99"] = float(np.percentile(received, 99))
    metrics["traffic.shift.acknowledged_s"] = completion_s + 2e-6


def _neighbour(recorder, metrics, rng, multiple):
    started, rate = 0.0, []
    for repetition in range(12):
        duration = 1.3e-3 * (1 + 0.1 * (multiple - 1)) * (1 + 0.02 * rng.standard_normal())
        rate.append(63 / 64 * 64e6 / duration)
        recorder.append(
            "collectives", workload="neighbour", repetition=repetition, operation="all_to_all",
            algorithm="direct", size_bytes=64_000_000, started_s=started, finished_s=started + duration,
            bus_bytes_per_s=rate[-1],
        )  # fmt: skip
        started += duration + 2e-3
    metrics["collective.neighbour.bus_bytes_per_s"] = float(np.mean(rate))


def _serving(recorder, metrics, rng, share, num_requests):
    arrival = np.cumsum(rng.exponential(0.25, num_requests))
    output = np.minimum(rng.lognormal(4.3, 0.7, num_requests).astype(int) + 2, 600)
    wait = 0.05 + 0.4 * rng.random(num_requests) ** 4 * (1 + share) + 0.2 * np.sin(arrival / 40) ** 2
    first = arrival + wait
    gap = 0.021 + 0.002 * rng.random(output.sum())
    slow = rng.random(len(gap)) < 0.05
    gap[slow] += 0.012 * share * rng.random(slow.sum()) + 0.004 * slow[slow]
    request = np.repeat(np.arange(num_requests), output)
    start = np.concatenate([[0], np.cumsum(output)[:-1]])
    gap[start] = 0
    elapsed = np.cumsum(gap)
    time_s = first[request] + elapsed - elapsed[start][request]
    finished = time_s[start + output - 1]
    recorder.append(
        "requests", workload="chat", request=np.arange(num_requests), replica=0, arrival_s=arrival,
        scheduled_s=first - 0.03, first_token_s=first, finished_s=finished, input_tokens=512,
        output_tokens=output, num_preemptions=0, outcome="finished",
    )  # fmt: skip
    recorder.append("token_times", workload="chat", request=request, time_s=time_s)
    itl_ms = 1e3 * np.diff(time_s)[request[1:] == request[:-1]]
    prefix = "serving.chat."
    metrics[prefix + "completed"] = num_requests
    metrics[prefix + "request_throughput"] = num_requests / float(finished.max())
    metrics[prefix + "output_throughput"] = float(output.sum() / finished.max())
    for name, samples in (
        ("ttft", 1e3 * wait), ("tpot", 1e3 * (finished - first) / (output - 1)), ("itl", itl_ms),
        ("e2el", 1e3 * (finished - arrival)),
    ):  # fmt: skip
        metrics[f"{prefix}mean_{name}_ms"] = float(samples.mean())
        metrics[f"{prefix}p99_{name}_ms"] = float(np.percentile(samples, 99))
    metrics[prefix + "num_preemptions"] = 0


def _links(recorder, metrics, rng, leaves, spines, hosts_per_leaf, share, multiple):
    per_leaf = hosts_per_leaf * 16_000_000
    largest = 1.0
    for direction in ("up", "down"):
        host_payload = np.full(leaves * hosts_per_leaf, 16_000_000)
        leaf_of_host = np.repeat(np.arange(leaves), hosts_per_leaf)
        recorder.append(
            "links", link=[f"host{h}-leaf{leaf}/{direction}" for h, leaf in enumerate(leaf_of_host)],
            group=[f"leaf{leaf}" for leaf in leaf_of_host], direction=direction, tier="host",
            rate_bytes_per_s=50e9, payload_bytes=host_payload, wire_bytes=host_payload * 1.016,
            load_over_fair=1.0, leaf=leaf_of_host, spine=None,
        )  # fmt: skip
        for leaf in range(leaves):
            if share == 1.0:
                load = rng.multinomial(hosts_per_leaf, np.full(spines, 1 / spines)) * spines / hosts_per_leaf
                load[rng.integers(spines)] = multiple
            else:
                load = np.ones(spines) * (1 + 0.02 * share * rng.standard_normal(spines))
            largest = max(largest, float(load.max()))
            payload = (load * per_leaf / spines).astype(np.int64)
            recorder.append(
                "links", link=[f"leaf{leaf}-spine{s}/{direction}" for s in range(spines)],
                group=f"leaf{leaf}",
                direction=direction, tier="leaf-spine", rate_bytes_per_s=50e9, payload_bytes=payload,
                wire_bytes=payload * 1.016, load_over_fair=load, leaf=leaf, spine=np.arange(spines),
            )  # fmt: skip
    links = recorder.frames()["links"]
    for time_s in np.linspace(0, IDEAL_S * multiple, 60, endpoint=False):
        busy = links["load_over_fair"].to_numpy() * IDEAL_S > time_s
        recorder.append(
            "link_series", time_s=time_s, span_s=IDEAL_S * multiple / 60, link=links["link"].to_numpy()[busy],
            utilisation=0.97 - 0.2 * rng.random(busy.sum()),
        )  # fmt: skip
    metrics["links.max_load_over_fair"] = largest
    metrics["links.payload_bytes"] = int(links["payload_bytes"].sum())
