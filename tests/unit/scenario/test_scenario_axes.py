"""Variants as the product of several lists: their order, their sides, and what is refused."""

import pytest
from scenario_texts import CLUSTER, loaded, refusal

from sim.scenario.errors import Place, Problem, merged_problems

WORKLOAD = "workloads: [{kind: collective, name: c, operation: all_reduce, algorithm: direct, size: 1 MB}]\n"
CROSSED = (
    CLUSTER
    + WORKLOAD
    + """\
compare:
  size:
    - {name: 1 MB}
    - {name: 4 MB, workloads: [{name: c, size: 4 MB}]}
  spines:
    - {name: "1:1", cluster: {fabric: {spines: 8}}}
    - {name: "2:1", cluster: {fabric: {spines: 4}}}
    - {name: "4:1", cluster: {fabric: {spines: 2}}}
  policy:
    - {name: ecmp, side: one path, paths: {policy: ecmp}}
    - {name: spray, side: spraying, paths: {policy: spray}}
    - {name: ideal, paths: {policy: ideal}}
"""
)


def test_the_last_axis_varies_fastest(tmp_path):
    found = loaded(tmp_path, CROSSED)
    assert list(found.axes) == ["size", "spines", "policy"]
    assert found.axes["spines"] == ("1:1", "2:1", "4:1")
    assert found.sides == {"ecmp": "one path", "spray": "spraying"}
    labels = [label for label, _ in found.variants]
    assert len(labels) == 18
    assert labels[:4] == ["1 MB, 1:1, ecmp", "1 MB, 1:1, spray", "1 MB, 1:1, ideal", "1 MB, 2:1, ecmp"]
    scenario = dict(found.variants)["4 MB, 2:1, spray"]
    assert scenario.workloads[0].size_bytes == 4_000_000
    assert scenario.cluster.fabric.spines == 4
    assert scenario.paths.policy == "spray"


def test_a_list_has_no_axes(tmp_path):
    found = loaded(tmp_path, CLUSTER + WORKLOAD + "compare: [{name: a}, {name: b, paths: {policy: spray}}]\n")
    assert found.axes == found.sides == {}


def test_settings_and_small_reach_entries_by_name(tmp_path):
    settings = ["compare.spines.2:1.cluster.fabric.spines=3", "compare.size.4 MB.workloads.c.size=9 MB"]
    found = loaded(tmp_path, CROSSED, *settings)
    assert [s.cluster.fabric.spines for _, s in found.variants[::3]] == [8, 3, 2, 8, 3, 2]
    assert found.variants[-1][1].workloads[0].size_bytes == 9_000_000
    small = CROSSED + 'small: {compare: {spines: [{name: "4:1", cluster: {fabric: {spines: 1}}}]}}\n'
    assert dict(loaded(tmp_path, small, small=True).variants)["1 MB, 4:1, ecmp"].cluster.fabric.spines == 1
    assert "compare.policy has no item named 'spry'; did you mean 'spray'?" in refusal(
        tmp_path, CROSSED, "compare.policy.spry.paths.policy=ecmp"
    )


def test_an_error_names_its_line_and_its_variants(tmp_path):
    text = CROSSED.replace("{spines: 4}", "{spines: 0}")
    found = refusal(tmp_path, text)
    assert found.startswith("scenario.yaml:13: variant '1 MB, 2:1, ecmp', '1 MB, 2:1, spray'")
    assert "cluster.fabric.spines: '0' must be at least 1" in found


def test_of_many_variants_with_one_error_two_are_named():
    problem = Problem(Place("f.yaml", 3), "seed", "'x' is no whole number")
    some = [(name, [problem]) for name in "abcd"]
    assert str(merged_problems([*some, ("e", [])])[0]).startswith("f.yaml:3: variant 'a', 'b' and 2 more: seed: 'x'")
    assert str(merged_problems([*some[:3], ("e", [])])[0]).startswith("f.yaml:3: variant 'a', 'b', 'c': seed: 'x'")


@pytest.mark.parametrize(
    ("compare", "words"),
    [
        ("{Size: [{name: a}], policy: [{name: b}]}", "scenario.yaml:7: compare.Size: 'Size' is no name of an axis"),
        ("{size: [{name: a}], policy: spray}", "compare.policy: an axis is a list of variants; write for example"),
        ("{size: [{name: a}], policy: []}", "compare.policy: an axis is a list of variants"),
        ("{size: [{name: a}, {name: a}]}", "compare.size.a: two variants are named 'a'"),
        ("{size: [{paths: {policy: ecmp}}]}", "compare.size[0]: has no name"),
        ("{size: [{name: a, seeds: 3}]}", "compare.size.a.seeds: 'seeds' is the same for all variants"),
        ("{size: [{name: a, side: x}], policy: [{name: b}]}", "compare.size.a.side: only the entries of the last axis"),
        ("{size: [{name: a}], policy: [{name: b, side: 3}]}", "compare.policy.b.side: '3' is no side"),
        ("[{name: a, side: x}]", "compare.a.side: only the entries of the last axis"),
        ('{x: [{name: "a, b"}, {name: a}], y: [{name: c}, {name: "b, c"}]}', "two combinations are named 'a, b, c'"),
        (
            "{" + ", ".join(f"a{i}: [" + ", ".join(f"{{name: v{j}}}" for j in range(11)) + "]" for i in range(3)) + "}",
            "more than 1000 variants",
        ),
    ],
)
def test_bad_axes(tmp_path, compare, words):
    assert words in refusal(tmp_path, CLUSTER + WORKLOAD + f"compare: {compare}\n")
