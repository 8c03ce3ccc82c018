"""What is refused after loading and before running: what only building a scenario shows."""

import numpy as np
import pytest
from scenario_texts import CLUSTER, changed, loaded

from sim.scenario import build
from sim.scenario.errors import ScenarioError


def workload(**fields):
    """One workload on 8 hosts of 4 accelerators, on 4 leaves."""
    fields = {"kind": "traffic", "name": "a", **fields}
    written = ", ".join(f"{key}: {value}" for key, value in fields.items())
    return f"{CLUSTER}workloads:\n  - {{{written}}}\n"


def refusal(folder, text, *overrides):
    """What `check` refuses a scenario with that loads, without the folder's name."""
    found = loaded(folder, text, *overrides)
    with pytest.raises(ScenarioError) as caught:
        build.check(found)
    return str(caught.value).replace(f"{folder}/", "")


def graph_of(folder, text):
    """The messages of the only workload of a scenario."""
    scenario = loaded(folder, text).variants[0][1]
    topology = build.build_topology(scenario.cluster)
    rng = np.random.default_rng(1)
    return topology, build._traffic_graph(scenario, scenario.workloads[0], topology, rng)


@pytest.mark.parametrize("pattern", ["shift", "permutation"])
def test_patterns_on_rails_leave_the_host(tmp_path, pattern):
    """8 leaves for 4 rails: two groups of two hosts."""
    rails = ("leaves: 4", "leaves: 8, attach: rail", "nics: 1", "nics: 4")
    topology, graph = graph_of(tmp_path, changed(workload(pattern=pattern, size_per_flow="1 MB"), *rails))
    host, leaf = topology.host_of_accelerator, topology.leaf_of_accelerator
    assert np.all(host[graph.source] // 2 != host[graph.destination] // 2)
    if pattern == "shift":
        assert np.array_equal(leaf[graph.destination], (leaf[graph.source] + 4) % 8)
