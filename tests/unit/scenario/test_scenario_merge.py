"""Merging, on small trees: each test says what is merged over what, and what comes out."""

import pytest

from sim.scenario.document import parse_document
from sim.scenario.errors import ScenarioError
from sim.scenario.merge import merged, with_setting


def tree(text, source="base"):
    return parse_document(text, source)


def over(base, variant):
    return merged(tree(base), tree(variant, "variant")).plain()


@pytest.mark.parametrize(
    ("base", "variant", "result"),
    [
        ("a: {x: 1, y: 2}", "a: {y: 3}", {"a": {"x": 1, "y": 3}}),
        ("a: {x: {p: 1}}", "a: {x: {q: 2}, z: 1}", {"a": {"x": {"p": 1, "q": 2}, "z": 1}}),
        ("paths: {policy: multipath, subflows: 8}", "paths: {policy: ecmp}", {"paths": {"policy": "ecmp"}}),
        (
            "paths: {policy: ecmp, fairness: message}",
            "paths: {policy: ecmp}",
            {"paths": {"policy": "ecmp", "fairness": "message"}},
        ),
        (
            "paths: {fairness: message}",
            "paths: {policy: spray}",
            {"paths": {"fairness": "message", "policy": "spray"}},
        ),
        ("f: {kind: a, n: 1}", "f: {kind: b, m: 2}", {"f": {"kind": "b", "m": 2}}),
        ("l: [1, 2]", "l: [3]", {"l": [3]}),
        (
            "l: [{name: a, x: 1}, {name: b}]",
            "l: [{name: b, y: 2}]",
            {"l": [{"name": "a", "x": 1}, {"name": "b", "y": 2}]},
        ),
        ("l: [{name: a}]", "l: [{name: c, y: 2}]", {"l": [{"name": "a"}, {"name": "c", "y": 2}]}),
        ("l: [{name: a, kind: p, x: 1}]", "l: [{name: a, kind: q}]", {"l": [{"name": "a", "kind": "q"}]}),
        (
            "w: {kind: traffic, pattern: incast, ranks: 8, fan_in: 3, size_per_flow: 1 B, fan_inn: 2}",
            "w: {pattern: all_to_all}",
            {"w": {"kind": "traffic", "pattern": "all_to_all", "ranks": 8, "size_per_flow": "1 B", "fan_inn": 2}},
        ),
        (
            "w: {pattern: shift, leaves_by: 2, repeat: 3, size_per_flow: 1 B}",
            "w: {pattern: matrix, file: m.csv}",
            {"w": {"pattern": "matrix", "repeat": 3, "file": "m.csv"}},
        ),
        ("w: {pattern: shift, leaves_by: 2}", "w: {pattern: shif}", {"w": {"pattern": "shif", "leaves_by": 2}}),
        ("w: {pattern: shift, leaves_by: 2}", "w: {pattern: [a]}", {"w": {"pattern": ["a"], "leaves_by": 2}}),
        ("l: [{link: a}]", "l: [{link: b}]", {"l": [{"link": "b"}]}),
        ("l: [{name: a}, {x: 1}]", "l: [{name: b}]", {"l": [{"name": "b"}]}),
        ("l: [{name: a}]", "l: []", {"l": []}),
        ("a: {x: 1}", "a: 3", {"a": 3}),
        ("a: {x: 1}", "a: ~", {"a": None}),
    ],
)
def test_rules(base, variant, result):
    assert over(base, variant) == result


def test_each_part_keeps_its_place():
    root = merged(tree("a:\n  x: 1\n  y: 2\n"), tree("\n\n\na: {y: 3}\n", "variant"))
    inner = root.child("a")
    assert str(root.key_places["a"]) == "base:1"
    assert [str(inner.child(key).place) for key in "xy"] == ["base:2", "variant:4"]
    assert str(inner.key_places["y"]) == "variant:4"


def test_merging_changes_neither_side():
    base, variant = tree("a: {x: 1}"), tree("a: {y: 2}")
    merged(base, variant)
    assert base.plain() == {"a": {"x": 1}} and variant.plain() == {"a": {"y": 2}}


BASE = """\
seed: 1
paths: {policy: multipath, subflows: 8}
workloads:
  - {name: shift, kind: traffic, size: 16 MB}
  - {name: chat, kind: serving, arrivals: {kind: poisson, rate: 4 /s}}
links: [{link: a}]
compare:
  - {name: "1.5 to 1", cluster: {spines: 4}}
"""


@pytest.mark.parametrize(
    ("setting", "path", "value"),
    [
        ("seed=7", ["seed"], 7),
        ("paths.policy=ecmp", ["paths"], {"policy": "ecmp"}),
        ("paths.subflows=2", ["paths"], {"policy": "multipath", "subflows": 2}),
        ("workloads.shift.size=1 MB", ["workloads", 0, "size"], "1 MB"),
        (
            "workloads.chat.arrivals.rate=9 /s",
            ["workloads", 1, "arrivals"],
            {"kind": "poisson", "rate": "9 /s"},
        ),
        (
            "workloads.chat.arrivals={kind: constant, rate: 1 /s}",
            ["workloads", 1, "arrivals", "kind"],
            "constant",
        ),
        ("cost.scale.attention=0.8", ["cost"], {"scale": {"attention": 0.8}}),
        ("compare.1.5 to 1.cluster.spines=2", ["compare", 0, "cluster"], {"spines": 2}),
        (
            "compare.1.5 to 1.workloads.shift.size=2 MB",
            ["compare", 0, "workloads"],
            [{"name": "shift", "size": "2 MB"}],
        ),
        ("links=[{link: b}]", ["links"], [{"link": "b"}]),
        ("seed=", ["seed"], None),
        ("name='a=b'", ["name"], "a=b"),
    ],
)
def test_settings(setting, path, value):
    found = with_setting(tree(BASE), setting).plain()
    for step in path:
        found = found[step]
    assert found == value


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("seed", "--set seed: is not an assignment; write for example --set paths.policy=ecmp"),
        ("=3", "is not an assignment"),
        ("a..b=3", "is not an assignment"),
        ("seed.x=3", "--set seed.x: seed is '1', which has no parts; set seed itself"),
        (
            "workloads.shif.size=1",
            "--set workloads.shif.size: workloads has no item named 'shif'; did you mean 'shift'?",
        ),
        ("workloads.shift=3", "addresses a whole item; set one of its keys"),
        ("workloads.shift.name=x", "a name cannot be set"),
        ("links.0.rate=3", "the items of links have no names; set the whole list: --set 'links=[…]'"),
        ("small.seed=3", "`small` is merged before --set"),
        ("seed=[1", "--set seed: is not YAML"),
        ("seed=!!int 3", "--set seed: YAML tags are not read"),
        ("seed=.inf", "--set seed: '.inf' is not a finite number"),
        ("compare.spray.seed=3", "compare has no item named 'spray'; choose one of 1.5 to 1"),
    ],
)
def test_settings_that_are_refused(setting, words):
    with pytest.raises(ScenarioError) as caught:
        with_setting(tree(BASE), setting)
    assert words in str(caught.value)
