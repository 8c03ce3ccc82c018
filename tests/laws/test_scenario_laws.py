"""Laws of scenario files: whatever is in the file, it loads or is refused; merging keeps its promises."""

import random
import string
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sim.scenario.document import Node, mapping_node, sequence_node
from sim.scenario.errors import Place, ScenarioError
from sim.scenario.load import load_scenario
from sim.scenario.merge import DECIDING_KEYS, merged

VALID = """\
name: mixed job
question: What does a neighbour cost?
seeds: 2
cluster:
  fabric:
    kind: leaf_spine
    leaves: 4
    spines: 2
    hosts_per_leaf: 2
    host_link: &link {rate: 400 Gbit/s, latency: 500 ns}
    spine_link: *link
    links:
      - {link: leaf0-spine0, rate: 100 Gbit/s}
  host: {accelerators: 4, accelerator: h100, nics: 2, nic: {message_overhead: 100 ns, segment: 1 MB}}
packet: {mtu: 4096 B, header: 64 B}
fluid: {tolerance: 0.1 %}
paths: {policy: multipath, subflows: 4, fairness: message}
cost: {efficiency: {compute: 0.5, memory: 80 %}, scale: {attention: 0.8}}
max_time: 10 s
workloads:
  - {kind: traffic, name: burst, pattern: incast, size_per_flow: 16 MB, fan_in: 7, jitter: 1 us}
  - kind: traffic
    name: load
    pattern: poisson
    load: 0.3
    duration: 1 ms
    sizes: {law: lognormal, mean: 100 kB, sigma: 1.5}
  - {kind: collective, name: reduce, operation: all_reduce, algorithm: halving_doubling,
     size: 64 MB, ranks: 0-15}
  - {kind: training, name: neighbour, compute: 2 ms, operation: all_to_all, size: 8 MB, ranks: [0, 4, 8]}
  - kind: serving
    name: chat
    model: llama-3.1-8b
    parallelism: {tensor: 2}
    replicas: 2
    arrivals: {kind: gamma, rate: 4 /s, burstiness: 0.5}
    lengths: {input: {law: fixed, tokens: 512}, output: {law: uniform, low: 10, high: 300}}
    num_requests: 100
compare:
  - {name: hashed, paths: {policy: ecmp}}
  - {name: ideal, paths: {policy: ideal}, workloads: [{name: burst, fan_in: 3}]}
small: {seeds: 1}
"""

WORDS = [
    "",
    "~",
    "0",
    "-1",
    "1",
    "3.5",
    "1e999",
    ".nan",
    ".inf",
    "true",
    "all",
    "400",
    "400 Gbit/s",
    "16 MB",
    "-16 MB",
    "5 /s",
    "2 us",
    "0 s",
    "[]",
    "{}",
    "[1, 2]",
    "{a: 1}",
    "*link",
    "*other",
    "&link x",
    "!!python/name:os.system",
    "!x 1",
    "<<",
    "<<: *link",
    "'",
    '"',
    "- ",
    ": ",
    "# ",
    "\t",
    "\x00",
    "\x85",
    "\ufeff",
    "\u2028",
    "é",
    "%",
    "@",
    "`",
    "|",
    ">",
    "---",
    "...",
    "? ",
    "kind",
    "policy",
    "ecmp",
    "spray",
    "reps",
    "packet",
    "1" * 400,
    "x" * 2000,
    "0-99999999",
    "9" * 25,
    "1e25 s",
    "leaf0-spine0",
]


def mutated(text: str, rng: random.Random) -> str:
    """The text after a few accidents: a word swapped, a line lost, moved or repeated, letters changed."""
    for _ in range(rng.randint(1, 4)):
        lines = text.split("\n")
        i = rng.randrange(len(lines))
        accident = rng.randrange(7)
        if accident == 0:
            parts = lines[i].replace(",", " , ").replace("}", " }").split(" ")
            parts[rng.randrange(len(parts))] = rng.choice(WORDS)
            lines[i] = " ".join(parts)
        elif accident == 1:
            del lines[i]
        elif accident == 2:
            lines.insert(rng.randrange(len(lines)), lines[i])
        elif accident == 3:
            lines[i] = " " * rng.randrange(8) + lines[i].lstrip()
        elif accident == 4:
            at = rng.randrange(len(lines[i]) + 1)
            lines[i] = lines[i][:at] + rng.choice(string.printable) + lines[i][at + rng.randrange(3) :]
        elif accident == 5:
            key, colon, _ = lines[i].partition(":")
            lines[i] = f"{key}{colon} {rng.choice(WORDS)}"
        else:
            at = rng.randrange(len(text) + 1)
            text = text[:at] + rng.choice(WORDS) + text[at + rng.randrange(20) :]
            continue
        text = "\n".join(lines) or "x"
    return text


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("scenarios") / "scenario.yaml"


def loads_or_refuses(path: Path, content: bytes, *overrides: str, small: bool = False) -> str | None:
    """None where the file loads, else the refusal; anything else that is raised is the failure looked for."""
    path.write_bytes(content)
    try:
        found = load_scenario(path, overrides, small=small)
    except ScenarioError as error:
        assert error.problems and all(p.sentence and str(p.place) for p in error.problems)
        words = str(error)
        assert "Traceback" not in words and "pydantic" not in words and "Input should" not in words
        return words
    assert found.variants and found.seeds
    return None


def test_the_file_that_is_broken_below_is_valid(path):
    assert loads_or_refuses(path, VALID.encode()) is None
    assert loads_or_refuses(path, VALID.encode(), small=True) is None


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32), small=st.booleans())
def test_broken_files_load_or_are_refused(path, seed, small):
    text = mutated(VALID, random.Random(seed))
    loads_or_refuses(path, text.encode("utf-8", "surrogatepass"), small=small)


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=300))
def test_any_bytes_are_refused(path, content):
    assert loads_or_refuses(path, content) is not None


KEYS = [
    "name",
    "seed",
    "cluster.fabric.leaves",
    "cluster.fabric.host_link",
    "workloads.burst.fan_in",
    "workloads.chat.model",
    "workloads",
    "compare.hashed.paths.policy",
    "compare",
    "paths",
    "cost.scale.attention",
    "zzz",
    "workloads.load.sizes.law",
]


@settings(max_examples=150, deadline=None)
@given(
    key=st.one_of(st.sampled_from(KEYS), st.text(max_size=20)),
    value=st.one_of(st.sampled_from(WORDS), st.text(max_size=20)),
)
def test_any_setting_works_or_is_refused(path, key, value):
    loads_or_refuses(path, VALID.encode(), f"{key}={value}")


@settings(max_examples=60, deadline=None)
@given(drop=st.integers(0, len(VALID.splitlines()) - 1))
def test_a_refusal_says_where(path, drop):
    """Without one line the file may still load; if not, every problem has a line of this file."""
    lines = VALID.splitlines()
    words = loads_or_refuses(path, "\n".join(lines[:drop] + lines[drop + 1 :]).encode())
    if words is not None:
        for line in words.splitlines():
            number = line.removeprefix(f"{path}:").partition(":")[0]
            assert number.isdigit() and 1 <= int(number) <= len(lines)


HERE = Place("x.yaml", 1)


def node(plain) -> Node:
    if isinstance(plain, dict):
        return mapping_node(
            {key: node(value) for key, value in plain.items()}, HERE, dict.fromkeys(plain, HERE)
        )
    if isinstance(plain, list):
        return sequence_node(tuple(node(item) for item in plain), HERE)
    return Node(plain, HERE)


scalars = st.one_of(st.none(), st.booleans(), st.integers(0, 3), st.sampled_from(["a", "b"]))
trees = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["name", "kind", "policy", "x", "y"]), inner, max_size=4),
    ),
    max_leaves=12,
)
mappings = st.dictionaries(st.sampled_from(["kind", "policy", "x", "y", "z"]), trees, max_size=4)


@given(base=mappings, over=mappings)
def test_merging_keeps_what_the_variant_says(base, over):
    """Every scalar that the variant writes stands in the result, and merging it once more changes nothing."""
    result = merged(node(base), node(over))
    for key, value in over.items():
        if not isinstance(value, dict | list):
            assert result.plain()[key] == value
    assert merged(result, node(over)).plain() == result.plain()


@given(tree=mappings)
def test_merging_nothing_changes_nothing(tree):
    assert merged(node(tree), node({})).plain() == tree
    assert merged(node({}), node(tree)).plain() == tree


@given(base=mappings, over=mappings)
def test_keys_of_the_base_survive_unless_it_is_replaced(base, over):
    result = merged(node(base), node(over)).plain()
    is_replaced = any(key in base and key in over and base[key] != over[key] for key in DECIDING_KEYS)
    assert set(result) == (set(over) if is_replaced else set(base) | set(over))
