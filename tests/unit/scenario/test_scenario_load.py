"""From a file to variants: what comes out, and what a user reads when something is wrong."""

import json
import pickle

import pytest
from scenario_texts import CLUSTER, SERVING, SHIFT, changed, loaded, refusal

from sim.scenario.load import json_schema, load_scenario


def test_the_design_scenario(tmp_path):
    found = loaded(tmp_path, SHIFT)
    assert found.name == "shift on a leaf-spine"
    assert found.question.startswith("Does a one-to-one shift")
    assert found.seeds == [1]
    assert found.source_text == SHIFT
    assert [label for label, _ in found.variants] == ["single path", "one assigned path", "spray"]
    assert [scenario.paths.policy for _, scenario in found.variants] == ["ecmp", "ethereal", "spray"]
    first = found.variants[0][1]
    assert first.cluster.num_hosts == first.cluster.num_accelerators == 64
    assert first.cluster.fabric.host_link.rate_bytes_per_s == 50e9
    assert first.cluster.fabric.spine_link.latency_s == 500e-9
    assert first.workloads[0].size_per_flow_bytes == 16_000_000
    assert (first.packet.mtu_bytes, first.packet.header_bytes) == (4096, 64)


def test_without_compare_there_is_one_variant(tmp_path):
    assert [label for label, _ in loaded(tmp_path, CLUSTER + SERVING).variants] == ["run"]


def test_seeds(tmp_path):
    text = changed(SHIFT, "seed: 1", "seed: 5\nseeds: 3")
    assert loaded(tmp_path, text).seeds == [5, 6, 7]
    assert loaded(tmp_path, text, seed=40).seeds == [40, 41, 42]
    assert loaded(tmp_path, text, seeds=2).seeds == [5, 6]
    assert loaded(tmp_path, text, "seed=9").seeds == [9, 10, 11]
    assert "--seeds: '0' must be at least 1" in refusal(tmp_path, text, seeds=0)


def test_small_comes_before_set(tmp_path):
    def leaves(*overrides, small):
        return loaded(tmp_path, SHIFT, *overrides, small=small).variants[0][1].cluster.fabric.leaves

    assert leaves(small=False) == 8
    assert leaves(small=True) == 2
    assert leaves("cluster.fabric.leaves=4", small=True) == 4
    without = SHIFT.partition("small:")[0]
    assert "has no `small:` block" in refusal(tmp_path, without, small=True)
    assert "scenario.yaml:21: small is not a mapping" in refusal(tmp_path, without + "small: 3\n")


def test_small_hides_no_bad_value(tmp_path):
    """What `small` replaces must be valid too, in the scenario and in each variant."""
    text = changed(SHIFT, "leaves: 8", "leaves: eight")
    assert refusal(tmp_path, text, small=True) == refusal(tmp_path, text)
    text = changed(SHIFT, "paths: {policy: spray}", "cluster: {fabric: {leaves: 0}}")
    text = text.replace("fabric: {leaves: 2}}\n", "fabric: {leaves: 2}}\n  compare: [{name: spray, cluster: {fabric: "
                        "{leaves: 4}}}]\n")  # fmt: skip
    found = refusal(tmp_path, text, small=True)
    assert found == "scenario.yaml:20: variant 'spray': cluster.fabric.leaves: '0' must be at least 1"


def test_set_comes_before_compare(tmp_path):
    """A variant has the last word, so a setting that every variant overrides is refused, not ignored."""
    found = loaded(tmp_path, SHIFT, "paths.fairness=message")
    assert [scenario.paths.fairness for _, scenario in found.variants] == [
        "message",
        "queue_pair",
        "queue_pair",
    ]
    assert "--set paths.policy: has no effect" in refusal(tmp_path, SHIFT, "paths.policy=spray")
    assert "--set seed: has no effect" in refusal(tmp_path, SHIFT, "seed=3", seed=4)
    assert loaded(tmp_path, SHIFT, "compare.spray.paths.policy=ecmp").variants[2][1].paths.policy == "ecmp"


def test_every_error_with_its_line(tmp_path):
    text = changed(
        SHIFT,
        "seed: 1",
        "sed: 1",
        "    spines: 8\n",
        "",
        "hosts_per_leaf: 8",
        "hosts_per_leaf: eight",
        "{rate: 400 Gbit/s, latency: 500 ns}",
        "{rate: 400, latency: 500 ns}",
        "accelerator: h200",
        "accelerator: h20",
        "pattern: shift",
        "pattern: shft",
    )
    assert refusal(tmp_path, text).splitlines() == [
        "scenario.yaml:3: sed: unknown key 'sed'; did you mean 'seed'?",
        "scenario.yaml:5: cluster.fabric.spines: is missing; write for example `spines: 8`",
        "scenario.yaml:8: cluster.fabric.hosts_per_leaf: 'eight' is no whole number; "
        "write one without unit or quotes",
        "scenario.yaml:9: cluster.fabric.host_link.rate: '400' has no unit; write for example '400 Gbit/s'",
        "scenario.yaml:11: cluster.host.accelerator: unknown accelerator 'h20'; did you mean 'h200'?",
        "scenario.yaml:15: workloads.shift.pattern: unknown pattern 'shft'; did you mean 'shift'?",
    ]


def test_errors_of_one_variant_name_it_and_its_line(tmp_path):
    text = changed(
        SHIFT, "{name: spray, paths: {policy: spray}}", "{name: spray, paths: {policy: spray, window: 3 ns}}"
    )
    assert refusal(tmp_path, text) == (
        "scenario.yaml:20: variant 'spray': paths.window: unknown key 'window'; "
        "choose one of fairness, convergence, policy; 'window' is a key of ethereal, wrap_around"
    )
    text = changed(
        SHIFT, "{name: spray, paths: {policy: spray}}", "{name: spray, cluster: {fabric: {leaves: 1}}}"
    )
    assert (
        "scenario.yaml:16: variant 'spray': workloads.shift.leaves_by: a shift by 1 among 1 leaves"
        in refusal(tmp_path, text)
    )


def test_a_variant_with_another_pattern_keeps_what_both_have(tmp_path):
    """fan_in means nothing to an all-to-all and is dropped; sizes and ranks stay, and so does a setting."""
    text = changed(
        SHIFT, "pattern: shift, size_per_flow", "pattern: incast, fan_in: 7, ranks: 16, size_per_flow",
        "{name: spray, paths: {policy: spray}}", "{name: all, workloads: [{name: shift, pattern: all_to_all}]}",
    )  # fmt: skip
    first, *_, last = (scenario.workloads[0] for _, scenario in loaded(tmp_path, text).variants)
    assert (first.pattern, first.fan_in, last.pattern) == ("incast", 7, "all_to_all")
    assert last.size_per_flow_bytes == 16_000_000 and last.ranks == tuple(range(16))
    assert loaded(tmp_path, SHIFT, "workloads.shift.pattern=incast").variants[0][1].workloads[0].pattern == "incast"


def test_errors_of_settings_stand_in_for_the_line(tmp_path):
    assert refusal(
        tmp_path, SHIFT, "cluster.fabric.spine_link.rate=400", "workloads.shift.size_per_flow=16 mb"
    ) == (
        "--set cluster.fabric.spine_link.rate: '400' has no unit; write for example '400 Gbit/s'\n"
        "--set workloads.shift.size_per_flow: '16 mb' has the unknown unit 'mb'; did you mean 'MB'?"
    )
    assert "--set zzz: unknown key 'zzz'" in refusal(tmp_path, SHIFT, "zzz=1")
    assert "--seed: '-3' must be at least 0" in refusal(tmp_path, SHIFT, seed=-3)
    text = refusal(tmp_path, SHIFT, "cluster.fabric.links=[{link: leaf0-spine9, rate: 1 Gbit/s}]")
    assert text.startswith("--set cluster.fabric.links: cluster.fabric.links[0].link: 'leaf0-spine9'")


@pytest.mark.parametrize(
    ("compare", "words"),
    [
        ("compare: {spray: {}}", "scenario.yaml:7: compare: compare is a list of variants"),
        ("compare: []", "compare is a list of variants"),
        ("compare:", "scenario.yaml:7: compare: compare is a list of variants; write for example"),
        ("compare: ~", "or leave it out to run the scenario alone"),
        ("compare: [spray]", "compare[0]: 'spray' is not a mapping"),
        ("compare: [{paths: {policy: spray}}]", "compare[0]: has no name"),
        ("compare: [{name: 3}]", "compare[0].name: '3' is not text; put it in quotes"),
        ("compare: [{name: ''}]", "one line of at most 120 characters"),
        ("compare:\n - {name: a}\n - {name: a}", "scenario.yaml:9: compare.a: two variants are named 'a'"),
        ("compare: [{name: a, seed: 3}]", "compare.a.seed: 'seed' is the same for all variants"),
        ("compare: [" + ",".join(f"{{name: v{i}}}" for i in range(1001)) + "]", "more than 1000 variants"),
    ],
)
def test_bad_variants(tmp_path, compare, words):
    workloads = "workloads: [{kind: traffic, name: t, pattern: all_to_all, size_per_flow: 1 MB}]\n"
    assert words in refusal(tmp_path, CLUSTER + workloads + compare)


def test_errors_found_later_have_lines_too(tmp_path):
    found = loaded(tmp_path, SHIFT)
    error = found.error("spray", ("workloads", 0, "size_per_flow"), "does not fit")
    assert str(error).endswith(
        "scenario.yaml:16: variant 'spray': workloads.shift.size_per_flow: does not fit"
    )
    error = found.error("spray", ("workloads", 0, "kv", "num_blocks"), "does not fit")
    assert str(error).endswith("scenario.yaml:16: variant 'spray': workloads.shift.num_blocks: does not fit")


def test_files_are_found_beside_the_scenario_then_in_the_working_directory(tmp_path, monkeypatch):
    beside, here = tmp_path / "beside", tmp_path / "here"
    beside.mkdir()
    here.mkdir()
    monkeypatch.chdir(here)
    text = CLUSTER + "workloads: [{kind: traffic, name: m, pattern: matrix, file: m.csv}]\n"
    assert "there is no file 'm.csv' neither in" in refusal(beside, text)
    (here / "m.csv").write_text("0,1\n")
    assert loaded(beside, text).variants[0][1].workloads[0].file.resolve() == here / "m.csv"
    (beside / "m.csv").write_text("0,1\n")
    assert loaded(beside, text).variants[0][1].workloads[0].file == beside / "m.csv"
    assert "is neither .csv nor .cm" in refusal(beside, text.replace("m.csv", "scenario.yaml"))


def test_what_is_no_regular_file_is_said_to_be_none(tmp_path):
    text = CLUSTER + "workloads: [{kind: traffic, name: m, pattern: matrix, file: m.csv}]\n"
    assert "workloads.m.file: '.' is a folder, no regular file; give the path" in refusal(
        tmp_path, text, "workloads.m.file=."
    )
    assert "'/dev/zero' is no regular file" in refusal(tmp_path, text, "workloads.m.file=/dev/zero")
    assert "'/dev/zero' is no regular file; give the path of a Hugging Face config.json" in refusal(
        tmp_path, CLUSTER + SERVING, "workloads.chat.model=/dev/zero"
    )


@pytest.mark.parametrize("content", [b"\x1f\x8b\x08" * 1000, "0,1\n".encode("utf-16")])
def test_a_binary_file_is_refused_with_what_to_do(tmp_path, content):
    (tmp_path / "r.csv").write_bytes(content)
    found = refusal(tmp_path, CLUSTER + SERVING, "workloads.chat.trace={file: r.csv}")
    assert found.startswith("--set workloads.chat.trace: workloads.chat.trace.file: 'r.csv' is a binary file; unpack")


def test_a_text_file_may_be_long_and_hold_any_character(tmp_path):
    """Two bytes each: the first 65536 bytes end within a character."""
    (tmp_path / "r.csv").write_text("0" + "µ" * 70_000, encoding="utf-8")
    loaded(tmp_path, CLUSTER + SERVING, "workloads.chat.trace={file: r.csv}")


def test_many_problems_are_counted_not_printed(tmp_path):
    text = changed(SHIFT, "seed: 1\n", "".join(f"key{i}: 1\n" for i in range(50)))
    lines = refusal(tmp_path, text).splitlines()
    assert len(lines) == 21 and lines[-1] == "… and 30 more problems"


def test_a_loaded_scenario_travels_to_worker_processes(tmp_path):
    found = loaded(tmp_path, SHIFT)
    assert pickle.loads(pickle.dumps(found)).variants == found.variants


def test_loading_twice_gives_equal_scenarios(tmp_path):
    path = tmp_path / "s.yaml"
    path.write_text(SHIFT)
    assert load_scenario(path).variants == load_scenario(str(path)).variants


def test_json_schema():
    schema = json_schema()
    text = json.dumps(schema)
    assert "400 Gbit/s" in text and "leaf_spine" in text and "spray_round_robin" in text
    packet = schema["$defs"]["Packet"]["properties"]
    assert packet["mtu"]["default"] == "4096 B" and packet["mtu"]["type"] == "string"
    assert {"compare", "small", "workloads", "cluster"} <= schema["properties"].keys()
    described = schema["$defs"]["LeafSpine"]["properties"]["lanes"]
    assert described["description"].startswith("parallel links")
