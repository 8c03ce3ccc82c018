"""Adapters of a mixture of experts: read, spread, in memory, and what tokens touch after rerouting."""

from __future__ import annotations

import json

import numpy as np
import pytest

from models.adapters import Adapter, adapter_bytes, most_tuned, read_esft, spread
from models.architecture import ARCHITECTURES
from models.experts import Popularity, expected_distinct
from models.hardware import ACCELERATORS
from models.memory import plan_memory
from models.touched import adapter_mix, expected_touched, most_touched

LITE = ARCHITECTURES["deepseek-v2-lite"]
MIB = 2**20


def published(*names: str) -> list[Adapter]:
    """Adapters by their most and mean of tuned experts per layer."""
    counts = {"gate-math": (12, 7.04), "gate-intent": (12, 9.50), "token-math": (9, 6.12)}
    return [spread(name, *counts[name], LITE, np.random.default_rng(1)) for name in names]


def test_an_adapter_is_spread_as_its_most_and_mean_say():
    (adapter,) = published("gate-math")
    counts = [len(ids) for ids in adapter.tuned]
    assert (counts[0], max(counts), sum(counts)) == (12, 12, round(7.04 * 26))
    assert max(counts[1:]) - min(counts[1:]) == 1
    adapter.check(LITE)


@pytest.mark.parametrize(("most", "mean"), [(0, 0.0), (65, 65), (4, 4.5), (20, 0.5)])
def test_no_such_adapter(most, mean):
    with pytest.raises(ValueError, match=f"no 26 layers of 64 experts have {most} tuned at most and {mean:g} in the"):
        spread("odd", most, mean, LITE, np.random.default_rng(1))


@pytest.mark.parametrize(
    ("num_adapters", "pool_gib", "padded_gib"), [(1, 32.1, 34.0), (2, 36.2, 39.0), (3, 38.7, 44.3)]
)
def test_weights_that_a_deployment_plans_for(num_adapters, pool_gib, padded_gib):
    """As published, to 1 %; the cache has what is left."""
    adapters = published("gate-math", "gate-intent", "token-math")[:num_adapters]
    for deployment, gib in (("virtual", pool_gib), ("padded", padded_gib)):
        plan = plan_memory(
            LITE, ACCELERATORS["h100"],
            adapters=lambda p, w, deployment=deployment: adapter_bytes(LITE, adapters, deployment, 12, w, p.tensor),
        )  # fmt: skip
        alone = plan_memory(LITE, ACCELERATORS["h100"])
        assert (plan.weight_bytes + plan.adapter_bytes) / 2**30 == pytest.approx(gib, rel=0.01)
        taken = (alone.num_kv_blocks - plan.num_kv_blocks) * plan.kv_bytes_per_block
        assert abs(taken - plan.adapter_bytes) < plan.kv_bytes_per_block


def test_bytes_by_hand():
    """One expert in each layer takes 5.5 and 2.75 pages; each begins where the base's 64 end, on a page of its own, so
    6 and 3 are mapped. Padded to 2 slots: 2 · 16.5 MiB."""
    adapter = Adapter("one", ((7,),) * 26)
    assert adapter_bytes(LITE, [adapter], "virtual", 2) == 26 * (6 + 3) * 2 * MIB
    assert adapter_bytes(LITE, [adapter], "padded", 2) == 26 * 2 * 33 * MIB // 2
    assert adapter_bytes(LITE, [adapter], "padded", 2, tensor=2) == 26 * 33 * MIB // 2
    with pytest.raises(ValueError, match="tunes 3 experts in one layer, above most_tuned, 2"):
        adapter_bytes(LITE, [Adapter("three", ((1, 2, 3),) * 26)], "virtual", 2)


def test_what_tokens_touch_after_rerouting():
    """The adapter has experts 3 and 14 of its own. With every expert equally popular (6 of 64), its tokens touch what
    the base's would; those of both, many enough, all 64 and the two; and 8 tokens of the base and 8 of the adapter the
    62 in common as 16 do, and 3 and 14 and their twins as 8 do."""
    mix = adapter_mix(Popularity.uniform(64, 6), [Adapter("two", ((14, 3),) * 26)], max_tokens=10_000)
    assert most_touched(mix) == 66
    miss = 1 - 6 / 64
    for tokens, expected in [
        ((1, 0), 6), ((0, 1), 6), ((9, 0), 64 * (1 - miss**9)), ((0, 9), 64 * (1 - miss**9)),
        ((5_000, 5_000), 66), ((8, 8), 62 * (1 - miss**16) + 4 * (1 - miss**8)), ((0, 0), 0),
    ]:  # fmt: skip
        assert expected_touched(mix, np.array(tokens)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "is not of the form"),
        ('{"experts": {"1": ["a"]}}', "is not of the form"),
        ('{"experts": {"0": [1]}}', "layer 0 has no experts in deepseek-v2-lite, whose layers 1 to 26 have"),
        ('{"experts": {"1": [64]}}', r"tunes experts \[64\] of layer 1; deepseek-v2-lite has 0 to 63"),
        ('{"experts": {"1": [3, 3]}}', "each may stand there once"),
    ],
)
def test_files_that_are_none(tmp_path, text, message):
    path = tmp_path / "adapter.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_esft(path, "odd", LITE)


def test_layers_that_a_file_leaves_out_are_not_tuned(tmp_path):
    path = tmp_path / "adapter.json"
    path.write_text(json.dumps({"experts": {"26": [3, 1]}}))
    assert read_esft(path, "last", LITE).tuned == ((),) * 25 + ((3, 1),)


@pytest.mark.parametrize(
    ("task", "num_tuned", "fewest", "most"),
    [("intent", 124, 4, 6), ("law", 153, 3, 9), ("summary", 128, 2, 8), ("translation", 83, 2, 4)],
)
def test_real_esft_adapters(shared_data, task, num_tuned, fewest, most):
    """Tuned experts in all, and per layer, as counted in the published files."""
    adapter = read_esft(shared_data / "esft/expert_configs" / f"{task}.json", task, LITE)
    counts = [len(ids) for ids in adapter.tuned]
    assert (sum(counts), min(counts), max(counts), most_tuned([adapter])) == (num_tuned, fewest, most, most)
    gib = adapter_bytes(LITE, [adapter], "virtual", most) / 2**30
    assert num_tuned * 16.5 / 1024 <= gib <= num_tuned * 16.5 / 1024 + 26 * 2 * 2 / 1024


TASKS = ("intent", "law", "summary", "translation")


def test_a_mixed_batch_touches_more_experts_once_rerouted(shared_data):
    """ESFT's four tasks, each token of one at random: distinct experts per layer of a batch, before and after, and the
    share of pairs that are rerouted. Of three tasks router decisions were recorded, of all four the scores; both say
    the same. Published: 32.7 and 36.1 at a batch of 8, 57.8 and 71.6 at 32, 64 and 82.7 at 256, 22 %."""
    esft, experts = shared_data / "esft", LITE.experts
    adapters = [read_esft(esft / "expert_configs" / f"{task}.json", task, LITE) for task in TASKS]
    scores = [Popularity.read(next((esft / "expert_scores" / task).glob("*.json")), experts) for task in TASKS]
    for task, of_scores in zip(TASKS, scores, strict=True):
        if task != "summary":
            recorded = Popularity.read(esft / f"routing_{task}.npz", experts)
            assert of_scores.inclusion == pytest.approx(recorded.inclusion, abs=6e-4)
    mean = Popularity(np.mean([each.inclusion for each in scores], axis=0), 6)
    sizes = np.array([8, 32, 256])
    assert expected_distinct(mean, sizes).mean(axis=0) == pytest.approx([32.7, 57.8, 64.0], rel=0.01)
    mix = adapter_mix(mean, adapters, 256, scores)
    rng = np.random.default_rng(1)
    drawn = [rng.multinomial(size, [0, *[0.25] * 4], 500) for size in sizes]
    found = [np.mean([expected_touched(mix, tokens) for tokens in batches]) for batches in drawn]
    assert found == pytest.approx([36.1, 71.6, 82.7], rel=0.01)
    of_own = [
        each.inclusion[layer, list(ids)].sum() / 6
        for adapter, each in zip(adapters, scores, strict=True) for layer, ids in enumerate(adapter.tuned)
    ]  # fmt: skip
    assert np.mean(of_own) == pytest.approx(0.22, abs=0.005)


def test_an_adapter_s_tokens_choose_in_their_own_way():
    """Of two experts, one each: the base's tokens take the first, the adapter's the second, which it has tuned."""
    base, own = (Popularity(np.array([row]), 1) for row in ([1.0, 0.0], [0.0, 1.0]))
    adapter = Adapter("a", ((1,),))
    both = np.array([3, 3])
    assert expected_touched(adapter_mix(base, [adapter], 8, [own]), both) == pytest.approx(2)
    assert expected_touched(adapter_mix(base, [adapter], 8), both) == pytest.approx(1)
