"""A valid scenario as text, and ways to break it."""

from pathlib import Path

import pytest

from sim.scenario.errors import ScenarioError
from sim.scenario.load import LoadedScenario, load_scenario

SHIFT = """\
name: shift on a leaf-spine
question: Does a one-to-one shift between racks need packet spraying?
seed: 1
cluster:
  fabric:
    kind: leaf_spine
    leaves: 8
    hosts_per_leaf: 8
    spines: 8
    host_link:  {rate: 400 Gbit/s, latency: 500 ns}
    spine_link: {rate: 400 Gbit/s, latency: 500 ns}
  host: {accelerators: 1, accelerator: h200}
fidelity: fluid
paths: {policy: ecmp}
workloads:
  - {kind: traffic, name: shift, pattern: shift, size_per_flow: 16 MB}
compare:
  - {name: single path, paths: {policy: ecmp}}
  - {name: one assigned path, paths: {policy: ethereal}}
  - {name: spray, paths: {policy: spray}}
small:
  cluster: {fabric: {leaves: 2}}
"""

CLUSTER = """\
name: x
cluster:
  fabric: {kind: leaf_spine, leaves: 4, spines: 2, hosts_per_leaf: 2,
           host_link: {rate: 400 Gbit/s, latency: 500 ns}, spine_link: {rate: 400 Gbit/s, latency: 500 ns}}
  host: {accelerators: 4, nics: 1}
"""
"""8 hosts of 4 accelerators on 4 leaves; workloads are to follow."""

SERVING = """\
workloads:
  - kind: serving
    name: chat
    model: llama-3.1-8b
    arrivals: {kind: poisson, rate: 4 /s}
    lengths: {input: {law: fixed, tokens: 512}, output: {law: lognormal, mean: 200, sigma: 1.0}}
    num_requests: 10
"""


def loaded(folder: Path, text: str, *overrides: str, **options) -> LoadedScenario:
    path = folder / "scenario.yaml"
    path.write_text(text, encoding="utf-8")
    return load_scenario(path, overrides, **options)


def refusal(folder: Path, text: str, *overrides: str, **options) -> str:
    """The refusal's text, without the folder, which differs from run to run."""
    with pytest.raises(ScenarioError) as caught:
        loaded(folder, text, *overrides, **options)
    return str(caught.value).replace(f"{folder}/", "")


def changed(text: str, *pairs: str) -> str:
    """The text with each old part replaced by the new one that follows it; each old part must be there."""
    for old, new in zip(pairs[::2], pairs[1::2], strict=True):
        assert old in text, old
        text = text.replace(old, new, 1)
    return text
