"""`spindle tax`: what it runs, what it refuses, and what it prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sim import cli
from sim.results.run_results import RunResults, VariantResult, add_network_tax
from sim.scenario.errors import Refused, ScenarioError
from sim.tax import shown_rows, tax_question, tax_rows

SCENARIO = Path(__file__).parents[2] / "scenarios" / "tax.yaml"


def question(policies=None, workload=None, settings=(), **options):
    return tax_question(SCENARIO, policies, workload, settings, **options)


def test_every_policy_that_the_fidelity_can_express_against_ideal():
    asked = question()

    policies = [scenario.paths.policy for _, scenario in asked.loaded.variants]
    assert policies == ["ideal", "ecmp", "spray", "ethereal", "wrap_around", "least_loaded", "multipath"]
    assert asked.loaded.answer == "serving.chat.network_tax"
    for _, scenario in asked.loaded.variants:
        assert scenario.workloads[0].contention
    in_packets = question(settings=["fidelity=packet"])
    assert {"adaptive", "flowlet", "reps", "spray_switch"} < {label for label, _ in in_packets.loaded.variants}


def test_the_scenario_s_own_policy_keeps_its_parameters():
    asked = question("multipath,ecmp", settings=["paths={policy: multipath, subflows: 9}"])

    assert asked.loaded.variants[1][1].paths.subflows == 9


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"policies": "sprey"}, ScenarioError, "did you mean 'spray'"),
        ({"policies": "ideal,ecmp"}, ScenarioError, "what the others are compared with"),
        ({"policies": "ecmp,ecmp"}, ScenarioError, "one twice"),
        ({"policies": "adaptive"}, ScenarioError, "fluid cannot express"),
        ({"workload": "neighbour"}, ScenarioError, "no serving workload that crosses the fabric"),
        (
            {"settings": ["workloads.chat.parallelism.expert=1", "workloads.chat.contention=false",
                          "workloads.chat.ranks=[0]"]},
            Refused, "no serving workload crosses the fabric",
        ),
    ],
)  # fmt: skip
def test_refusals(options, error, words):
    with pytest.raises(error, match=words):
        question(**options)


def test_the_rows():
    """p99 of 20 ms under ideal and 26 ms under ecmp: a tax of 30 %."""
    run = RunResults("s", None, (1,), ("ideal", "ecmp"), "1", None, ideal_variant="ideal")
    for variant, p99_ms, contention_ms in (("ideal", 20.0, 0.0), ("ecmp", 26.0, 25.0)):
        metrics = {"serving.chat.p99_itl_ms": p99_ms, "serving.chat.mean_e2el_ms": 100.0,
                   "serving.chat.mean_fabric_contention_ms": contention_ms}  # fmt: skip
        run.results[variant, 1] = VariantResult(variant, 1, metrics)
    add_network_tax(run)

    rows = tax_rows(run, "chat")

    assert rows[1] == {
        "policy": "ecmp", "p99_itl_ms": 26.0, "network_tax": pytest.approx(0.3), "mean_e2el_ms": 100.0,
        "contention_share": 0.25,
    }  # fmt: skip
    assert [shown_rows(rows)[1][name] for name in ("network tax (%)", "of which contention (%)")] == ["30.0", "25.0"]


def test_the_command(tmp_path, capsys):
    arguments = ["tax", str(SCENARIO), "--small", "--policies", "ecmp", "--json", "--quiet", "--workers", "1"]
    with pytest.raises(SystemExit) as ended:
        cli.main([*arguments, "--out", str(tmp_path / "out")])

    assert ended.value.code == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["policy"] for row in rows] == ["ideal", "ecmp"]
    assert rows[0]["network_tax"] == 0.0
    assert rows[0]["contention_share"] == pytest.approx(0.0, abs=1e-9)
    assert rows[1]["network_tax"] > 0.0
    assert rows[1]["contention_share"] > 0.0
    assert (tmp_path / "out" / "figures" / "time-split-1.png").exists()
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert set(summary["variants"]["ecmp"]["load"]["chat"]) == {
        "label", "wait_growth", "waiting_halfway", "waiting_at_last_arrival"
    }  # fmt: skip
