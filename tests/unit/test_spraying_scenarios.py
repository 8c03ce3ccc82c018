"""The names in the spraying study are true, small as well as whole."""

from pathlib import Path

import pytest

from sim.scenario.load import load_scenario

FOLDER = Path(__file__).parents[2] / "scenarios" / "spraying"


def variants_of(file, is_small):
    loaded = load_scenario(FOLDER / file, [], is_small, None, None)
    return {label: scenario.model_dump() for label, scenario in loaded.variants}


@pytest.mark.parametrize("is_small", [False, True])
def test_oversubscription_is_hosts_over_spines(is_small):
    for label, scenario in variants_of("oversubscription.yaml", is_small).items():
        fabric = scenario["cluster"]["fabric"]
        assert label.split(", ")[1] == f"{fabric['hosts_per_leaf'] // fabric['spines']}:1"


@pytest.mark.parametrize("is_small", [False, True])
def test_a_large_collective_has_messages_of_one_megabyte(is_small):
    for label, scenario in variants_of("large.yaml", is_small).items():
        fabric = scenario["cluster"]["fabric"]
        num_ranks = fabric["leaves"] * fabric["hosts_per_leaf"]
        assert label.split(", ")[1] == "1 MB a message"
        assert scenario["workloads"][0]["size_bytes"] == num_ranks * 1_000_000
