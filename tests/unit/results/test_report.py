import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from synthetic_results import make_run

from sim.results.drawing import image_bytes
from sim.results.figures import draw_all
from sim.results.report import combine, main_metrics, write_report
from sim.results.run_results import RunResults, VariantResult
from sim.results.samples import flow_times, latencies, load_maps, utilisation_over_time
from sim.results.store import RunFolder, RunFolderError

SMALL = {"num_requests": 30, "leaves": 2, "spines": 3, "hosts_per_leaf": 2}
LEAN = {**SMALL, "with_serving": False, "with_fabric": False}
PNG = b"\x89PNG\r\n\x1a\n"


def store(path, run, partial=False):
    results, run.results = dict(run.results), {}
    folder = RunFolder.create(path, run)
    for result in results.values():
        folder.add(result)
    folder.finish(partial=partial)
    return path


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A whole report, with a name, a variant and a scenario that try to break out of the page."""
    run = make_run(("single path", "<script>alert(1)</script> $x^2$"), 2, **SMALL)
    run.scenario_name = 'shift "><img src=x onerror=alert(1)>'
    run.scenario_text = "name: </pre><script>alert(2)</script>\n"
    run.results["single path", 1].notes["warnings"].append("Samples capped at <b>1000</b>")
    path = store(tmp_path_factory.mktemp("report") / "run", run)
    return write_report([path], path), run


def test_the_report_opens_with_the_question_and_its_answer(report):
    page = report[0].read_text()
    question, answer, figure = (
        page.index(s) for s in ("need packet spraying?</h1>", 'class="answer"', "<figure>")
    )
    assert question < answer < figure < page.index("Side by side") < page.index("Where this comes from")
    assert "(2 seeds, 95 % CI)" in page.replace("\u00a0", " ")


def test_the_report_is_self_contained_and_escapes_everything(report):
    page = report[0].read_text()
    assert "<script" not in page and "onerror=alert(1)>" not in page and "<b>1000" not in page
    assert "&lt;script&gt;alert(2)" in page and "Samples capped at &lt;b&gt;1000" in page
    outside = re.sub(r"data:image/svg\+xml;base64,[A-Za-z0-9+/=]+", "DATA", page)
    assert not re.search(r"https?://|@import|url\(|<link|<iframe", outside)
    assert set(re.findall(r'(?:src|srcset)="([^"]{0,12})', outside)) == {"DATA"}


def test_every_figure_has_a_text_alternative_and_a_file(report):
    path, _ = report
    page = path.read_text()
    images = re.findall(r"<img [^>]*>", page)
    assert len(images) >= 7 and all(re.search(r'alt="[^"]{20,}"', image) for image in images)
    files = sorted(file.name for file in (path.parent / "figures").iterdir())
    assert {"headline.png", "flow-times-1.png", "latency-1.png", "link-load-leaf-spine.png"} <= set(files)
    assert len(files) == len(images)
    assert all((path.parent / "figures" / name).read_bytes().startswith(PNG) for name in files)


def test_provenance_and_best_marks(report):
    page = report[0].read_text()
    for text in ("Spindle 0.1.0", "3f2a91c07d", "1, 2", "Fidelity: fluid", "roofline", "82.0\u00a0%"):
        assert text in page
    assert page.count('class="mark"') >= 2


def test_a_single_variant_without_serving_and_the_same_bytes_again(tmp_path):
    path = store(tmp_path / "one", make_run(("run",), 1, with_serving=False, **SMALL))
    first, second = (write_report([path], tmp_path / name / "report.html") for name in ("a", "b"))
    page = first.read_text()
    assert "Shift finishes in" in page and "luck not excluded" in page
    assert "Serving latency" not in page and 'class="mark"' not in page
    assert first.read_bytes() == second.read_bytes()
    for figure in (first.parent / "figures").iterdir():
        assert figure.read_bytes() == (second.parent / "figures" / figure.name).read_bytes()


def test_a_partial_run_says_so_and_shows_what_there_is(tmp_path):
    run = make_run(num_seeds=2, **LEAN)
    del run.results["spray", 1], run.results["spray", 2], run.results["one assigned path", 2]
    page = write_report([store(tmp_path / "run", run, partial=True)], tmp_path).read_text()
    assert "Partial: 3 of 6 runs finished." in page and "partial: 3 of 6 runs finished" in page


def test_no_results_at_all_still_make_a_page(tmp_path):
    run = RunResults("empty", "Why?", (1, 2), ("a", "b"), "0.1.0", None)
    page = write_report([store(tmp_path / "run", run, partial=True)], tmp_path / "run").read_text()
    assert "No answer yet: 0 of 4 runs finished." in page and "<figure" not in page


def test_empty_tables_draw_nothing():
    run = make_run(("run",), 1, with_serving=False, **SMALL)
    result = run.results["run", 1]
    tables = {name: frame.iloc[:0] for name, frame in result.tables.items()}
    run.results["run", 1] = VariantResult("run", 1, {}, tables)
    assert draw_all(run) == []


def test_several_folders_are_compared_over_their_common_seeds(tmp_path):
    """Two runs with a variant of the same name; the second has one seed more."""
    paths = [
        store(tmp_path / name, make_run(variants, seeds, **LEAN))
        for name, variants, seeds in (("monday", ("spray", "single path"), 2), ("tuesday", ("spray",), 3))
    ]
    page = write_report(paths, tmp_path / "both.html").read_text()
    for text in ("spray (monday)", "spray (tuesday)", "single path", "2 seeds"):
        assert text in page
    with pytest.raises(ValueError, match="at least one"):
        write_report([], tmp_path)
    with pytest.raises(RunFolderError):
        write_report([tmp_path / "nowhere"], tmp_path)


def test_runs_without_a_common_seed_are_compared_with_a_warning():
    first, second = make_run(("spray",), 2, **LEAN), make_run(("ecmp",), 2, **LEAN)
    second.seeds = (11, 12)
    second.results = {(name, seed + 10): result for (name, seed), result in second.results.items()}
    combined = combine([("a", first), ("b", second)])
    assert combined.run.seeds == (1, 2) and len(combined.run.results) == 4
    assert "no seed" in combined.warnings[0]


def test_an_svg_does_not_depend_on_when_it_is_drawn():
    run = make_run(("run",), 1, **LEAN)
    first, second = (image_bytes(draw_all(run)[0].figure, "svg", run) for _ in range(2))
    assert first == second and b"<dc:date>" not in first


def test_samples_by_hand():
    run = make_run(("run",), 1, **SMALL)
    tables = run.results["run", 1].tables
    times = flow_times(run, "shift")["run"]
    assert times.by_seed[0].tolist() == sorted(tables["flows"]["received_s"] - tables["flows"]["ready_s"])
    found = latencies(run, "chat")
    assert len(found["itl"]["run"].by_seed[0]) == len(tables["token_times"]) - 30
    assert found["itl"]["run"].by_seed[0].min() > 0
    maps = load_maps(run.results["run", 1])
    assert list(maps) == ["leaf-spine"] and maps["leaf-spine"].up.shape == (2, 3)


def test_a_link_without_a_row_was_idle():
    run = make_run(("run",), 1, with_serving=False, **SMALL)
    series = utilisation_over_time(run.results["run", 1])["host"]
    assert series.largest.max() <= 0.97 and series.p50[0] > 0.7


def test_utilisation_is_averaged_over_stretches_by_the_length_of_their_bins():
    """130 bins become 43 stretches of 3, the last one with the short bin that is left; the integral stays the same."""
    run = make_run(("run",), 1, with_serving=False, **SMALL)
    spans = np.append(np.full(129, 2.0), 1.0)
    starts = np.append(0.0, np.cumsum(spans)[:-1])
    busy = np.linspace(0, 1, 130)
    tables = {**run.results["run", 1].tables}
    tables["links"] = tables["links"].iloc[:1]
    tables["link_series"] = pd.DataFrame(
        {"time_s": starts, "span_s": spans, "link": tables["links"]["link"].iloc[0], "utilisation": busy}
    )
    tier = str(tables["links"]["tier"].iloc[0])
    series = utilisation_over_time(replace(run.results["run", 1], tables=tables))[tier]
    assert len(series.time_s) == 44 and series.time_s[-1] == 259.0
    assert series.time_s[-1] - series.time_s[-2] == 7.0
    assert (series.p50 * np.diff(series.time_s)).sum() == pytest.approx((busy * spans).sum(), rel=1e-12)


def test_the_table_of_many_metrics_is_short():
    assert len(main_metrics(make_run(("run",), 1, **SMALL))) <= 6
