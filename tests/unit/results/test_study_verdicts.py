"""Winners, ties and flip points of made-up results, and the report that shows them."""

import pandas as pd
import pytest

from sim.results.headline import headline_of
from sim.results.report import write_report
from sim.results.run_results import RunResults, VariantResult, add_network_tax
from sim.results.store import RunFolder, read_run
from sim.results.study import Course, answer_of, courses_of, findings_of, is_ordered

KEY = "collective.c.completion_time_s"
SIDES = {"ecmp": "one path", "ethereal": "one path", "spray": "spraying"}
NOISE = (-0.001, 0.0, 0.001)


def make_run(times, name="spray, oversubscription", seeds=(1, 2, 3), sides=SIDES):
    """times: (collective, oversubscription) -> (ecmp, ethereal, spray, ideal) in seconds, the same noise for all."""
    collectives = tuple(dict.fromkeys(key[0] for key in times))
    factors = tuple(dict.fromkeys(key[1] for key in times))
    contenders = ("ecmp", "ethereal", "spray", "ideal")
    run = RunResults(
        scenario_name=name, question="Is spraying needed?", seeds=seeds, variants=(), version="0.1.0", calibration="x",
        ideal_variant="ideal", scenario_text="name: </pre><script>alert(1)</script>\n",
        axes={"collective": collectives, "oversubscription": factors, "policy": contenders}, sides=sides,
    )  # fmt: skip
    run.variants = tuple(f"{c}, {f}, {p}" for c in collectives for f in factors for p in contenders)
    for (collective, factor), values in times.items():
        for contender, value in zip(contenders, values, strict=True):
            for seed, noise in zip(seeds, NOISE, strict=False):
                label = f"{collective}, {factor}, {contender}"
                metrics = {KEY: value * (1 + noise), "links.longest_queue_bytes": 1e6 * value}
                run.results[label, seed] = VariantResult(label, seed, metrics, {}, {"fidelity": "packet"})
    return run


FLIP = {
    ("ring", "1:1"): (2.0, 1.0, 1.004, 0.9),
    ("ring", "2:1"): (2.0, 1.0, 1.2, 0.9),
    ("ring", "4:1"): (2.0, 1.5, 1.0, 0.9),
}


def test_the_best_and_the_runner_up():
    finding = findings_of(make_run(FLIP))[1]
    assert finding.label == "ring, 2:1"
    assert finding.ranked == ("ethereal", "spray", "ecmp")
    verdict = finding.verdict
    assert (verdict.best, verdict.other, verdict.state) == ("ethereal", "spray", "clear")
    assert verdict.difference.relative.mean == pytest.approx(0.2)
    assert verdict.gain.mean == pytest.approx(1 - 1 / 1.2)
    assert finding.leaders == ("ethereal",)
    assert finding.ideal == pytest.approx([0.9 * (1 + noise) for noise in NOISE])


def test_within_one_percent_there_is_no_difference_whatever_the_interval():
    finding = findings_of(make_run(FLIP))[0]
    assert finding.verdict.state == finding.decision == "no difference"
    assert finding.leaders == ("ethereal", "spray")


def test_contested_where_the_interval_includes_zero():
    run = make_run({("ring", "1:1"): (2.0, 1.0, 1.0, 0.9)})
    for seed, factor in zip(run.seeds, (0.9, 1.0, 1.2), strict=True):
        run.results["ring, 1:1, spray", seed].metrics[KEY] *= factor
    (finding,) = findings_of(run)
    assert finding.decision == "contested"
    assert finding.verdict.gain.low < 0 < finding.verdict.gain.mean < finding.verdict.gain.high
    assert "1 contested" in answer_of([finding])


def test_one_seed_decides_without_an_interval():
    run = make_run({("ring", "1:1"): (2.0, 1.0, 1.2, 0.9)}, seeds=(1,))
    (finding,) = findings_of(run)
    assert finding.verdict.state == "one seed"
    assert finding.decision == "one path"
    assert answer_of([finding]).endswith("(one seed: luck not excluded).")


def test_sides_are_compared_by_their_best():
    finding = findings_of(make_run(FLIP))[2]
    assert finding.decision == "spraying"
    assert (finding.side_verdict.best, finding.side_verdict.other) == ("spray", "ethereal")
    without = findings_of(make_run(FLIP, sides={}))[2]
    assert without.decision == "spray" and not without.has_sides


def test_a_flip_lies_between_the_last_and_the_next_winner():
    run = make_run(FLIP)
    (course,) = courses_of(run, findings_of(run))
    assert (course.axis, course.others) == ("oversubscription", "ring")
    assert course.flips == [("2:1", "one path", "4:1", "spraying")]
    assert course.stretches == [
        ("1:1", "1:1", "no difference"), ("2:1", "2:1", "one path"), ("4:1", "4:1", "spraying"),
    ]  # fmt: skip


def test_what_is_undecided_lies_within_a_flip():
    steps = (("0", "a"), ("1", "contested"), ("2", "no difference"), ("4", "b"), ("8", "b"))
    assert Course("dead", "", steps).flips == [("0", "a", "4", "b")]
    assert Course("dead", "", steps[:3]).flips == []


def test_an_axis_of_quantities_is_ordered():
    assert is_ordered(["1:1", "2:1"]) and is_ordered(["0 dead", "1 dead"])
    assert not is_ordered(["ring", "direct"]) and not is_ordered(["256 MB"])


def test_the_answer_counts_each_set_of_circumstances_once():
    findings = findings_of(make_run(FLIP))
    again = findings_of(make_run(dict(list(FLIP.items())[:2]), name="spray, other"))
    text = answer_of(findings + again).replace("\u00a0", " ")
    assert text.startswith("Of 3 cases one path wins 1, by up to 16.7 % [16.7, 16.7] (ring, 2:1: ethereal)")
    assert "spraying wins 1, by up to 33.3 %" in text
    assert text.endswith("no difference in 1 (within 1 %) (3 seeds, 95 % CI).")
    assert answer_of([]).startswith("No answer yet")
    assert headline_of(make_run(FLIP)).sentence == answer_of(findings)


def test_the_network_tax_is_taken_under_the_same_circumstances():
    run = make_run(FLIP)
    for (variant, _), result in run.results.items():
        result.metrics["serving.chat.p99_itl_ms"] = 10.0 if variant.endswith("ideal") else 12.0
    add_network_tax(run)
    taxes = {v.rpartition(", ")[2]: r.metrics["serving.chat.network_tax"] for (v, _), r in run.results.items()}
    assert taxes == pytest.approx({"ecmp": 0.2, "ethereal": 0.2, "spray": 0.2, "ideal": 0.0})


@pytest.fixture
def folders(tmp_path):
    out = []
    for name, times in (("spray, oversubscription", FLIP), ("spray, other", {("ring", "3:1"): (2.0, 1.0, 1.2, 0.9)})):
        run = make_run(times, name)
        results, run.results = dict(run.results), {}
        folder = RunFolder.create(tmp_path / name.split(", ")[1], run)
        for result in results.values():
            folder.add(result)
        folder.finish()
        out.append(folder.path)
    return out


def test_axes_come_back_from_the_folder(folders):
    run = read_run(folders[0])
    assert run.axes == make_run(FLIP).axes and run.sides == SIDES
    assert [f.decision for f in findings_of(run)] == ["no difference", "one path", "spraying"]


def test_the_report_of_a_study(folders, tmp_path):
    page = write_report(folders, tmp_path / "study").read_text().replace("\u00a0", " ")
    assert page.index("Is spraying needed?</h1>") < page.index('class="answer"') < page.index("Flip points")
    assert "one path → spraying between 2:1 and 4:1" in page
    assert "−16.7 % [−16.7, −16.7] against spray" in page
    assert "longest queue" in page
    assert "<script" not in page and 'src="http' not in page
    winners = pd.read_csv(tmp_path / "study" / "winners.csv")
    assert len(winners) == 4 * 3
    row = winners[(winners.circumstances == "ring, 4:1") & (winners.contender == "ethereal")].iloc[0]
    assert row.over_best == pytest.approx(0.5) and row.best == "spray" and row.decision == "spraying"
    text = (tmp_path / "study" / "study.md").read_text().replace("\u00a0", " ")
    assert "| ring, 2:1 | +100 % [100, 100] | **1.000 s** | +20.0 % [20.0, 20.0] | one path |" in text
    assert "| oversubscription, 2:1 | ethereal −16.7 % [−16.7, −16.7] |" in text
    assert "| oversubscription, 1:1 | ethereal = spray |" in text
    assert "| oversubscription | oversubscription | ring | one path → spraying between 2:1 and 4:1 |" in text
    pairs = pd.read_csv(tmp_path / "study" / "pairs.csv")
    assert len(pairs) == 4 * 3 * 2
    assert {path.name for path in (tmp_path / "study" / "figures").iterdir()} == {
        "study-map.png", "01-study-oversubscription.png", "02-study-oversubscription.png",
    }  # fmt: skip
