"""The max-min solver alone: algebra, the exact solver, and the first level as a linear programme."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from sim.fabric import maxmin
from sim.validate.oracle import broken_laws, max_min_rates

ROLE = np.dtype([("role", "i8")])


def solved(capacity, segments, routes, weight=None):
    """Rates of variables. segments: (role, {link: share}); routes: lists of segments, at most one of each role."""
    starts = np.cumsum([0, *(len(links) for _, links in segments)])
    links = np.array([link for _, loads in segments for link in loads], np.int64)
    shares = np.array([share for _, loads in segments for share in loads.values()], np.float64)
    net = maxmin.network(starts, links, shares, capacity)
    roles = np.zeros(len(segments), ROLE)
    roles["role"] = [role for role, _ in segments]
    table = np.full((len(routes), maxmin.NUM_ROLES), maxmin.NO_SEGMENT, np.int32)
    for v, route in enumerate(routes):
        for s in route:
            table[v, segments[s][0]] = s
    n = len(routes)
    rate = np.full(n, np.nan)
    work = maxmin.scratch(len(segments), len(capacity), n)
    weight = np.ones(n) if weight is None else np.asarray(weight, np.float64)
    for _ in range(2):  # the second time, the work space is not fresh
        maxmin.solve(net, work, n, np.arange(n), weight, table, roles, rate)
    return rate


def whole(role, link):
    return role, {link: 1.0}


def test_k_variables_share_one_link_by_weight():
    """Capacity C, weights w: each gets C w_i / sum w."""
    rates = solved([60.0], [whole(0, 0)], [[0]] * 3, [1.0, 2.0, 3.0])
    assert rates == pytest.approx([10, 20, 30], rel=1e-15)


def test_the_parking_lot():
    """Three links in a row of 1, a long flow over all and a short one on each: everyone gets 1/2.

    With the middle link at 1/2: the long flow gets 1/4 there, and the short ones on the outer links 3/4.
    """
    segments = [whole(0, 0), whole(1, 1), whole(2, 2)]
    routes = [[0, 1, 2], [0], [1], [2]]
    assert solved([1.0, 1.0, 1.0], segments, routes) == pytest.approx([0.5] * 4, rel=1e-15)
    assert solved([1.0, 0.5, 1.0], segments, routes) == pytest.approx([0.25, 0.75, 0.25, 0.75], rel=1e-15)


def test_the_example_of_the_textbook():
    """Two links, 1 and 2: A over both, B on the first, C on the second.

    A and B fill the first at 1/2 each; C rises on to 2 - 1/2 = 3/2.
    """
    rates = solved([1.0, 2.0], [whole(0, 0), whole(1, 1)], [[0, 1], [0], [1]])
    assert rates == pytest.approx([0.5, 0.5, 1.5], rel=1e-15)


def test_a_spread_variable_loads_each_link_with_its_share():
    """x spread over two links of 1, y whole on the first: x/2 + y <= 1 and x/2 <= 1.

    Both rise to 2/3 and the first is full; alone, x would reach 2.
    """
    segments = [(0, {0: 0.5, 1: 0.5}), whole(0, 0)]
    assert solved([1.0, 1.0], segments, [[0], [1]]) == pytest.approx([2 / 3, 2 / 3], rel=1e-15)
    assert solved([1.0, 1.0], segments, [[0]]) == pytest.approx([2.0], rel=1e-15)


def test_a_variable_without_links_has_no_limit():
    assert solved([1.0], [whole(0, 0)], [[], [0]]).tolist() == [np.inf, 1.0]


def test_equal_links_that_fill_together():
    """A permutation on equal links: all fill at the same level, in one sweep or in many."""
    n = 50
    segments = [whole(0, i) for i in range(n)] + [whole(3, n + i) for i in range(n)]
    routes = [[i, n + (i + 1) % n] for i in range(n)] + [[i, n + (i + 2) % n] for i in range(n)]
    assert solved(np.full(2 * n, 7.0), segments, routes).tolist() == [3.5] * (2 * n)


@st.composite
def problems(draw):
    """Links, segments of four roles on them, variables with up to one segment per role, weights."""
    num_links = draw(st.integers(1, 8))
    capacity = [float(draw(st.sampled_from([1, 2, 3, 5, 10, 100]))) for _ in range(num_links)]
    segments = []
    for _ in range(draw(st.integers(1, 9))):
        links = draw(st.lists(st.integers(0, num_links - 1), min_size=1, max_size=3, unique=True))
        share = draw(st.sampled_from([1.0, 1 / len(links), 0.25]))
        segments.append((draw(st.integers(0, 3)), dict.fromkeys(links, share)))
    by_role = [[s for s, (role, _) in enumerate(segments) if role == r] for r in range(4)]
    routes, weight = [], []
    for _ in range(draw(st.integers(1, 15))):
        route = [draw(st.sampled_from(members)) for members in by_role if members and draw(st.booleans())]
        routes.append(route or [draw(st.integers(0, len(segments) - 1))])
        weight.append(draw(st.sampled_from([1.0, 1.0, 2.0, 1 / 3, 0.025])))
    return capacity, segments, routes, weight


def as_flows(segments, routes):
    flows = []
    for route in routes:
        flow: dict[str, Fraction] = {}
        for s in route:
            for link, share in segments[s][1].items():
                flow[str(link)] = flow.get(str(link), Fraction(0)) + Fraction(share)
        flows.append(flow)
    return flows


@settings(max_examples=300, deadline=None)
@given(problems())
def test_rates_are_those_of_the_exact_solver(problem):
    capacity, segments, routes, weight = problem
    rates = solved(*problem)
    flows = as_flows(segments, routes)
    named = {str(i): c for i, c in enumerate(capacity)}
    exact = max_min_rates({k: Fraction(c) for k, c in named.items()}, flows, [Fraction(w) for w in weight])
    assert rates == pytest.approx([float(r) for r in exact], rel=1e-9)
    assert broken_laws(named, flows, weight, rates.tolist()) == []


@settings(max_examples=100, deadline=None)
@given(problems())
def test_the_slowest_rate_per_weight_is_the_largest_there_can_be(problem):
    """max t subject to x >= w t, loads <= capacities: a linear programme that knows no progressive filling."""
    capacity, segments, routes, weight = problem
    rates = solved(*problem)
    n = len(routes)
    load = np.zeros((len(capacity), n + 1))
    for v, flow in enumerate(as_flows(segments, routes)):
        for link, share in flow.items():
            load[int(link), v] = float(share)
    floor = np.hstack([-np.eye(n), np.array(weight)[:, None]])
    best = linprog(
        np.append(np.zeros(n), -1.0), A_ub=np.vstack([load, floor]), b_ub=np.append(capacity, np.zeros(n)),
        bounds=[(0, None)] * (n + 1),
    )  # fmt: skip
    assert best.status == 0
    assert (rates / weight).min() == pytest.approx(-best.fun, rel=1e-7)


def test_the_oracle_notices_what_is_wrong():
    """Two flows on a link of 1: half each is fair, and nothing else is."""
    flows = [{"a": Fraction(1)}, {"a": Fraction(1), "b": Fraction(1)}]
    capacity = {"a": 1.0, "b": 9.0}
    assert broken_laws(capacity, flows, [1, 1], [0.5, 0.5]) == []
    assert broken_laws(capacity, flows, [1, 2], [1 / 3, 2 / 3]) == []
    assert len(broken_laws(capacity, flows, [1, 1], [0.6, 0.5])) == 2  # over capacity, and one flow below the other
    assert len(broken_laws(capacity, flows, [1, 1], [0.4, 0.4])) == 2  # nobody has a full link
    assert len(broken_laws(capacity, flows, [1, 1], [0.6, 0.4])) == 1  # full, but unfair
    with pytest.raises(ValueError, match="crosses no link"):
        max_min_rates({}, [{}], [Fraction(1)])
