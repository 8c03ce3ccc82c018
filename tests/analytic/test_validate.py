"""The validation table holds; its two long parts are slow tests."""

from itertools import chain

import pytest

from sim.validate import fabric_checks, serving_checks


@pytest.mark.parametrize(
    "check", [fabric_checks.single_flow_and_incast, fabric_checks.collectives, fabric_checks.max_min]
)
def test_closed_forms(check):
    for result in check():
        assert result.passed, result


def test_the_law_of_the_shift_is_the_published_one():
    law = fabric_checks.largest_of_leaves(8, 8, 8)
    assert [round(100 * law[k], 2) for k in (2, 3, 4, 5, 6)] == [0.40, 46.69, 45.31, 7.06, 0.52]


@pytest.mark.slow
def test_shift_assigned_loads_and_queueing():
    for result in chain(fabric_checks.shift_law(), fabric_checks.assigned_loads(), serving_checks.md1()):
        assert result.passed, result
