"""The figure of where time went: its words, from made-up splits."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from sim.results.drawing import style, variant_styles
from sim.results.run_results import RunResults, VariantResult
from sim.results.split_figure import PARTS, draw_time_split
from sim.serving import time_split


def run_of(**by_variant):
    """A variant's parts in seconds, the same for each of 30 requests of `chat`."""
    run = RunResults("s", None, (1,), tuple(by_variant), "1", None)
    for variant, parts in by_variant.items():
        split = dict.fromkeys(PARTS, 0.0) | parts
        frame = pd.DataFrame({"workload": ["chat"] * 30, **{f"{part}_s": seconds for part, seconds in split.items()}})
        frame["e2e_s"] = np.nansum(list(split.values()))
        run.results[variant, 1] = VariantResult(variant, 1, {}, {"time_split": frame}, {})
    return run


def drawn(run):
    with style():
        return draw_time_split(run, variant_styles(run))


def test_every_part_has_its_colour_and_words():
    assert set(PARTS) == {*time_split.PARTS, time_split.ADAPTER_LOAD}
    assert len({colour for colour, _ in PARTS.values()}) == len(PARTS)


@pytest.mark.parametrize(
    ("parts", "title"),
    [
        ({"decode": 3.0, "queue": 1.0}, "Most of a mean request of chat is decode: 75 %"),
        ({"decode": 2.0, "queue": 1.8, "host": 1.2}, "The biggest part of a mean request of chat is decode: 40 %"),
    ],
)
def test_one_variant_names_the_biggest_part(parts, title):
    (figure,) = drawn(run_of(run=parts))

    assert figure.title == title
    assert "Contention" not in figure.caption


def test_several_variants_name_what_makes_the_slowest_slower():
    (figure,) = drawn(run_of(
        ideal={"decode": 2.0, "fabric": 1.0},
        ecmp={"decode": 2.0, "fabric": 1.0, "fabric_contention": 2.4, "queue": 0.6},
    ))  # fmt: skip

    assert figure.title == (
        "A mean request of chat takes 2.0 times as long under ecmp as under ideal: contention in the fabric is 80 % of "
        "what it adds"
    )
    shares = "contention in the fabric 40.0 %, decode 33.3 % and fabric, uncontended 16.7 %"
    assert f"6.000\u00a0s under ecmp ({shares})" in figure.caption


def test_a_part_that_grows_by_more_than_the_whole_is_all_of_it():
    (figure,) = drawn(run_of(a={"decode": 2.0, "queue": 0.6}, b={"decode": 2.6, "queue": 0.5}))

    assert figure.title.endswith("under b than under a: decode is all of what it adds, and more")


def test_where_contention_is_not_told_apart_the_caption_says_so():
    (figure,) = drawn(run_of(run={"decode": 1.0, "fabric": 2.0, "fabric_contention": np.nan}))

    assert figure.title == "Most of a mean request of chat is fabric: 67 %"
    assert figure.caption.endswith("Contention is part of the fabric's time; `contention: true` tells it apart.")


def test_nothing_completed_draws_nothing():
    assert drawn(RunResults("s", None, (1,), ("run",), "1", None)) == []
