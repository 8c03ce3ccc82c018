"""The validation table holds, and its laws are the published ones."""

import pytest

from sim.validate import fabric_checks
from sim.validate.fidelities import PATTERNS, Comparison
from sim.validate.main import CHECKS, as_page, run_checks, run_comparisons

LONG = {"assigned_loads"}


@pytest.mark.parametrize(
    "name", [pytest.param(c.__name__, marks=[pytest.mark.slow] * (c.__name__ in LONG)) for c in CHECKS]
)
def test_every_check_passes(name):
    results = run_checks([name])
    assert results
    for result in results:
        assert result.passed, result


def test_assigned_loads_are_sprayings_for_few_flows_and_paths():
    results = list(fabric_checks.assigned_loads(most=11))
    assert len(results) == 2
    for result in results:
        assert result.passed, result


def test_the_law_of_the_shift_is_the_published_one():
    law = fabric_checks.largest_of_leaves(8, 8, 8)
    assert sum(law.values()) == pytest.approx(1)
    assert [round(100 * law[k], 2) for k in (2, 3, 4, 5, 6)] == [0.40, 46.69, 45.31, 7.06, 0.52]
    assert sum(k * p for k, p in law.items()) == pytest.approx(3.607, abs=5e-4)


@pytest.mark.parametrize(
    ("flows", "links", "published"), [(8, 8, 2.60), (16, 16, 3.08), (64, 8, 1.53), (256, 16, 1.46), (448, 8, 1.19)]
)
def test_the_mean_of_the_largest_hashed_load_is_the_published_one(flows, links, published):
    assert round(fabric_checks.expected_largest(flows, links), 2) == published


def test_both_ways_to_the_law_agree():
    """By exact fractions and by convolution of Poisson counts."""
    one_leaf = fabric_checks.largest_of_leaves(8, 8, 1)
    mean = sum(k * p for k, p in one_leaf.items())
    assert fabric_checks.expected_largest(8, 8) == pytest.approx(mean, rel=1e-9)


def test_checks_are_chosen_by_name():
    with pytest.raises(ValueError, match="no check is named 'rings'; there are"):
        run_checks(["rings"])
    assert run_checks([]) == []


def test_the_page_names_what_failed():
    (result, *_) = run_checks(["max_min"])
    known = Comparison("one packet", "ecmp", 2.0, 2.3, 1.15, "0.95 … 1.05", False, "it is stored")
    page = as_page([result, fabric_checks.CheckResult("broken", 1.0, 2.0, None, "0", "nowhere", False)], [known])
    assert "| ok |" in page and "**FAILED**" in page and "| – |" in page
    assert "| outside |" in page and "- one packet, ecmp: it is stored." in page


def test_fidelities_agree_but_where_it_is_known_why_not():
    """A reason that no longer holds is found as well."""
    compared = run_comparisons()
    assert {(c.messages, c.paths) for c in compared} >= {
        (name, policy) for name in PATTERNS for policy in ("ecmp", "ethereal", "spray_switch")
    }
    for c in compared:
        assert c.passed == (c.because is None), c
