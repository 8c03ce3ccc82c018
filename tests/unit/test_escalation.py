"""`fidelity: auto`: what escalates and why, and what the results then say."""

import json

import numpy as np
import pandas as pd
import pytest

from sim.escalation import _rounded_up, contested, contested_anew, groups_of_rivals
from sim.escalation_reasons import largest_crowd, reasons_of_settings, short_shares
from sim.fabric.topology import HostKind, Link, leaf_spine
from sim.results.disagreement_figure import draw_disagreement
from sim.results.drawing import variant_styles
from sim.results.headline import headline_of
from sim.results.report import write_report
from sim.results.run_results import RunResults, VariantResult
from sim.results.store import RunFolder, read_run
from sim.run import run_scenario
from sim.scenario.estimate import planned_cost
from sim.scenario.load import load_scenario

LINK = "{rate: 100 Gbit/s, latency: 1 us}"
HEAD = f"""
name: tiny
seeds: 2
fidelity: auto
cluster:
  fabric: {{kind: leaf_spine, leaves: 2, spines: 4, hosts_per_leaf: 4, host_link: {LINK}, spine_link: {LINK}}}
  host: {{accelerators: 1}}
workloads:
  - {{kind: traffic, name: exchange, pattern: permutation, size_per_flow: 1 MB}}
"""
TWO_GROUPS = """
compare:
  - {name: one path, paths: {policy: ecmp}}
  - {name: assigned, paths: {policy: ethereal}}
  - {name: sprayed, paths: {policy: spray}}
  - {name: four times as long, paths: {policy: spray}, workloads: [{name: exchange, size_per_flow: 4 MB}]}
"""


def loaded_of(tmp_path, tail, *settings):
    path = tmp_path / "tiny.yaml"
    path.write_text(HEAD + tail)
    return load_scenario(path, settings)


def outcome_of(tmp_path, tail, *settings, workers=1, **options):
    """The summary and the results as they are on disk."""
    out = tmp_path / f"out{len(list(tmp_path.glob('out*')))}"
    run_scenario(loaded_of(tmp_path, tail, *settings), out, workers, **options)
    return json.loads((out / "summary.json").read_text()), read_run(out), out


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    """Drawing takes longer than these runs."""
    monkeypatch.setattr("sim.run.write_report", lambda folders, target: target)


# --- reasons ----------------------------------------------------------------------------------------------------------


def fabric_of(num_hosts=9):
    link = Link(12.5e9, 1e-6)
    return leaf_spine(leaves=1, spines=1, hosts_per_leaf=num_hosts, host_link=link, spine_link=link,
                      hosts=[HostKind(num_hosts)])  # fmt: skip


def flows_of(pairs, begin=None, end=None, sizes=None):
    n = len(pairs)
    source, destination = np.array(pairs).T
    return pd.DataFrame(
        {
            "workload": "a", "source": source, "destination": destination, "row_weight": 1.0,
            "size_bytes": sizes or [1000] * n, "ready_s": [0.0] * n if begin is None else begin,
            "received_s": [1.0] * n if end is None else end,
        }
    )  # fmt: skip


def test_an_incast_fills_its_link_as_often_as_it_has_senders():
    assert largest_crowd(flows_of([(i, 0) for i in range(1, 9)]), fabric_of()) == (8.0, 8, 0)


def test_an_all_to_all_fills_each_link_once():
    """Eight messages into every link, each from a NIC that has eight of them in flight."""
    pairs = [(a, b) for a in range(9) for b in range(9) if a != b]
    times, messages, _ = largest_crowd(flows_of(pairs), fabric_of())
    assert (times, messages) == (pytest.approx(1.0), 8)


def test_senders_one_after_the_other_are_no_crowd():
    turns = np.arange(8.0)
    assert largest_crowd(flows_of([(i, 0) for i in range(1, 9)], turns, turns + 1), fabric_of())[0] == 1.0


def test_senders_that_never_get_there_stay_in_flight():
    never = [np.nan] * 3
    assert largest_crowd(flows_of([(1, 0), (2, 0), (3, 0)], [0.0, 1.0, 2.0], never), fabric_of())[0] == 3.0


def test_short_is_below_rate_times_idle_round_trip():
    """12.5 GB/s times 2 · 2 us are 50,000 B."""
    sizes = [49_999, 50_000, 50_001, 10]
    found = short_shares(flows_of([(0, 1), (0, 1), (2, 3), (4, 5)], sizes=sizes), fabric_of())
    assert found == [(0.5, "a")]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("packet.transport={kind: dctcp}", "transport: dctcp steers by queues"),
        ("packet.transport={receiver: go_back_n}", "a receiver that goes back"),
        ("packet.buffer={per_port: 200 kB}", "buffers are finite"),
        ("packet.ecn={from: 100 kB}", "switches mark"),
        ("packet.pfc={above: 100 kB}", "switches mark, pause or trim"),
        ("faults=[{at: 1 us, link: leaf0-spine1, state: down}]", "across leaf0-spine1 when it goes down is lost"),
        ("faults=[{at: 1 us, link: leaf0-spine1, rate: 1 Gbit/s}]", None),
        ("packet.mtu=9000 B", None),
    ],
)
def test_what_a_scenario_asks_for_that_fluid_leaves_out(tmp_path, setting, words):
    reasons = reasons_of_settings(loaded_of(tmp_path, "", setting).variants[0][1])
    assert (words is None) == (not reasons)
    assert words is None or words in reasons[0]


def results_of(values, key="traffic.a.completion_time_s", **fields):
    run = RunResults("x", None, tuple(range(len(next(iter(values.values()))))), tuple(values), "0", None, **fields)
    for name, row in values.items():
        for seed, value in enumerate(row):
            run.results[name, seed] = VariantResult(name, seed, {key: value}, notes={"fidelity": "fluid"})
    return run


def test_contested_are_the_best_and_what_is_within_the_error_of_fluid_or_of_luck():
    """4 % is contested, 6 % without spread is not, 3 against 1 ± 12.7 is."""
    close = contested(results_of({"a": [1.0, 1.0], "b": [1.04, 1.04], "c": [1.06, 1.06], "d": [2.0, 6.0]}))
    assert list(close) == ["a", "b", "d"]
    assert "b 1.040\xa0s: 4.0\xa0% apart in fluid, which may be 5.0\xa0% off" in close["a"]
    assert close["d"].endswith("an interval that includes 0")
    assert contested(results_of({"a": [1.0, 1.0], "c": [1.06, 1.06]})) == {}


def test_an_ideal_fabric_contests_nothing():
    assert contested(results_of({"a": [1.0, 1.0], "ideal": [1.0, 1.0]}, ideal_variant="ideal")) == {}


def test_more_is_better_turns_it_round():
    run = results_of({"a": [10e9, 10e9], "b": [20e9, 20e9], "c": [20.1e9, 20.1e9]}, key="collective.a.bus_bytes_per_s")
    assert list(contested(run)) == ["c", "b"]


def test_what_ran_in_packets_contests_nothing_that_ran_in_fluid():
    run = results_of({"a": [1.0, 1.0], "b": [2.0, 2.0], "drawn": [0.98, 0.98]})
    for seed in run.seeds:
        run.results["drawn", seed].notes["fidelity"] = "packet"
    assert contested(run) == {}


def test_an_answer_that_only_packets_have_concerns_all():
    found = contested(results_of({"a": [1.0], "b": [9.0]}, answer="links.queue_wait_p99_s"))
    assert found == dict.fromkeys("ab", "the answer, links.queue_wait_p99_s, is a metric of packets")


def sizes_and_policies(by_size, **fields):
    """One seed; by_size: (ecmp, spray, ideal) per size, in seconds."""
    policies = ("ecmp", "spray", "ideal")
    values = {f"{size}, {name}": [v] for size, row in by_size.items() for name, v in zip(policies, row, strict=True)}
    axes = {"size": tuple(by_size), "policy": policies}
    return results_of(values, axes=axes, ideal_variant="ideal", **fields)


def test_contests_are_looked_for_case_by_case_and_an_ideal_contender_is_in_none():
    """2 % apart at either size, twice as long at the larger one; nothing at 4 MB, where the two are 50 % apart."""
    run = sizes_and_policies({"1 MB": (1.02, 1.0, 1.0), "2 MB": (2.04, 2.0, 2.0), "4 MB": (6.0, 4.0, 4.0)})
    assert set(contested(run)) == {"1 MB, ecmp", "1 MB, spray", "2 MB, ecmp", "2 MB, spray"}
    assert "1 MB" not in contested(run)["2 MB, ecmp"]
    run.answer = "links.queue_wait_p99_s"
    assert set(contested(run)) == {name for name in run.variants if not name.endswith("ideal")}


def test_contests_anew_are_looked_for_case_by_case():
    """At 1 MB spray is in packets, moved by 10 %, and ecmp 7 % behind it in fluid; at 2 MB nothing ran in packets."""
    run = sizes_and_policies({"1 MB": (1.07, 1.1, 1.0), "2 MB": (1.07, 1.0, 1.0)})
    for (name, _), result in run.results.items():
        result.notes["escalation"] = {"because": [], "stays": None, "fluid": None}
        if name == "1 MB, spray":
            result.notes["fidelity"] = "packet"
            result.notes["escalation"]["fluid"] = {"traffic.a.completion_time_s": 1.0}
    assert set(contested_anew(run)) == {"1 MB, ecmp"}


def test_what_packets_moved_beyond_its_lead_is_contested_anew():
    """In fluid 1.0 against 1.2 and 1.5; packets move it by 30 %: the first lead is open, the second is not."""
    run = results_of({"best": [1.3, 1.3], "near": [1.2, 1.2], "far": [1.5, 1.5]})
    for (name, _), result in run.results.items():
        result.notes["escalation"] = {"because": [], "stays": None, "fluid": None}
        if name == "best":
            result.notes["fidelity"] = "packet"
            result.notes["escalation"]["fluid"] = {"traffic.a.completion_time_s": 1.0}
    assert contested_anew(run) == {
        "near": "contested anew: 20.0\xa0% from best in fluid, whose completion time packets moved by 30.0\xa0%"
    }


def test_rivals_carry_the_same_traffic_over_the_same_cluster(tmp_path):
    tail = TWO_GROUPS + "  - {name: broken, faults: [{at: 1 us, link: leaf0-spine0, state: down}]}\n"
    groups = groups_of_rivals(loaded_of(tmp_path, tail).variants)
    assert groups == [["one path", "assigned", "sprayed", "broken"], ["four times as long"]]


def test_a_report_over_axes_says_where_its_fidelities_differ(tmp_path):
    run = sizes_and_policies({"1 MB": (1.02, 1.0, 1.0), "2 MB": (3.0, 2.0, 2.0)})
    folder = RunFolder.create(tmp_path / "out", run, overwrite=False)
    for (name, _), result in list(run.results.items()):
        is_packet = name.startswith("1 MB")
        result.notes["fidelity"] = "packet" if is_packet else "fluid"
        because, fluid = (["contested: <close>"], dict(result.metrics)) if is_packet else ([], None)
        result.notes["escalation"] = {"because": because, "stays": None, "fluid": fluid}
        folder.add(result)
    folder.finish()
    page = write_report([folder.path], tmp_path / "report.html").read_text()
    assert page.count("<h2>Fluid against packets</h2>") == 1 and page.count("</main>") == 1
    assert "The figures of 3 of 6 variants come from packets" in page and "contested: &lt;close&gt;" in page
    assert "nothing that fluid leaves out counts" in page


@pytest.mark.parametrize(
    ("key", "words"),
    [("traffic.a.completion_time_s", "less is better"), ("collective.a.bus_bytes_per_s", "more is better")],
)
def test_the_figure_says_which_dot_is_which_and_which_way_is_better(key, words):
    run = results_of({"a": [1.0, 1.0], "b": [2.0, 2.0]}, key=key)
    for result in run.results.values():
        result.notes["fidelity"] = "packet"
        result.notes["escalation"] = {"because": ["said so"], "stays": None, "fluid": {key: 1.5}}
    (drawn,) = draw_disagreement(run, variant_styles(run))
    (axes,) = drawn.figure.axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["fluid", "packets"]
    assert axes.get_xlabel().endswith(words)


# --- whole runs -------------------------------------------------------------------------------------------------------


def test_contested_variants_and_their_rivals_come_from_packets_the_rest_from_fluid(tmp_path):
    summary, run, out = outcome_of(tmp_path, TWO_GROUPS)
    key = "traffic.exchange.completion_time_s"
    variants = summary["variants"]
    assert [v["fidelity"] for v in variants.values()] == ["packet", "packet", "packet", "fluid"]
    assert variants["assigned"]["escalated_because"][0].startswith("contested: completion time 8")
    assert variants["one path"]["escalated_because"]
    assert variants["four times as long"]["escalated_because"] == []
    gap = variants["sprayed"]["disagreement"][key]
    assert gap["packet"] == variants["sprayed"]["metrics"][key]["mean"]
    assert gap["relative"] == pytest.approx(gap["packet"] / gap["fluid"] - 1)
    assert "disagreement" not in variants["four times as long"]
    fluid = loaded_of(tmp_path, TWO_GROUPS, "fidelity=fluid")
    alone = tmp_path / "fluid"
    run_scenario(fluid, alone)
    expected = read_run(alone)
    assert run.fluid_values("sprayed", key) == expected.values("sprayed", key)
    assert run.values("four times as long", key) == expected.values("four times as long", key)
    difference = summary["differences"]["four times as long"][key]
    assert difference["fidelity"] == "fluid"
    means = [np.mean(expected.values(name, key)) for name in ("four times as long", "one path")]
    assert difference["mean"] == pytest.approx(means[0] - means[1])
    assert "fidelity" not in summary["differences"]["sprayed"][key]
    assert "four times as long is compared with it in fluid" in headline_of(run).sentence
    write_report([out], out / "report.html")
    page = (out / "report.html").read_text()
    assert "Fluid against packets" in page and (out / "figures" / "disagreement.png").exists()
    assert "contested: completion time" in page and "in fluid</span>" in page
    stored = set(run.results["sprayed", 1].tables)
    in_packets = loaded_of(tmp_path, TWO_GROUPS, "fidelity=packet")
    run_scenario(in_packets, tmp_path / "packet")
    other = read_run(tmp_path / "packet")
    assert stored == set(other.results["sprayed", 1].tables)
    assert run.values("sprayed", key) == other.values("sprayed", key)


def test_the_same_bytes_with_any_number_of_workers(tmp_path):
    folders = []
    for workers in (1, 2):
        _, _, out = outcome_of(tmp_path, TWO_GROUPS, workers=workers)
        names = [*out.rglob("*.parquet"), *out.rglob("result.json"), out / "summary.json"]
        folders.append({path.relative_to(out): path.read_bytes() for path in names})
    assert folders[0] == folders[1]


def test_where_fluid_is_enough_nothing_runs_again(tmp_path):
    tail = "compare:\n  - {name: one path}\n  - {name: sprayed, paths: {policy: spray}}\n"
    summary, _, out = outcome_of(tmp_path, tail, "workloads.exchange.pattern=shift")
    assert {v["fidelity"] for v in summary["variants"].values()} == {"fluid"}
    write_report([out], out / "report.html")
    assert "nothing that fluid leaves out counts" in (out / "report.html").read_text()


def test_incasts_and_short_flows_escalate(tmp_path):
    small = ("workloads.exchange.pattern=incast", "workloads.exchange.size_per_flow=20 kB")
    summary, _, _ = outcome_of(tmp_path, "", *small)
    incast, short = summary["variants"]["run"]["escalated_because"]
    assert incast.startswith("incast: 7 messages at once could fill the link into accelerator 0 7.0 times over")
    assert short.startswith("short flows: 100\xa0% of exchange's messages are shorter")


def test_what_only_packets_can_express_runs_in_packets_and_takes_its_rivals_along(tmp_path):
    tail = """
compare:
  - {name: drawn, paths: {policy: spray_random}}
  - {name: one path, paths: {policy: ecmp}}
  - {name: lossy, faults: [{at: 0 s, link: leaf0-spine0, loss: 1 %}]}
"""
    summary, run, _ = outcome_of(tmp_path, tail, "workloads.exchange.pattern=shift", "seeds=1")
    variants = summary["variants"]
    assert {v["fidelity"] for v in variants.values()} == {"packet"}
    assert variants["drawn"]["escalated_because"] == [
        "'spray_random' decides packet by packet, which fluid cannot express"
    ]
    assert variants["one path"]["escalated_because"][0].startswith("rival of drawn")
    assert variants["lossy"]["escalated_because"] == ["fluid has no packets to lose"]
    assert "disagreement" in variants["one path"] and "disagreement" not in variants["drawn"]
    assert run.fluid_values("drawn", "traffic.exchange.completion_time_s") == [None]


def test_what_packets_cannot_express_stays_fluid_and_says_so(tmp_path):
    tail = "compare:\n  - {name: by pair}\n  - {name: by message, paths: {fairness: message}}\n"
    summary, run, _ = outcome_of(tmp_path, tail, "seeds=1")
    by_message = summary["variants"]["by message"]
    assert by_message["fidelity"] == "fluid" and "has no meaning packet by packet" in by_message["stays_fluid_because"]
    assert summary["variants"]["by pair"]["fidelity"] == "packet"
    assert run.compares_in_fluid("by pair", "by message")


def test_what_is_above_the_limit_stays_fluid_and_says_so(tmp_path):
    """3 variants x 2 seeds x 8 flows of 249 packets over 4 links are 47,808 packet-hops."""
    summary, _, _ = outcome_of(tmp_path, TWO_GROUPS, max_packet_hops=40_000)
    assert {v["fidelity"] for v in summary["variants"].values()} == {"fluid"}
    stays = summary["variants"]["sprayed"]["stays_fluid_because"]
    assert "need about 4.8e+04 packet-hops" in stays and "--max-packet-hops 4.8e+04" in stays
    summary, _, _ = outcome_of(tmp_path, TWO_GROUPS, max_packet_hops=50_000)
    assert summary["variants"]["sprayed"]["fidelity"] == "packet"


def test_the_proposed_limit_is_enough_for_all_groups_that_stay_fluid(tmp_path, monkeypatch):
    """Two incasts, of 1 and of 4 MB per sender: two groups, and either alone is above a limit of 10 packet-hops."""
    both = "compare:\n  - {name: short}\n  - {name: long, workloads: [{name: exchange, size_per_flow: 4 MB}]}\n"
    settings = ("workloads.exchange.pattern=incast", "seeds=1")
    planned = []
    monkeypatch.setattr("sim.escalation.planned_cost", lambda *args: planned.append(args) or planned_cost(*args))
    summary, _, _ = outcome_of(tmp_path, both, *settings, max_packet_hops=10)
    assert {v["fidelity"] for v in summary["variants"].values()} == {"fluid"}
    proposals = {
        v["stays_fluid_because"].partition("--max-packet-hops ")[2].split()[0] for v in summary["variants"].values()
    }
    assert len(proposals) == 1 and len(planned) == 2
    summary, _, _ = outcome_of(tmp_path, both, *settings, max_packet_hops=float(proposals.pop()))
    assert {v["fidelity"] for v in summary["variants"].values()} == {"packet"}


def test_what_variants_plan_is_worked_out_once_for_all_that_send_the_same(tmp_path, monkeypatch):
    """Three policies carry one exchange, the fourth variant another."""
    planned = []
    monkeypatch.setattr("sim.escalation.planned_cost", lambda *args: planned.append(args) or planned_cost(*args))
    rounds = [{"four times as long": "contested anew: said so"}, {}]
    monkeypatch.setattr("sim.escalation.contested_anew", lambda run: rounds.pop(0))
    outcome_of(tmp_path, TWO_GROUPS)
    assert len(planned) == 2


def test_a_proposed_limit_is_rounded_up():
    assert [f"{_rounded_up(hops):.2g}" for hops in (47_808, 41_000, 41_001, 9.0)] == [
        "4.8e+04", "4.1e+04", "4.2e+04", "9"
    ]  # fmt: skip


def test_a_variant_that_says_its_fidelity_keeps_it_and_its_rivals_follow(tmp_path):
    tail = """
compare:
  - {name: asked for, fidelity: packet}
  - {name: sprayed, paths: {policy: spray}}
  - {name: fluid, fidelity: fluid}
"""
    summary, run, _ = outcome_of(tmp_path, tail, "workloads.exchange.pattern=shift", "seeds=1")
    assert [v["fidelity"] for v in summary["variants"].values()] == ["packet", "packet", "fluid"]
    assert summary["variants"]["sprayed"]["escalated_because"][0].startswith("rival of asked for")
    assert not run.compares_in_fluid("asked for", "fluid")


def test_a_lead_that_packets_overturn_takes_the_next_group_along(tmp_path, monkeypatch):
    """A second round runs what the first one's packets have put in doubt; the first's keep their fluid metrics."""
    rounds = [{"four times as long": "contested anew: said so"}, {}]
    monkeypatch.setattr("sim.escalation.contested_anew", lambda run: rounds.pop(0))
    summary, run, _ = outcome_of(tmp_path, TWO_GROUPS)
    assert rounds == [] and not summary["partial"]
    assert {v["fidelity"] for v in summary["variants"].values()} == {"packet"}
    assert summary["variants"]["four times as long"]["escalated_because"] == ["contested anew: said so"]
    assert all("disagreement" in v for v in summary["variants"].values())
    assert all("awaits_packets" not in result.notes for result in run.results.values())


def test_interrupted_before_its_packets_it_is_partial_and_compares_only_what_is_whole(tmp_path, monkeypatch):
    import sim.run

    loaded = loaded_of(tmp_path, TWO_GROUPS)
    one_by_one, calls = sim.run.one_by_one, []

    def first_only(jobs, progress, interruption):
        calls.append(jobs)
        yield from one_by_one(jobs if len(calls) == 1 else jobs[:1], progress, interruption)
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(sim.run, "one_by_one", first_only)
    outcome = run_scenario(loaded, tmp_path / "out")
    assert outcome.partial
    run = read_run(tmp_path / "out")
    assert run.partial and run.num_finished == 3  # two seeds in fluid, one in packets
    whole = run.comparable()
    assert {(name, whole.fidelity_of(name)) for name, _ in whole.results} == {
        ("four times as long", "fluid"), ("one path", "packet"),
    }  # fmt: skip
