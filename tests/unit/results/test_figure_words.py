"""What the figures say: their titles and captions, computed from data of which the answer is known."""

import numpy as np
import pandas as pd
import pytest
from synthetic_results import make_run

from sim.results.drawing import PALETTE, variant_styles
from sim.results.fabric_figures import draw_load_maps, draw_utilisation
from sim.results.figures import draw_all
from sim.results.latency_figures import draw_flow_times, draw_latencies
from sim.results.main_metric import network_tax_key
from sim.results.metrics import meaning_of
from sim.results.report import side_by_side
from sim.results.run_results import RunResults, VariantResult, add_network_tax
from sim.results.samples import SampleSet, times_between_tokens
from sim.results.slowdown_figures import FLOWS_AT_LEAST, draw_slowdowns
from sim.results.time_figures import draw_latency_over_time

SMALL = {"num_requests": 30, "leaves": 2, "spines": 3, "hosts_per_leaf": 2}


def run_of(tables: dict[str, dict[str, pd.DataFrame]], ideal: str | None = None) -> RunResults:
    run = RunResults("s", "?", (1,), tuple(tables), "0.1.0", None, ideal_variant=ideal)
    run.results = {(name, 1): VariantResult(name, 1, {}, own) for name, own in tables.items()}
    return run


def plain(text: str) -> str:
    return text.replace("\u00a0", " ")


def slowdown_table(p99: list[float], num_flows: list[int]) -> pd.DataFrame:
    start = 10 ** np.arange(3, 3 + len(p99))
    return pd.DataFrame(
        {
            "workload": "web", "from_bytes": start, "below_bytes": 10 * start, "num_flows": num_flows,
            "mean": 1.0, "p50": 1.5, "p90": 2.0, "p99": p99,
        }
    )  # fmt: skip


def test_slowdown_by_size_names_the_size_that_suffers_most_and_leaves_rare_sizes_out():
    """Of 10 kB to 100 kB the p99 is 8 and 4; the largest size has a worse one, of too few flows."""
    flows = [500, 200, FLOWS_AT_LEAST - 1]
    tables = {
        "ecmp": {"slowdowns": slowdown_table([2.0, 8.0, 50.0], flows)},
        "spray": {"slowdowns": slowdown_table([2.0, 4.0, 3.0], flows)},
    }
    run = run_of(tables)
    (drawn,) = draw_slowdowns(run, variant_styles(run))
    title = "Flows of web of 10 kB to 100 kB suffer most: p99 slowdown 8.0 under ecmp, 4.0 under spray"
    assert plain(drawn.title) == title
    assert "Sizes with fewer than 10 flows are left out" in drawn.caption
    p50, p99, _ = drawn.figure.axes
    assert p99.get_xscale() == "log" and len(p99.lines) == 2
    assert p99.lines[0].get_ydata().tolist() == [2.0, 8.0] and p50.lines[0].get_ydata().tolist() == [1.5, 1.5]
    assert p99.lines[0].get_xdata() == pytest.approx(np.sqrt([1e3 * 1e4, 1e4 * 1e5]))


def test_closed_loop_traffic_has_no_slowdown_figure():
    run = make_run(num_seeds=1, with_serving=False, **SMALL)
    assert draw_slowdowns(run, variant_styles(run)) == []


def requests(ttft: np.ndarray, tpot: np.ndarray) -> dict[str, pd.DataFrame]:
    arrival = np.arange(len(ttft)) / 10
    first = arrival + ttft
    columns = {
        "workload": "chat", "request": np.arange(len(ttft)), "arrival_s": arrival, "first_token_s": first,
        "finished_s": first + 10 * tpot, "output_tokens": 11,
    }  # fmt: skip
    return {"requests": pd.DataFrame(columns)}


LEVEL, RISING, FALLING = (np.repeat(values, 20) for values in ([0.1] * 4, [0.1, 0.1, 0.4, 0.4], [0.4, 0.4, 0.1, 0.1]))


@pytest.mark.parametrize(
    ("variants", "title"),
    [
        ({"run": (LEVEL, LEVEL)}, "Latency of chat ends at about the level it began with"),
        ({"run": (RISING, RISING)}, "Latency of chat grows 4.0-fold"),
        (
            {"a": (RISING, FALLING), "b": (LEVEL, FALLING)},
            "Over the arrivals of chat, time to first token grows 4.0-fold under a, "
            "time per output token falls under every variant, down to 25 %",
        ),
        (
            {"a": (RISING, LEVEL), "b": (FALLING, LEVEL)},
            "Over the arrivals of chat, time to first token grows 4.0-fold under a and falls to 25 % under b, "
            "time per output token ends at about the level it began with",
        ),
    ],
)
def test_latency_over_time_says_what_grows_and_what_falls(variants, title):
    run = run_of({name: requests(*values) for name, values in variants.items()})
    (drawn,) = draw_latency_over_time(run, variant_styles(run))
    assert plain(drawn.title) == title


@pytest.mark.parametrize(
    ("at_s", "until_s", "why"),
    [
        (41.0, 60.0, ", as host1 goes down"),
        (35.0, None, ", while host1 is down"),
        (10.0, 20.0, ", of a request at 40 s"),
    ],
)
def test_a_peak_is_in_the_title_with_the_fault_that_it_comes_with(at_s, until_s, why):
    """Of 1000 requests, ten a second, the one of 40 s waits for 4 s, all others 0.1 s."""
    peak = np.full(1000, 0.1)
    peak[400] = 4.0
    level = np.full(1000, 0.1)
    run = run_of({"calm": requests(level, level), "dead host": requests(peak, level)})
    run.results["dead host", 1].notes["faults"] = [{"at_s": at_s, "until_s": until_s, "what": "host1 down"}]
    (drawn,) = draw_latency_over_time(run, variant_styles(run))

    assert plain(drawn.title) == f"Time to first token of chat peaks at 4.000 s under dead host{why}"
    assert "4.000 s against a p99 of 100.0 ms under dead host" in plain(drawn.caption)
    calm, dead = drawn.figure.axes[:2]
    assert len(calm.patches) == 0 and len(dead.patches) == 1
    assert dead.patches[0].get_x() == at_s


def test_equal_latencies_are_said_not_to_differ():
    run = run_of({name: requests(LEVEL, LEVEL) for name in ("a", "b")})
    (drawn,) = draw_latencies(run, variant_styles(run))
    assert plain(drawn.title) == "Latency of chat: no variant differs (p99 time to first token within 1 %)"
    alone = run_of({"run": requests(LEVEL, LEVEL)})
    (drawn,) = draw_latencies(alone, variant_styles(alone))
    assert plain(drawn.title) == "Latency of chat: p99 time to first token is 100.0 ms"


def test_the_latency_that_differs_most_is_in_the_title():
    """a and b have the same p99 time to first token; end to end b takes 0.1 s + 10 · 0.4 s, a 1.1 s."""
    run = run_of({"a": requests(LEVEL, LEVEL), "b": requests(LEVEL, 4 * LEVEL)})
    (drawn,) = draw_latencies(run, variant_styles(run))
    assert plain(drawn.title) == "Latency of chat: p99 end-to-end latency is 3.7 times as long under b as under a"


def test_a_batch_that_is_all_there_has_no_course():
    tables = requests(RISING, LEVEL)
    tables["requests"]["arrival_s"] = 0.0
    run = run_of({"run": tables})
    assert draw_latency_over_time(run, variant_styles(run)) == []


def test_tokens_of_one_step_have_no_gap_as_in_the_metrics():
    tables = {"token_times": pd.DataFrame(
        {"workload": "chat", "request": [0, 0, 0, 0, 1, 1], "time_s": [1.0, 1.5, 1.5, 2.5, 1.0, 1.0]}
    )}  # fmt: skip
    run = run_of({"run": tables})
    assert times_between_tokens(run.results["run", 1], "chat").tolist() == [0.5, 1.0]


def test_metrics_of_two_pools_have_words():
    found = meaning_of("serving.chat.p99_kv_exposed_ms")
    assert (found.label, found.better) == ("p99 wait of the second token for keys and values", "lower")
    assert meaning_of("serving.chat.prefill_utilization").quantity == "share"


def link_tables(busy: dict[str, float], tier: str = "leaf-spine") -> dict[str, pd.DataFrame]:
    """Links of one leaf and one spine, each with this utilisation throughout."""
    names = list(busy)
    links = pd.DataFrame(
        {
            "link": names, "tier": tier, "direction": "up", "leaf": 0.0,
            "spine": 0.0 if tier == "leaf-spine" else np.nan, "load_over_fair": list(busy.values()),
        }
    )  # fmt: skip
    series = pd.DataFrame({"time_s": 0.0, "span_s": 1.0, "link": names, "utilisation": list(busy.values())})
    return {"links": links, "link_series": series}


def test_utilisation_names_the_busiest_link_and_leaves_out_a_fabric_without_links():
    tables = {
        "ideal": link_tables({"h0": 0.9}, tier="host"),
        "ecmp": link_tables({"l0-s0": 0.8, "l0-s1": 0.2, "l0-s2": 0.2}),
        "spray": link_tables({"l0-s0": 0.4, "l0-s1": 0.4, "l0-s2": 0.4}),
    }
    run = run_of(tables, ideal="ideal")
    (drawn,) = draw_utilisation(run, variant_styles(run))
    title = "The busiest leaf-spine link is 80 % busy on average under ecmp, 40 % under spray"
    assert plain(drawn.title) == title
    assert "80 % (the median one 20 %) under ecmp" in plain(drawn.caption)
    assert "The busiest of all is l0-s0 under ecmp. Not shown: ideal" in drawn.caption
    assert len(drawn.figure.axes) == 2


def test_a_heat_map_of_parallel_links_says_that_a_cell_is_the_most_loaded_of_them():
    tables = link_tables({"plane0/lane0": 3.0, "plane0/lane1": 1.0, "plane1/lane0": 0.0, "plane1/lane1": 0.0})
    run = run_of({"run": tables})
    (drawn,) = draw_load_maps(run, variant_styles(run))
    assert "The hottest of all is plane0/lane0." in drawn.caption
    assert "A cell shows the most loaded of the 4 parallel links" in drawn.caption
    assert "most loaded of 4 parallel links" in drawn.figure.axes[-1].get_ylabel()


def test_the_network_tax_stands_once_in_the_table():
    """The mean of ratios is the tax; a ratio of means beside it would be a second number for one thing."""
    run = make_run(("ideal", "single path"), 3, **SMALL)
    add_network_tax(run)
    key = "serving.chat.p99_itl_ms"
    assert network_tax_key(run, key) == "serving.chat.network_tax"
    table = side_by_side(run, variant_styles(run), [key, "serving.chat.network_tax"])
    itl, tax = table["rows"][1]["cells"]
    assert itl["difference"] == "" and tax["value"].endswith("%")


def flows(times_s: list[float]) -> dict[str, pd.DataFrame]:
    return {"flows": pd.DataFrame({"workload": "shift", "ready_s": 0.0, "received_s": times_s})}


def test_the_curve_goes_through_the_numbers_beside_it():
    """Seeds of p99 1 and 3 and of unequal size: 2, where pooled samples have 1 for 99 of a hundred."""
    run = RunResults("s", "?", (1, 2), ("a",), "0.1.0", None)
    for seed, times in ((1, [1.0] * 996), (2, [3.0] * 4)):
        run.results["a", seed] = VariantResult("a", seed, {}, flows(times))
    (drawn,) = draw_flow_times(run, variant_styles(run))
    curve = drawn.figure.axes[0].lines[0]
    at_p99 = np.interp(0.99, curve.get_ydata(), curve.get_xdata())
    shown = [text.get_text() for text in drawn.figure.axes[1].texts]
    assert at_p99 == pytest.approx(2.0) and shown.count("2.00") == 2
    assert "mean of 2 seeds" in shown[-1]
    assert drawn.percentiles[0]["p99"].startswith("2.000\u00a0s")


def test_the_curve_ends_below_one_where_samples_never_came():
    samples = SampleSet((np.array([1.0, 2.0, 3.0]), np.zeros(0)), 6)
    value, share = samples.distribution()
    assert (value[0], value[-1], share[-1]) == (1.0, 3.0, 0.5) and samples.num_missing == 3
    run = run_of({"a": flows([1.0, 2.0, np.nan])})
    assert "99 % of the finished flows of shift take at most" in draw_flow_times(run, variant_styles(run))[0].caption


def test_figures_of_one_seed_of_several_say_so_in_the_figure():
    run = make_run(num_seeds=2, **SMALL)
    del run.results["spray", 1]
    alone = {"link-load-leaf-spine", "utilisation", "latency-over-time-1", "repetitions-1"}
    for seed, words in ((2, " (one seed of each variant)"), (1, " (seed 1)")):
        run.results.setdefault(("spray", seed), run.results["spray", 2])
        drawn = {figure.key: figure for figure in draw_all(run) if figure.key in alone}
        assert set(drawn) == alone
        for figure in drawn.values():
            assert figure.title.endswith(words)
            assert " ".join(figure.figure.get_suptitle().split()).endswith(words)
        run.results["spray", 1] = make_run(num_seeds=2, **SMALL).results["spray", 1]


SWEEP = tuple(f"load {i}" for i in range(20))


def test_of_many_variants_eight_have_a_colour_and_the_others_are_grey():
    """Variant i takes (i - 10)² s or so: the best is 10, the worst 0, which is the first too."""
    times = {name: (i - 10.1) ** 2 for i, name in enumerate(SWEEP)}
    run = RunResults("sweep", None, (1,), (*SWEEP, "ideal"), "0", None, ideal_variant="ideal")
    for name in run.variants:
        time_s = times.get(name, 0.001)
        tables = flows([time_s, time_s])
        run.results[name, 1] = VariantResult(name, 1, {"traffic.shift.completion_time_s": time_s}, tables)
    styles = variant_styles(run)
    shown = [name for name in SWEEP if not styles[name].is_background]
    assert len(shown) == len({styles[name].colour for name in shown}) == len(PALETTE) == 8
    assert {"load 0", "load 10"} <= set(shown) and not styles["ideal"].is_background
    (drawn,) = draw_flow_times(run, styles)
    curves, key = drawn.figure.axes
    assert sum(line.get_linewidth() < 1 for line in curves.lines) == 12 + 1  # and the line at 99 %
    said = [text.get_text() for text in key.texts]
    assert {"load 0", "load 10", "ideal", "thin grey lines: 12 more variants"} <= set(said)
    assert len(key.lines) == 9


def test_up_to_eight_variants_all_have_a_colour():
    run = RunResults("s", None, (1,), (*SWEEP[:8], "ideal"), "0", None, ideal_variant="ideal")
    assert len({style.colour for style in variant_styles(run).values()}) == 9
