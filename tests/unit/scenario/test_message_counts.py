"""Message counts against the graphs themselves, and what is refused for its size."""

import numpy as np
import pytest
from scenario_texts import CLUSTER, loaded
from scenario_texts import refusal as load_refusal

from sim.collectives.algorithms import ALGORITHMS
from sim.collectives.hierarchical import HIERARCHICAL
from sim.scenario.message_counts import MOST_MESSAGES, collective_messages
from sim.scenario.traffic import Collective

FORMS = [(o, a, False) for o, a in ALGORITHMS] + [(o, a, True) for o, a in ALGORITHMS if o in HIERARCHICAL]


LAYOUTS = [(1, 1), (1, 4), (2, 1), (4, 1), (4, 3), (8, 2)]


def is_possible(algorithm, hierarchical, num_hosts, local):
    """Halving-doubling needs a power of two of ranks; hierarchical, of hosts, which all of these are."""
    n = num_hosts * local
    return algorithm != "halving_doubling" or hierarchical or n & (n - 1) == 0


CASES = [(*form, *layout) for form in FORMS for layout in LAYOUTS if is_possible(*form[1:], *layout)]


@pytest.mark.parametrize(("operation", "algorithm", "hierarchical", "num_hosts", "local"), CASES)
@pytest.mark.parametrize("size", [1, 2, 1001, 2_000_000])
def test_counts_are_those_of_the_graph(operation, algorithm, hierarchical, num_hosts, local, size):
    n = num_hosts * local
    for chunk in (None, 100_000) if ALGORITHMS[operation, algorithm].takes_chunk else (None,):
        fields = {"kind": "collective", "name": "c", "operation": operation, "algorithm": algorithm}
        fields |= {"size": f"{size} B", "hierarchical": hierarchical}
        workload = Collective.model_validate(fields if chunk is None else {**fields, "chunk": f"{chunk} B"})
        plan = ALGORITHMS[operation, algorithm].plan(
            np.arange(n), size, chunk_bytes=chunk, hierarchical=hierarchical,
            host_of_accelerator=np.repeat(np.arange(num_hosts), local),
        )  # fmt: skip
        assert collective_messages(workload, n, num_hosts) == plan.num_messages


def workload(**fields):
    """One workload on 8 hosts of 4 accelerators."""
    written = ", ".join(f"{key}: {value}" for key, value in {"name": "a", **fields}.items())
    return f"{CLUSTER}workloads:\n  - {{{written}}}\n"


def collective(**fields):
    return workload(kind="collective", **fields)


def traffic(**fields):
    return workload(kind="traffic", **{"pattern": "all_to_all", "size_per_flow": "1 MB", **fields})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (traffic(size_per_flow="1e30 B"), "scenario.yaml:7: workloads.a.size_per_flow: '1e30 B' is more than"),
        (collective(operation="all_reduce", size="1000000000 TB"), "workloads.a.size: '1000000000 TB' is more than"),
        (traffic(size_per_flow="9000 TB"), "workloads.a.size_per_flow: it moves up to 8928000 TB in all"),
        (traffic(size_per_flow="1 TB", repeat=1_000_000), "make it smaller, or repeat it less"),
        (collective(operation="all_reduce", size="1 TB", repeat=100_000), "workloads.a.size: it moves up to"),
        (traffic(queue_pairs=1_000_000), "workloads.a.queue_pairs: 992 flows on 1000000 queue pairs each"),
        (traffic(start="1e10 s"), "workloads.a.start: '1e10 s' is more than 9e6 s"),
    ],
)
def test_what_no_counter_holds_is_refused(tmp_path, text, words):
    assert words in load_refusal(tmp_path, text)


@pytest.mark.parametrize("algorithm", ["ring", "double_binary_tree"])
def test_a_chunk_that_makes_too_many_messages_names_one_that_does_not(tmp_path, algorithm):
    """100 GB in chunks of a byte to 31 others: 3.1e12 messages; the chunk that is proposed must be accepted."""
    fields = {"operation": "broadcast", "algorithm": algorithm, "size": "100 GB"}
    found = load_refusal(tmp_path, collective(chunk="1 B", **fields))
    assert f"workloads.a.chunk: broadcast with {algorithm} makes 3100000000000 messages" in found
    least = int(found.rpartition("at least ")[2].removesuffix(" B"))
    accepted = loaded(tmp_path, collective(chunk=f"{least} B", **fields)).variants[0][1].workloads[0]
    assert 0.49 * MOST_MESSAGES < collective_messages(accepted, 32, 8) <= MOST_MESSAGES


def test_too_many_ranks_for_a_ring(tmp_path):
    text = collective(operation="all_reduce", size="1 GB").replace("accelerators: 4", "accelerators: 512")
    found = load_refusal(tmp_path, text)
    assert "workloads.a.ranks: all_reduce with ring makes 33546240 messages, more than 16777216" in found
