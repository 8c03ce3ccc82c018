"""Named random streams."""

import subprocess
import sys

import numpy as np

from sim.engine.random import RandomStreams


def test_a_stream_depends_on_seed_and_name_alone():
    first = RandomStreams(1)
    a = first.stream("workload.chat").random(5)
    first.stream("workload.other").random(1000)
    assert np.array_equal(first.stream("workload.chat").random(5), a)
    assert np.array_equal(RandomStreams(1).stream("workload.chat").random(5), a)
    assert not np.array_equal(RandomStreams(2).stream("workload.chat").random(5), a)
    assert not np.array_equal(RandomStreams(1).stream("workload.chat2").random(5), a)


def test_names_and_seeds_do_not_run_into_each_other():
    """(1, "1a") and (11, "a") and the like are streams of their own."""
    streams = [(seed, name) for seed in (0, 1, 11, 2**40) for name in ("", "a", "1a", "a1", "aa", "a.a", "ä")]
    firsts = {(seed, name): RandomStreams(seed).stream(name).integers(0, 2**62) for seed, name in streams}
    assert len(set(firsts.values())) == len(streams)
    integers = {RandomStreams(seed).integer(name) for seed, name in streams}
    assert len(integers) == len(streams)
    assert all(0 <= i < 2**62 for i in integers)


def test_streams_are_independent():
    """Neighbouring seeds and names: correlations of 10,000 numbers within 4.5 standard deviations, 45 pairs."""
    draws = np.array([RandomStreams(s).stream(n).random(10_000) for s in (1, 2, 3, 4, 5) for n in ("x", "y")])
    correlations = np.corrcoef(draws)[np.triu_indices(len(draws), 1)]
    assert np.abs(correlations).max() < 4.5 / np.sqrt(10_000)


def test_another_process_draws_the_same():
    """No hash() of strings, which differs between processes."""
    text = "from sim.engine.random import RandomStreams as R; print(R(7).integer('fabric'), R(7).stream('a').random())"
    run = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert run.stdout.split() == [str(RandomStreams(7).integer("fabric")), str(RandomStreams(7).stream("a").random())]
