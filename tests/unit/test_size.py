"""`spindle size` from the file to the table: closed forms, and every candidate simulated as an oracle."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim import cli, size_run
from sim.capacity_probe import probed
from sim.capacity_sweep import judged
from sim.results.run_results import RunResults
from sim.results.size_figure import SizePoint, draw_size
from sim.simulate import simulate
from sim.size import Candidate, search
from sim.size_question import size_question
from sim.size_run import answers, rows_of, run_size

# --- the search -------------------------------------------------------------------------------------------------------

SHAPES = st.lists(
    st.tuples(st.integers(1, 8), st.integers(1, 20), st.floats(0.1, 9), st.integers(1, 12)), min_size=1, max_size=5
)


@given(SHAPES, st.booleans())
def test_the_search_finds_what_trying_all_finds(shapes, by_cost):
    """Shapes of so many accelerators, replicas, dollars an hour, and the fewest replicas that hold."""
    needed, candidates = {}, []
    for i, (size, most, price, need) in enumerate(shapes):
        keys = [(float(size * r), price * size * r) for r in range(1, most + 1)]
        candidates.append([Candidate(i, r, k[::-1] if by_cost else k) for r, k in enumerate(keys, 1)])
        needed[i] = need
    tried, going = [], search(candidates)
    try:
        wanted = next(going)
        while True:
            tried.append(wanted)
            wanted = going.send(wanted.replicas >= needed[wanted.shape])
    except StopIteration as end:
        found = end.value
    holding = [c for each in candidates for c in each if c.replicas >= needed[c.shape]]
    assert (found and found.key) == min((c.key for c in holding), default=None)
    assert len(tried) == len(set(tried)) <= sum(math.floor(math.log2(len(each))) + 1 for each in candidates)


# --- closed forms -----------------------------------------------------------------------------------------------------

SCENARIO = """
name: constant steps
cluster:
  fabric: {kind: leaf_spine, leaves: 1, spines: 1, hosts_per_leaf: 1, host_link: {rate: 100 Gbit/s, latency: 1 us},
           spine_link: {rate: 100 Gbit/s, latency: 1 us}}
  host: {accelerators: 8, accelerator: h100}
workloads:
  - {kind: serving, name: chat, model: llama-3.1-8b, arrivals: {kind: constant, rate: 25 /s}, num_requests: 400,
     host_time: 10 ms, batching: {policy: prefill_first, max_num_seqs: 1},
     lengths: {input: {law: fixed, tokens: 16}, output: {law: fixed, tokens: 10}}}
"""
"""The engine's own 10 ms are longer than what an h100 takes: of 10 tokens, 0.1 s a request, one at a time."""


@pytest.fixture
def sized(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*overs, text=SCENARIO, targets=("p99_ttft_ms=20",), price=None, by_cost=False, settings=(), seeds=None):
        Path("s.yaml").write_text(text)
        question = size_question(
            Path("s.yaml"), overs, targets, None, price, by_cost, settings=settings, seeds=seeds
        )
        return run_size(question, Path("out"), 1, quiet=True)

    return run


def verdicts(outcome, label="run"):
    return {(row["shape"], row["replicas"]): (row["verdict"], row["why"]) for row in rows_of(outcome)
            if row["variant"] == label}  # fmt: skip


def test_as_many_servers_as_the_load_keeps_busy(sized):
    """D/D/1: 25 requests a second of 0.1 s keep 2.5 servers busy. Fewer are ruled out; three are sent one every 0.12 s
    each, nobody waits, and the first token comes a step of 10 ms later."""
    outcome = sized("tensor=1", "replicas=1..8")
    found = verdicts(outcome)
    assert found["tensor 1", 1][0] == found["tensor 1", 2][0] == "ruled out"
    assert "keeps at least 2.51 replicas busy, and there are 2" in found["tensor 1", 2][1]  # of 400 in 399 gaps
    best = outcome.best("run")
    assert (best.candidate.replicas, best.num_accelerators) == (3, 3)
    assert outcome.probe("run", best).metrics["p99_ttft_ms"].mean == pytest.approx(10)
    assert found["tensor 1", 8] == ("not run", "fewer replicas of this shape hold")
    assert not outcome.partial and list(pd.read_csv("out/candidates.csv")["is_found"]).index(True) == 2
    assert answers(outcome)[0].startswith("3 accelerators hold: tensor 1, 3 replicas (")


def test_waits_of_random_arrivals(sized):
    """M/D/1: at 7 /s the mean wait is 0.7 x 100 / (2 x 0.3) = 117 ms, and the token comes 10 ms later. Two servers in
    turn are E2/D/1 at 0.35 each: a shorter wait than M/D/1's, 27 ms. Waits of 20,000 requests are good to 10 %."""
    text = SCENARIO.replace("kind: constant, rate: 25 /s", "kind: poisson, rate: 7 /s").replace("400", "20000")
    for target, replicas in (("mean_ttft_ms=145", 1), ("mean_ttft_ms=110", 2), ("mean_ttft_ms=37", 2)):
        outcome = sized("tensor=1", "replicas=1..4", text=text, targets=(target,))
        assert outcome.best("run").candidate.replicas == replicas


def test_a_step_that_takes_too_long_is_never_simulated(sized):
    """A token takes a step of 10 ms at least, on any number of accelerators."""
    outcome = sized(targets=("mean_itl_ms=9",))
    assert {v for v, _ in verdicts(outcome).values()} == {"ruled out"}
    assert "mean_itl_ms is at least 10 alone on the accelerator, above 9" in verdicts(outcome)["tensor 1", 1][1]
    assert outcome.best("run") is None and not outcome.probes["run"] and answers(outcome)[0].startswith("no candidate")
    assert set(verdicts(outcome)) == {(f"tensor {t}", r) for t in (1, 2, 4, 8) for r in range(1, 8 // t + 1)}


def test_what_does_not_fit_does_not_divide_or_has_no_room(sized):
    """70 billion parameters in bf16 are 131 GiB, an h100 has 80 GB; 64 heads do not divide by 3."""
    text = SCENARIO.replace("llama-3.1-8b", "llama-3.1-70b").replace("25 /s", "5 /s")
    outcome = sized("tensor=1,2,3,4", "replicas=1,2,4", text=text, targets=("p99_ttft_ms=200",))
    found = verdicts(outcome)
    assert found["tensor 1", 1][0] == "ruled out" and "llama-3.1-70b does not fit on h100" in found["tensor 1", 1][1]
    assert "64 attention heads do not divide over tensor degree 3" in found["tensor 3", 2][1]
    assert "the cluster has 8" in found["tensor 4", 4][1]
    assert outcome.best("run").shape == "tensor 2"  # 66 of 67 GiB, and some blocks


def test_stages_are_an_axis_like_others(sized):
    """131 GiB over two stages of one h100 each leave some blocks, on one alone they do not fit. 8 devices
    hold two replicas of four stages."""
    text = SCENARIO.replace("llama-3.1-8b", "llama-3.1-70b").replace("25 /s", "1 /s").replace("400", "60")
    outcome = sized("pipeline=1,2,4", text=text, targets=("p99_ttft_ms=200",))
    found = verdicts(outcome)
    assert found["pipeline 1", 1][0] == "ruled out" and "does not fit" in found["pipeline 1", 1][1]
    assert outcome.best("run").shape == "pipeline 2" and outcome.best("run").num_accelerators == 2
    assert [replicas for shape, replicas in found if shape == "pipeline 4"] == [1, 2]


def test_the_cheapest_may_have_more_accelerators(sized):
    """Both hold with three: of 8 dollars an hour, or of 2; steps of 10 ms on either."""
    overs = ("tensor=1", "cluster.host.accelerator=h100,a100", "replicas=1..8")
    outcome = sized(*overs, price="h100=8,a100=2")
    best = outcome.best("run")
    assert (best.shape, best.num_accelerators, best.dollars_per_hour) == ("tensor 1, accelerator a100", 3, 6)
    # and at the price of a fourth of an h100's, four a100 would be as good as one h100: cost before number
    outcome = sized(*overs, price="h100=1,a100=2", by_cost=True)
    best = outcome.best("run")
    assert (best.shape, best.dollars_per_hour) == ("tensor 1, accelerator h100", 3)


def test_targets_of_the_scenario_are_held_by_variant(sized):
    """Four at a time share a step: four times the load for each."""
    text = SCENARIO.replace("host_time", "targets: {p99_itl_ms: 15}, host_time") + (
        "compare:\n  - {name: one}\n  - {name: four, workloads: [{name: chat, batching: {max_num_seqs: 4}}]}\n"
    )
    text = text.replace("policy: prefill_first", "policy: chunked_prefill, async_scheduling: false")
    outcome = sized("tensor=1", "replicas=1..4", text=text, targets=())
    assert outcome.question.targets == {"p99_itl_ms": 15}
    assert {label: outcome.best(label).candidate.replicas for label in ("one", "four")} == {"one": 3, "four": 1}


def test_a_run_too_short_says_so(sized):
    """Four places for four requests: they could all come at once, and nothing would show what the load is."""
    settings = ["workloads.chat.batching.max_num_seqs=4", "workloads.chat.num_requests=4"]
    outcome = sized("tensor=1", "replicas=1", settings=settings, targets=("p99_itl_ms=50",))
    assert verdicts(outcome)["tensor 1", 1] == ("misses", "the arrivals are over too soon to tell")
    assert "raise num_requests" in answers(outcome)[1]


# --- every candidate, as an oracle ------------------------------------------------------------------------------------

ROOFLINE = """
name: grid
seed: 3
cluster:
  fabric: {kind: leaf_spine, leaves: 1, spines: 1, hosts_per_leaf: 1, host_link: {rate: 100 Gbit/s, latency: 1 us},
           spine_link: {rate: 100 Gbit/s, latency: 1 us}}
  host: {accelerators: 8, accelerator: h200}
workloads:
  - kind: serving
    name: chat
    model: llama-3.1-8b
    arrivals: {kind: poisson, rate: 150 /s}
    num_requests: 800
    batching: {policy: chunked_prefill, max_num_seqs: 16, max_num_batched_tokens: 512}
    lengths: {input: {law: lognormal, mean: 900, sigma: 0.7, max: 6000}, output: {law: uniform, low: 1, high: 60}}
    tenants:
      - {name: a, share: 2}
      - {name: b, lengths: {input: {law: fixed, tokens: 40}, output: {law: fixed, tokens: 9}}}
"""
TARGETS = ("p99_itl_ms=40", "median_ttft_ms=200", "mean_e2el_ms=1500", "p90_tpot_ms=30", "b.p95_ttft_ms=400")


@pytest.mark.parametrize(
    ("targets", "change", "shapes"),
    [
        (TARGETS, (), "tensor=1,2,4"),
        (TARGETS, (), "pipeline=1,2,4"),
        (("mean_itl_ms=60", "p99_e2el_ms=3000"), ("workloads.chat.host_time=12 ms",), "pipeline=1,2,4"),
        (("p90_tpot_ms=3", "p99_e2el_ms=300"), (), "tensor=1,2,4"),
        (TARGETS, ("workloads.chat.batching.policy=prefill_first",), "tensor=1,2,4"),
        (("p99_itl_ms=400",), ("workloads.chat.batching.policy=orca", "workloads.chat.host_time=3 ms"), "tensor=1,2,4"),
        (("p90_itl_ms=20", "mean_ttft_ms=100"), ("cost.table=spindle-h200",), "tensor=1,2,4"),
        (TARGETS, ("workloads.chat.model=mixtral-8x7b", "workloads.chat.arrivals.rate=60 /s"), "tensor=1,2,4"),
    ],
)
def test_pruning_never_removes_what_simulation_accepts(sized, targets, change, shapes):
    outcome = sized(shapes, "replicas=1..4", text=ROOFLINE, targets=targets, settings=change)
    question = outcome.question
    held, num_ruled_out = {}, 0
    for each in question.candidates["run"]:
        if each.loaded is None or (each.ruling and each.ruling.short == "memory"):
            continue
        ((label, scenario),) = each.loaded.variants
        run = probed("chat", simulate(scenario, 3, label))
        held[each.candidate] = judged(question.of_candidate(each), label, 0.0, "", [run]).verdict.holds
        for name, least_ms in each.floors.items():
            assert least_ms <= run.latencies_ms[name] * (1 + 1e-9), (each.shape, name)
        assert each.floors.keys() == question.targets.keys()
        if each.ruling is not None:
            assert not held[each.candidate], (each.shape, each.candidate.replicas, each.ruling)
            num_ruled_out += 1
    expected = min((c.key for c, holds in held.items() if holds), default=None)
    best = outcome.best("run")
    assert (best and best.candidate.key) == expected
    assert num_ruled_out > 0 and len(outcome.probes["run"]) + num_ruled_out < len(held)


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def spindle(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def run(*arguments, text=SCENARIO):
        Path("s.yaml").write_text(text)
        with pytest.raises(SystemExit) as left:
            cli.main(["size", "s.yaml", *arguments])
        printed = capsys.readouterr()
        return left.value.code or 0, printed.out, printed.err

    return run


def test_the_command_prints_a_table_or_json(spindle):
    asked = ("--target", "p99_ttft_ms=20", "--over", "tensor=1,2", "--over", "replicas=1..4")
    code, out, err = spindle(*asked, "--price", "3.6")
    assert code == 0, err
    assert "3 accelerators hold: tensor 1, 3 replicas, $10.8 an hour" in out and "1 to 2" in out
    folder = Path("runs/constant-steps-size")
    assert sorted(path.name for path in folder.iterdir()) == ["candidates.csv", "size.json", "size.png"]
    code, out, _ = spindle(*asked, "--json", "--seeds", "2")
    (found,) = [row for row in json.loads(out) if row["is_found"]]
    assert code == 0 and (found["accelerators"], found["p99_ttft_ms.low"]) == (3, pytest.approx(10))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nothing to hold: give --target p99_itl_ms=50"),
        (["--target", "p99_itl=5"], "'p99_itl' is no latency"),
        (["--target", "a.p99_itl_ms=5"], "'chat' has no tenant 'a'"),
        (["--target", "p99_itl_ms=5", "--over", "tnsor=1"], "'tnsor' is none of tensor, expert"),
        (["--target", "p99_itl_ms=5", "--over", "tensor=0"], "write for example --over tensor=1,2,4"),
        (["--target", "p99_itl_ms=5", "--over", "exchange="], "write for example --over tensor=1,2,4"),
        (["--target", "p99_itl_ms=5", "--over", "replicas=3..1"], "write for example --over tensor=1,2,4"),
        (["--target", "p99_itl_ms=5", "--over", "tensor=1", "--over", "tensor=2"], "is given twice"),
        (["--target", "p99_itl_ms=5", "--over", "replicas=1..1999", "--over", "tensor=1,2"], "names 3998 candidates"),
        (["--target", "p99_itl_ms=5", "--over", "cluster.host.aclerator=a100"], "aclerator"),
        (["--target", "p99_itl_ms=5", "--by", "cost"], "--by cost needs --price"),
        (["--target", "p99_itl_ms=5", "--price", "h200=2"], "says nothing of h100"),
        (["--target", "p99_itl_ms=5", "--set", "fidelity=auto"], "fidelity: auto"),
    ],
)
def test_what_cannot_be_searched_is_refused(spindle, arguments, words):
    code, _, err = spindle(*arguments)
    assert code == 2 and words in err
    assert not Path("runs").exists()


def test_what_was_tried_is_kept(sized, monkeypatch):
    """Interrupted in its second candidate: the first is in the table."""
    calls = []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return judged(*arguments)

    monkeypatch.setattr(size_run, "judged", interrupted)
    outcome = sized("tensor=1", "replicas=1..8")
    assert outcome.partial and len(outcome.probes["run"]) == 1
    assert (pd.read_csv("out/candidates.csv")["verdict"] == "holds").sum() == 1
    assert any("interrupted" in line for line in answers(outcome))


# --- the figure -------------------------------------------------------------------------------------------------------


def test_the_title_says_the_point():
    run = RunResults("s", None, (1,), ("tensor 1", "tensor 2"), "0", None)
    points = [
        SizePoint("tensor 1", 1, 1, {"p99_itl_ms": 70.0}, False, False, "too slow"),
        SizePoint("tensor 2", 1, 2, {"p99_itl_ms": 60.0}, False, False, None),
        SizePoint("tensor 2", 2, 4, {"p99_itl_ms": 40.0}, True, True, None),
    ]
    figure = draw_size(run, "chat", {"p99_itl_ms": 50.0}, points)
    title = figure.get_suptitle().replace("\n", " ").replace("\u00a0", " ")
    assert title == "4 accelerators hold chat at p99 time between tokens ≤ 50 ms: tensor 2, 2 replicas"
    words = [text.get_text() for text in figure.axes[-1].texts]
    assert "too slow" in words and "4" in words
    bounds = {"p99_itl_ms": 50.0, "p99_ttft_ms": 2000.0}
    of_both = [replace(point, latency_ms={**point.latency_ms, "p99_ttft_ms": 9.0}) for point in points]
    title = draw_size(run, "chat", bounds, of_both, "a").get_suptitle().replace("\n", " ")
    assert title == "a: 4 accelerators hold chat at its 2 targets: tensor 2, 2 replicas"
    none = draw_size(run, "chat", {"p99_itl_ms": 50.0}, points[:2])
    assert none.get_suptitle().startswith("No size of chat that was tried holds")
    assert draw_size(run, "chat", {"p99_itl_ms": 50.0}, []) is None
