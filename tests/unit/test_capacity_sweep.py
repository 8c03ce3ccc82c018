"""`spindle sweep --target` from the file to the table, on a service whose steps take a constant time."""

import json
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim import capacity_probe, capacity_sweep, cli
from sim.capacity_probe import LATENCIES, probed
from sim.capacity_question import question_of
from sim.capacity_sweep import Outcome, rows_of, run_capacity
from sim.results.capacity_figure import CapacityCurve, CurvePoint, draw_capacity, pareto_front
from sim.results.run_results import RunResults
from sim.scenario.errors import Refused
from sim.scenario.load import load_scenario
from sim.simulate import simulate

STEP_S, OUTPUT, SERVICE_S = 0.01, 10, 0.1
"""The engine's own 10 ms are longer than what the accelerator takes; a prompt's step gives the first of 10 tokens."""

SCENARIO = """
name: constant steps
cluster:
  fabric: {kind: leaf_spine, leaves: 1, spines: 1, hosts_per_leaf: 1, host_link: {rate: 100 Gbit/s, latency: 1 us},
           spine_link: {rate: 100 Gbit/s, latency: 1 us}}
  host: {accelerators: 1, accelerator: h100}
workloads:
  - {kind: serving, name: chat, model: llama-3.1-8b, arrivals: {kind: constant, rate: 3 /s}, num_requests: 400,
     host_time: 10 ms, batching: {policy: prefill_first, max_num_seqs: 1},
     lengths: {input: {law: fixed, tokens: 16}, output: {law: fixed, tokens: 10}}}
"""
BATCHES = """
compare:
  - {name: one at a time}
  - {name: four at a time, workloads: [{name: chat, batching: {max_num_seqs: 4}}]}
"""
TRACE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


@pytest.fixture
def scenario(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(text=SCENARIO):
        Path("s.yaml").write_text(text)
        return Path("s.yaml")

    return write


def search(path, *targets, settings=(), seeds=None, price=None, tolerance="2%", workers=1) -> Outcome:
    loaded = load_scenario(path, settings, False, None, seeds)
    return run_capacity(question_of(loaded, targets, None, tolerance, price), Path("out"), workers, quiet=True)


def test_one_server_with_constant_times(scenario):
    """D/D/1: nobody waits up to 1 / (10 steps of 10 ms) = 10 /s, and above it the wait only grows. The first token is
    one step after the arrival, at most 20 ms. A price of 3.6 is 0.1 cents a second for 10 tokens a request."""
    outcome = search(scenario(), "p99_ttft_ms=20", price="3.6")
    assert not outcome.partial
    (row,) = rows_of(outcome)
    rate = row["highest_rate_per_s"]
    assert rate <= 1 / SERVICE_S < row["next_rate_per_s"] <= 1.02 * rate
    assert row["p99_ttft_ms"]["mean"] == pytest.approx(1e3 * STEP_S) and row["p99_ttft_ms"]["ci95"] is None
    assert row["limit"] == "p99_ttft_ms" and row["setting"] == f"rate: {rate:.6g} /s"
    # the window lies between two arrivals, and cuts at most a request at each end: of 359
    assert row["output_tokens_per_s_per_accelerator"] == pytest.approx(OUTPUT * rate, rel=1 / 359)
    expected = 1e6 * 0.001 / row["output_tokens_per_s_per_accelerator"]
    assert row["cost_per_million_output_tokens"] == pytest.approx(expected)


def test_a_growing_queue_does_not_hold_a_target_that_it_cannot_miss(scenario):
    """Whoever waits, the time between tokens stays one step: only the queue says that more than 10 /s are too many.
    It may grow by 2 % unseen, and the search by another 2 %."""
    (row,) = rows_of(search(scenario(), "p99_itl_ms=15"))
    assert 10 / 1.02 <= row["highest_rate_per_s"] <= 10 * 1.02 * 1.001
    assert row["limit"] in ("backlogged", "overloaded")
    assert row["p99_itl_ms"]["mean"] == pytest.approx(1e3 * STEP_S)


def test_variants_and_workers(scenario):
    """Four at a time share each step, prompts and all: 4 / 0.1 s. The table does not depend on the workers."""
    text = SCENARIO.replace("policy: prefill_first", "policy: chunked_prefill, async_scheduling: false")
    path = scenario(text + BATCHES)
    one, four = rows_of(search(path, "p99_itl_ms=15"))
    for row, critical in ((one, 1 / SERVICE_S), (four, 4 / SERVICE_S)):
        assert critical / 1.02 <= row["highest_rate_per_s"] <= critical * 1.02 * 1.001
    table = Path("out/probes.csv").read_bytes()
    search(path, "p99_itl_ms=15", workers=2)
    assert Path("out/probes.csv").read_bytes() == table


def test_the_mean_wait_of_random_arrivals(scenario):
    """M/D/1: the mean wait is rho s / (2 (1 - rho)), 50 ms at rho = 0.5, and the first token comes a step later: 60 ms
    at 5 /s. The mean of 3 x 3,600 waits of standard deviation 76 ms is good to 4 % or so, 2 % of the rate; the search
    adds 2 %."""
    text = SCENARIO.replace("kind: constant", "kind: poisson")
    (row,) = rows_of(search(scenario(text), "mean_ttft_ms=60", settings=["workloads.chat.num_requests=4000"], seeds=3))
    assert row["highest_rate_per_s"] == pytest.approx(5, rel=0.06)
    low, high = row["mean_ttft_ms"]["ci95"]
    assert low < row["mean_ttft_ms"]["mean"] <= 60 and high > low


def test_a_trace_is_scaled(scenario):
    """55 s of a request every 0.2 s, served one at a time: at twice that rate the service is full."""
    Path("t.csv").write_text(TRACE + "".join(f"2030-01-01 00:00:{i / 5:04.1f},16,10\n" for i in range(275)))
    text = SCENARIO.replace("{kind: constant, rate: 3 /s}", "{kind: trace}").replace(
        "num_requests: 400", "trace: {format: azure, file: t.csv}").replace(
        "     lengths: {input: {law: fixed, tokens: 16}, output: {law: fixed, tokens: 10}}}", "    }")  # fmt: skip
    (row,) = rows_of(search(scenario(text), "p99_ttft_ms=20"))
    scale = float(row["setting"].removeprefix("scale: "))
    assert scale <= 2 < 1.02 * scale * 1.001 and row["highest_rate_per_s"] == pytest.approx(5 * scale, rel=1e-5)


def test_no_rate_holds(scenario):
    """A token takes a step of 10 ms however few requests there are."""
    outcome = search(scenario(), "mean_itl_ms=9")
    (row,) = rows_of(outcome)
    assert row["highest_rate_per_s"] is None and row["mean_itl_ms"] == {"mean": None, "ci95": None}
    assert row["limit"] == "mean_itl_ms" and row["finished"]
    assert row["next_rate_per_s"] * SERVICE_S < capacity_sweep.IDLE
    assert capacity_sweep.remarks(outcome)[0].endswith("where mean_itl_ms is 10")


def test_a_service_that_completes_nothing(scenario):
    """One block of 16 tokens holds a prompt of 16 and nothing that it generates: every request is refused."""
    outcome = search(scenario(), "mean_itl_ms=9", settings=["workloads.chat.kv.num_blocks=1"])
    assert rows_of(outcome)[0]["highest_rate_per_s"] is None
    assert capacity_sweep.remarks(outcome)[0].endswith("where no request completes")
    assert {probe.failed for probe in outcome.probes["run"]} == {400}


def test_a_run_too_short_says_so(scenario):
    """Four places for four requests: they could all come at once, and nothing would show what a rate is."""
    settings = ["workloads.chat.batching.max_num_seqs=4", "workloads.chat.num_requests=4"]
    outcome = search(scenario(), "p99_itl_ms=15", settings=settings)
    (row,) = rows_of(outcome)
    assert row["limit"] == "too short" and "raise num_requests" in capacity_sweep.remarks(outcome)[0]


def test_the_warm_up_is_left_out(scenario, monkeypatch):
    """Without a warm-up the figures are those of the run; with one, those of the later requests alone."""
    settings = ["workloads.chat.arrivals.rate=20 /s", "workloads.chat.num_requests=10"]
    ((_, chat),) = load_scenario(scenario(), settings).variants
    result = simulate(chat, 1, "run")
    metrics = {name: result.metrics[f"serving.chat.{name}"] for name in LATENCIES}
    monkeypatch.setattr(capacity_probe, "WARM_UP", 0.0)
    assert probed("chat", result).latencies_ms == pytest.approx(metrics)
    # request i arrives at (i + 1) / 20 s, waits i (0.1 - 0.05) s, and has its token a step later
    monkeypatch.setattr(capacity_probe, "WARM_UP", 0.5)
    later = probed("chat", result)
    assert later.latencies_ms["mean_ttft_ms"] == pytest.approx(10 + 50 * (5 + 6 + 7 + 8 + 9) / 5)
    assert later.growth == pytest.approx(1.0) and later.span_s == pytest.approx(0.2)
    assert (later.completed, later.failed, later.unfinished) == (10, 0, 0)


def test_what_was_tried_is_kept(scenario, monkeypatch):
    """Interrupted in its fourth probe: three are in the table, and bracket the answer."""
    calls = []

    def interrupted(workload, result):
        calls.append(result)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return probed(workload, result)

    monkeypatch.setattr(capacity_sweep, "probed", interrupted)
    outcome = search(scenario(), "p99_ttft_ms=20")
    assert outcome.partial
    table = pd.read_csv("out/probes.csv")
    assert list(table["rate_per_s"]) == [3, 6, 12] and list(table["holds"]) == [True, True, False]
    (row,) = rows_of(outcome)
    assert (row["highest_rate_per_s"], row["next_rate_per_s"], row["finished"]) == (6, 12, False)
    assert "interrupted" in capacity_sweep.remarks(outcome)[0]


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def spindle(scenario, capsys):
    def run(*arguments, text=SCENARIO):
        scenario(text)
        with pytest.raises(SystemExit) as left:
            cli.main(["sweep", "s.yaml", *arguments])
        printed = capsys.readouterr()
        return left.value.code or 0, printed.out, printed.err

    return run


def test_the_command_prints_a_table_or_json(spindle):
    code, out, err = spindle("--target", "p99_ttft_ms=20", "--tolerance", "20%", "--price", "h100=3.6")
    assert code == 0, err
    assert "p99_ttft_ms <= 20" in out and "$ per million tokens" in out and "one seed, so no intervals" in out
    folder = Path("runs/constant-steps-capacity")
    assert sorted(path.name for path in folder.iterdir()) == ["capacity.json", "capacity.png", "probes.csv"]
    code, out, err = spindle("--target", "p99_ttft_ms=20", "--tolerance", "0.2", "--json", "--seeds", "2")
    assert code == 0 and json.loads(out)[0]["p99_ttft_ms"]["ci95"] == pytest.approx([10, 10])
    assert json.loads(Path("runs/constant-steps-capacity-2/capacity.json").read_text()) == json.loads(out)


BURST = """  - {kind: serving, name: chat, model: llama-3.1-8b, arrivals: {kind: trace},
     trace: {format: azure, file: t.csv}}"""
TWO = SCENARIO.replace("accelerators: 1", "accelerators: 2") + SCENARIO[SCENARIO.index("  - {kind"):].replace(
    "name: chat", "name: code, ranks: [1]")  # fmt: skip
TRAFFIC = SCENARIO[: SCENARIO.index("  - {kind")].replace("hosts_per_leaf: 1", "hosts_per_leaf: 2") + (
    "  - {kind: traffic, name: t, pattern: all_to_all, size_per_flow: 1 MB}\n"
)


@pytest.mark.parametrize(
    ("text", "arguments", "words"),
    [
        (SCENARIO, [], "give --grid KEY=A,B,C to run every point, or --target METRIC=MS to search a rate"),
        (SCENARIO, ["--target", "p99_itl_ms=5", "--grid", "seed=1,2"], "not both"),
        (SCENARIO, ["--target", "p99_itl_ms=5", "--scheduler", "here"], "--scheduler is of --grid"),
        (SCENARIO, ["--grid", "seed=1,2", "--price", "3"], "--price is of --target, not of --grid"),
        (SCENARIO.replace("num_requests: 400", "duration: 9 s"), ["--target", "p99_itl_ms=5"],
         "--set workloads.chat.num_requests=2000"),
        (SCENARIO, ["--target", "p99_latency=5"], "choose one of mean_ttft_ms, median_ttft_ms"),
        (SCENARIO, ["--target", "p99_itl_ms"], "write for example --target p99_itl_ms=50, in ms"),
        (SCENARIO, ["--target", "p99_itl_ms=-1"], "'-1' is no positive number"),
        (SCENARIO, ["--target", "p99_itl_ms=5", "--target", "p99_itl_ms=6"], "bounds p99_itl_ms twice"),
        (SCENARIO, ["--target", "p99_itl_ms=5", "--tolerance", "500%"], "is not from 0.1% to 100%"),
        (SCENARIO, ["--target", "p99_itl_ms=5", "--workload", "chta"], "did you mean 'chat'?"),
        (SCENARIO, ["--target", "p99_itl_ms=5", "--price", "free"], "write for example --price 2.5"),
        (SCENARIO, ["--target", "p99_itl_ms=5", "--price", "h200=2"], "says nothing of h100"),
        (SCENARIO, ["--target", "p99_itl_ms=5", "--set", "fidelity=auto"], "write fidelity: packet, or fluid"),
        (TWO, ["--target", "p99_itl_ms=5"], "--workload chat or code"),
        (TRAFFIC, ["--target", "p99_itl_ms=5"], "only a serving workload has a rate"),
        (SCENARIO[: SCENARIO.index("  - {kind")] + BURST, ["--target", "p99_itl_ms=5"], "at one instant"),
    ],
)
def test_what_cannot_be_searched_is_refused(spindle, tmp_path, text, arguments, words):
    (tmp_path / "t.csv").write_text(TRACE + "2030-01-01 00:00:00,16,10\n" * 5)
    code, _, err = spindle(*arguments, text=text)
    assert code == 2 and words in err
    assert not Path("runs").exists()


def test_of_two_services_the_one_asked_for_is_searched(scenario):
    loaded = load_scenario(scenario(TWO))
    question = question_of(loaded, ["p99_itl_ms=5"], "code", "2%", None)
    scaled, _ = capacity_probe.at_rate(loaded.variants[0][1], question.workload, 2.0)
    assert [w.arrivals.rate_per_s for w in scaled.workloads] == [3, 6]
    with pytest.raises(Refused, match="--workload"):
        question_of(loaded, ["p99_itl_ms=5"], None, "2%", None)


# --- the figure -------------------------------------------------------------------------------------------------------


def curve(variant, *found):
    points = [CurvePoint({"p99_itl_ms": 10.0 * (i + 1)}, x, None, True, True) for i, x in enumerate(found)]
    return CapacityCurve(variant, [*points, CurvePoint({"p99_itl_ms": 99.0}, 900.0, None, False, False)])


@pytest.mark.parametrize(
    ("curves", "words"),
    [
        ([curve("run", 500.0)], "time between tokens ≤ 50 ms leaves 500 tokens/s per accelerator"),
        ([curve("a"), curve("b")], "No rate of chat holds"),
        ([curve("a", 500.0), curve("b")], "leaves 500 tokens/s per accelerator under a; no rate does under b"),
        ([curve("a", 500.0), curve("b", 505.0)], "no variant serves more than another"),
        ([curve("a", 500.0), curve("b", 800.0)], "b serves 1.6 times as many tokens as a"),
        ([curve("a", 500.0), curve("b", 800.0), curve("c", 801.0)], "b and c serve 1.6 times"),
        ([curve("a", 500.0), curve("b", 800.0), curve("c")], "as a; no rate does under c"),
        ([curve("a", 500.0), curve("b", 800.0), curve("c", 640.0)], "as a and 1.25 times as many as c, the next"),
    ],
)
def test_the_title_says_the_point(curves, words):
    run = RunResults("s", None, (1,), tuple(c.variant for c in curves), "0", None)
    figure = draw_capacity(run, "chat", {"p99_itl_ms": 50.0}, curves)
    title = figure.get_suptitle().replace("\n", " ").replace("\u00a0", " ")
    assert words in title
    assert figure.axes[0].get_xlabel() == "p99 time between tokens (ms)"


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=12), st.booleans())
def test_nothing_beats_the_pareto_front_and_it_leaves_nothing_out(points, is_cost):
    """A point is beaten by one that is no worse in both and better in one."""
    sign = 1 if is_cost else -1

    def is_beaten(p):
        return any(q != p and q[0] <= p[0] and sign * q[1] <= sign * p[1] for q in points)

    front = pareto_front(points, is_cost)
    assert front == sorted({p for p in points if not is_beaten(p)})


def test_no_points_no_figure():
    run = RunResults("s", None, (1,), ("run",), "0", None)
    assert draw_capacity(run, "chat", {"p99_itl_ms": 50.0}, [CapacityCurve("run", [])]) is None


@pytest.mark.slow
def test_chunks_beside_decodes_serve_more_within_a_limit_on_the_time_between_tokens(scenario):
    """Sarathi-Serve's claim (arXiv 2403.02310): at equal p99 time between tokens at least 1.3 times the rate of whole
    prompts first; the same three seeds of one workload, Llama-3.1-8B on an A100 by the roofline."""
    text = (Path(__file__).resolve().parents[2] / "scenarios" / "batching.yaml").read_text()
    without_table = text.replace("cost: {table: a100}\n", "")
    settings = ["workloads.chat.num_requests=300"]
    outcome = search(scenario(without_table), "p99_itl_ms=100", settings=settings, tolerance="10%", workers=2)
    rates = {row["variant"]: row["highest_rate_per_s"] for row in rows_of(outcome)}
    assert rates["chunks within 512"] >= 1.3 * rates["prefill first"]
