"""Figures of packets say what their numbers say."""

import pandas as pd
from test_figure_words import plain

from sim.results.drawing import variant_styles
from sim.results.packet_figures import draw_price_of_reordering, draw_waits
from sim.results.run_results import RunResults, VariantResult

HELD, TIME = "traffic.t.reorder.max_held_bytes", "traffic.t.completion_time_s"


def run_of(values: dict[str, tuple[float, float]], waits: dict[str, list[float]] | None = None) -> RunResults:
    """(completion seconds, bytes held) per variant; waits in three stretches of 1 us on each of two links."""
    run = RunResults("s", "?", (1,), tuple(values), "0.1.0", None)
    for name, (time, held) in values.items():
        tables = {}
        if waits:
            rows = [(i * 1e-6, 1e-6, f"l{j}", 0.5, w * j) for j in (0, 1) for i, w in enumerate(waits[name])]
            tables["link_series"] = pd.DataFrame(
                rows, columns=["time_s", "span_s", "link", "utilisation", "longest_wait_s"]
            )
        run.results[name, 1] = VariantResult(name, 1, {TIME: time, HELD: held}, tables, {"fidelity": "packet"})
    return run


def test_the_price_of_reordering_stands_beside_the_gain():
    run = run_of({"one path": (2e-3, 0), "sprayed": (1e-3, 250e3)})
    (drawn,) = draw_price_of_reordering(run, variant_styles(run))
    assert plain(drawn.title) == "A receiver holds up to 250.0 kB out of order under sprayed, the best"
    assert "250.0 kB at 1.000 ms under sprayed" in plain(drawn.caption)


def test_without_reordering_or_comparison_there_is_no_price():
    for values in ({"a": (1e-3, 0), "b": (2e-3, 0)}, {"a": (1e-3, 250e3)}):
        run = run_of(values)
        assert draw_price_of_reordering(run, variant_styles(run)) == []


def test_waits_over_time_name_the_longest_and_the_shortest():
    run = run_of({"a": (1e-3, 0), "b": (2e-3, 0)}, {"a": [0.0, 4e-6, 1e-6], "b": [0.0, 1e-7, 0.0]})
    (drawn,) = draw_waits(run, variant_styles(run))
    assert plain(drawn.title).startswith("The longest wait in a queue is 4.000 µs under a, 100.0 ns under b")
    assert "at most 1.000 µs under a" in plain(drawn.caption)
    run = run_of({"a": (1e-3, 0)}, {"a": [0.0, 0.0, 0.0]})
    assert draw_waits(run, variant_styles(run)) == []
