"""Studies of uneven runs: sides in some, results missing, more is better, best values of 0, nothing but contenders."""

import pytest
from matplotlib.text import Text

from sim.results.drawing import PALETTE, style
from sim.results.metrics import meaning_of
from sim.results.report_parts import page_of, shown
from sim.results.run_results import RunResults, VariantResult
from sim.results.study import Course, Finding, answer_of, courses_of, findings_of
from sim.results.study_figures import colours_of, draw_course, draw_map
from sim.results.study_report import change_of, markdown, pairs_table, winners_table, write_study

TIME = "collective.c.completion_time_s"
SEEDS = (1, 2, 3)
NOISE = (-0.001, 0.0, 0.001)
SIDES = {"ecmp": "one path", "spray": "spraying"}


def make_run(values, key=TIME, sides=SIDES, name="study, a", axis="factor", ideal=None, noise=NOISE):
    """values: entry of the axis -> {contender: mean, None for no result}; an axis of None: contenders alone."""
    contenders = tuple(dict.fromkeys(name for each in values.values() for name in each))
    axes = {axis: tuple(values)} if axis else {}
    run = RunResults(
        scenario_name=name, question="Which?", seeds=SEEDS, variants=(), version="0.1.0", calibration=None,
        answer=key, ideal_variant=ideal, axes={**axes, "policy": contenders}, sides=sides,
    )  # fmt: skip
    run.variants = tuple(f"{entry}, {c}" if axis else c for entry in values for c in contenders)
    for entry, each in values.items():
        for contender, value in each.items():
            for seed, wobble in zip(SEEDS, noise, strict=True):
                label = f"{entry}, {contender}" if axis else contender
                metrics = {key: None if value is None else value * (1 + wobble)}
                run.results[label, seed] = VariantResult(label, seed, metrics, {}, {"fidelity": "fluid"})
    return run


def finding_of(values, key=TIME, sides=None):
    """One value for all seeds, or a value per seed."""
    each = {name: list(v) if isinstance(v, tuple) else [v] * 3 for name, v in values.items()}
    return Finding((("factor", "2:1"),), meaning_of(key), each, sides or {})


def map_of(*runs):
    with style():
        return draw_map([(run.scenario_name, run, findings_of(run)) for run in runs], colours_of(runs))


def words_in(drawn):
    return " ".join(text.get_text() for text in drawn.figure.findobj(Text))


TWO = {"1:1": {"ecmp": 2.0, "spray": 1.0}, "2:1": {"ecmp": 1.0, "spray": 2.0}}


# --- sides ------------------------------------------------------------------------------------------------------------


def test_a_study_of_one_run_with_sides_and_one_without():
    plain = make_run({"1:1": {"ecmp": 3.0, "adaptive": 1.0}}, sides={}, name="study, b")
    drawn = map_of(make_run(TWO), plain)
    assert drawn.title == "Of 3 cases spraying wins 1 (1:1); one path wins 1 (2:1); adaptive wins 1 (1:1)"
    assert "where there are sides" in drawn.caption


def test_sides_are_decided_once_per_run():
    run = make_run({**TWO, "4:1": {"ecmp": 1.0, "spray": None}})
    findings = findings_of(run)
    assert [finding.decision for finding in findings] == ["spraying", "one path", "no result"]
    assert all(finding.has_sides for finding in findings)
    assert "ecmp, " not in words_in(map_of(run))


def test_one_side_alone_is_none():
    run = make_run(TWO, sides={"ecmp": "one path", "spray": "one path"})
    assert [finding.decision for finding in findings_of(run)] == ["spray", "ecmp"]
    with_ideal = make_run(TWO, sides={"ecmp": "one path", "spray": "spraying"}, ideal="spray")
    assert not any(finding.has_sides for finding in findings_of(with_ideal))


def test_colours_of_sides_are_not_those_of_contenders():
    colours = colours_of([make_run(TWO)])
    assert list(colours.items()) == list(zip(("ecmp", "spray", "one path", "spraying"), PALETTE, strict=False))


def test_the_map_says_what_is_on_no_side():
    run = make_run({"1:1": {"ecmp": 2.0, "spray": 1.0, "oracle": 0.5}, "2:1": {"ecmp": 1.0, "spray": 2.0}})
    drawn = map_of(run)
    assert "On no side, so not shown: oracle." in drawn.caption
    assert "spray  −50 %" in words_in(drawn)


# --- what is missing --------------------------------------------------------------------------------------------------


def test_an_ideal_without_values_is_none():
    run = make_run({entry: {**each, "ideal": None} for entry, each in TWO.items()}, ideal="ideal")
    assert all(finding.ideal is None for finding in findings_of(run))
    with style():
        assert "completion time (" in words_in(draw_course(run, colours_of([run])))


def test_no_figure_without_results():
    run = make_run({entry: dict.fromkeys(each) for entry, each in TWO.items()})
    with style():
        assert draw_course(run, colours_of([run])) is None
    assert map_of(run) is None
    assert answer_of(findings_of(run)) == "No answer yet: no run was finished."


def test_who_has_no_rival_wins_nothing():
    alone = make_run({"1:1": {"ecmp": 2.0, "spray": 1.0}, "2:1": {"ecmp": 1.0, "spray": None}}, sides={})
    findings = findings_of(alone)
    assert [finding.decision for finding in findings] == ["spray", "no result"]
    assert answer_of(findings, is_short=True) == "Of 1 case spray wins 1"
    assert answer_of(findings).endswith("; 1 more without a result to compare).")
    assert answer_of(findings[1:]) == "No answer yet: nothing has a rival with results."
    (course,) = courses_of(alone, findings)
    assert course.flips == []
    assert Course("factor", "", (("1", "a"), ("2", "no result"), ("4", "b"))).flips == [("1", "a", "4", "b")]
    assert "2:1" not in words_in(map_of(alone))
    assert "no result" in markdown([(alone, findings)])


def test_a_contender_of_a_later_panel_has_its_legend_and_an_empty_panel_none():
    run = make_run({"ring": {"ecmp": 2.0, "spray": None}, "direct": {"ecmp": 1.0, "spray": 2.0}}, sides={})
    run.axes = {"collective": ("ring", "direct"), "factor": ("1:1",), "policy": ("ecmp", "spray")}
    with style():
        drawn = draw_course(run, colours_of([run]))
    assert "spray" in [text.get_text() for text in drawn.figure.legends[0].get_texts()]


# --- more is better, shares, and 0 ------------------------------------------------------------------------------------


def test_more_is_better():
    key = "serving.chat.request_throughput"
    run = make_run({"1:1": {"ecmp": 10.0, "spray": 12.0, "ideal": 15.0}}, key, ideal="ideal")
    (finding,) = findings_of(run)
    verdict = finding.verdict
    assert verdict.best == "spray" and verdict.gain.mean == verdict.change.mean == pytest.approx(0.2)
    assert change_of(verdict).startswith("+20.0")
    assert "by up to 20.0\u00a0% [20.0, 20.0]" in answer_of([finding])
    drawn = map_of(run)
    assert "spray  +20 %" in words_in(drawn) and "how much more its request throughput is" in drawn.caption
    with style():
        words = words_in(draw_course(run, colours_of([run])))
    assert "times as long" not in words and "request throughput, over an ideal fabric's" in words


def test_a_share_differs_by_points():
    key = "serving.chat.network_tax"
    run = make_run({"1:1": {"ecmp": 0.30, "spray": 0.10, "ideal": 0.01}}, key, ideal="ideal", noise=(0, 0, 0))
    (finding,) = findings_of(run)
    assert finding.verdict.change.mean == pytest.approx(-0.2)
    assert change_of(finding.verdict) == "−20.0\u00a0points [−20.0, −20.0]"
    drawn = map_of(run)
    assert "spray  −20 points" in words_in(drawn) and "how many points its network tax is below" in drawn.caption
    with style():
        assert "network tax (%)" in words_in(draw_course(run, colours_of([run])))
    assert winners_table([(run, [finding])]).over_best.tolist() == pytest.approx([0.2, 0.0])
    assert pairs_table([(run, [finding])]).relative.tolist() == pytest.approx([-0.2, 0.2])


def test_a_best_value_of_zero_is_all_less():
    run = make_run({"1:1": {"ecmp": 2.0, "spray": 0.0}})
    (finding,) = findings_of(run)
    assert finding.verdict.state == "clear" and finding.verdict.gain.mean == 1.0
    assert "by up to 100" in answer_of([finding])
    assert "spray  −100 %" in words_in(map_of(run))
    assert "+2.000\u00a0s" in markdown([(run, [finding])])


def test_more_than_zero_is_said_in_the_metrics_unit():
    key = "serving.chat.request_throughput"
    finding = finding_of({"ecmp": 0.0, "spray": 3.0}, key)
    assert finding.decision == "spray" and finding.verdict.gain.mean is None
    assert change_of(finding.verdict) == "+3.000\u00a0requests/s"
    assert answer_of([finding]).startswith("Of 1 case spray wins 1 (")
    run = make_run({"1:1": {"ecmp": 0.0, "spray": 3.0}}, key)
    assert "spray  +3.000" in words_in(map_of(run))


def test_nothing_apart_at_zero():
    assert finding_of({"ecmp": 0.0, "spray": 0.0}).decision == "no difference"


# --- figures ----------------------------------------------------------------------------------------------------------


def test_an_interval_beyond_the_frame_is_marked():
    run = make_run(TWO)
    run.results["1:1, ecmp", 1].metrics[TIME] = 9.0
    run.results["1:1, ecmp", 2].metrics[TIME] = 0.1
    with style():
        wide, narrow = draw_course(run, colours_of([run])), draw_course(make_run(TWO), colours_of([run]))
    assert "reaches beyond it" in wide.caption and "reaches beyond it" not in narrow.caption


def test_sides_have_their_own_lines():
    run = make_run(TWO)
    with style():
        drawn = draw_course(run, colours_of([run]))
    lines = {line.get_label(): line for line in drawn.figure.axes[0].get_lines()}
    assert lines["ecmp"].get_linestyle() == "-" and lines["spray"].get_linestyle() == "--"
    legend = [text.get_text() for text in drawn.figure.legends[0].get_texts()]
    assert legend == ["ecmp", "spray", "one path", "spraying"]


def test_a_single_group_has_no_heading():
    alone, both = map_of(make_run(TWO)), map_of(make_run(TWO), make_run(TWO, name="study, b"))
    assert "study, a" in words_in(both)
    assert both.figure.get_figheight() > alone.figure.get_figheight()


def test_contenders_alone(tmp_path):
    run = make_run({"": {"ecmp": 2.0, "adaptive": 1.5, "spray": 1.0}}, axis=None)
    findings = findings_of(run)
    assert "(spray)" in answer_of(findings) and "(: " not in answer_of(findings)
    page = write_study([run], tmp_path / "report.html").read_text()
    assert "the only case" in page and "Flip points" not in page
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["01-study-contenders.png"]
    text = (tmp_path / "study.md").read_text()
    assert "| the only case |" in text and "| | ecmp" not in text


def test_a_page_and_its_figures_are_made_in_one_place():
    run = make_run(TWO)
    drawn = map_of(run)
    assert {"uri", "alt", "caption", "title", "fidelity", "percentiles", "key"} == set(shown(drawn, run))
    with pytest.raises(Exception, match="undefined"):
        page_of("study.html.jinja", title="<b>")
