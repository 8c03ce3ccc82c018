import numpy as np
import pytest

from sim.workload import sizes
from sim.workload.flow_file import TrafficFileError
from sim.workload.sizes import SIZE_LAWS, SizeLawError

MTU, HEADER = 4096, 64
PAYLOAD = MTU - HEADER


def test_wire_bytes_with_a_short_last_packet():
    """4,032 bytes fit one packet, one more needs a second; nothing at all is a header alone."""
    size = np.array([0, 1, 4032, 4033, 8064])
    assert sizes.wire_bytes(size, MTU, HEADER).tolist() == [64, 65, 4096, 4161, 8192]


LAWS = {
    "fixed": sizes.fixed(10_000),
    "uniform": sizes.uniform(1, 30_000),
    "lognormal": sizes.lognormal(20_000, 0.5),
    "wide lognormal": sizes.lognormal(5_000, 1.5),
    "tiny lognormal": sizes.lognormal(3, 1.0),
    "pareto": sizes.pareto(20_000, 4.5),
}


@pytest.mark.parametrize("name", LAWS)
def test_means_agree_with_draws(name):
    """Mean bytes and packets within 4 standard errors of two million draws."""
    law = LAWS[name]
    drawn = law.draw(np.random.default_rng(3), 2_000_000)
    assert drawn.min() >= 1
    packets = sizes.num_packets(drawn, PAYLOAD)
    for found, expected in ((drawn, law.mean_bytes()), (packets, law.mean_packets(PAYLOAD))):
        error = 4 * found.std() / np.sqrt(len(found))
        assert found.mean() == pytest.approx(expected, abs=error + 1e-9)


def test_means_by_hand():
    """Uniform over 1 … 8,064 is 1 or 2 packets, half of the sizes each; the file's pieces likewise."""
    law = sizes.uniform(1, 8064)
    assert law.mean_bytes() == 8065 / 2
    assert law.mean_packets(PAYLOAD) == 1.5
    assert sizes.mean_wire_bytes(law, MTU, HEADER) == 8065 / 2 + 1.5 * 64
    assert sizes.mean_wire_bytes(sizes.fixed(4033), MTU, HEADER) == 4033 + 128


def test_mean_of_packets_against_the_sum_over_all_sizes():
    """E[ceil(X / m)] summed over the probabilities of every single size."""
    low, high = 7, 20_011
    size = np.arange(low, high + 1)
    expected = np.ceil(size / PAYLOAD).mean()
    assert sizes.uniform(low, high).mean_packets(PAYLOAD) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e9, 1e13])
def test_rounding_up_adds_half_a_byte(scale):
    """A smooth, wide distribution loses nothing else: E[ceil Y] = E[Y] + 1/2."""
    if scale >= 1e3:
        assert sizes.lognormal(scale, 1.0).mean_bytes() == pytest.approx(scale + 0.5, rel=1e-9)
        assert sizes.lognormal(scale, 1.0).mean_packets(PAYLOAD) >= max(1, scale / PAYLOAD)
    assert sizes.pareto(scale + 10, 3.0).mean_bytes() == pytest.approx(scale + 10.5, abs=0.5)


WEB = "# bytes probability\n0 0\n10000 0.5\n10000 0.7\n20000 0.9 # jump above\n30000 1\n"


def test_distribution_from_a_file(tmp_path):
    """Half evenly in 1 … 10,000; exactly 10,000 with 0.2 more; 0.2 in the next ten thousand, 0.1 in the
    last.
    """
    path = tmp_path / "web.txt"
    path.write_text(WEB)
    law = sizes.from_file(path)
    assert law.low.tolist() == [1, 10_000, 10_001, 20_001]
    assert law.high.tolist() == [10_000, 10_000, 20_000, 30_000]
    assert law.mass == pytest.approx([0.5, 0.2, 0.2, 0.1])
    expected = 0.5 * 10_001 / 2 + 0.2 * 10_000 + 0.2 * 30_001 / 2 + 0.1 * 50_001 / 2
    assert law.mean_bytes() == pytest.approx(expected)
    drawn = law.draw(np.random.default_rng(1), 200_000)
    assert np.mean(drawn <= 10_000) == pytest.approx(0.7, abs=0.005)
    assert np.mean(drawn == 10_000) == pytest.approx(0.2 + 0.5 / 10_000, abs=0.005)
    assert drawn.mean() == pytest.approx(expected, rel=0.01)


def test_percent_and_a_first_jump(tmp_path):
    path = tmp_path / "cdf"
    path.write_text("100 25\n200, 100\n")
    law = sizes.from_file(path)
    assert law.low.tolist() == [100, 101]
    assert law.mass == pytest.approx([0.25, 0.75])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no lines"),
        ("1 0\n2\n", "line 2: '2' is not `bytes probability`"),
        ("1 1 0\n", "is not `bytes probability`"),
        ("1.5 0\n", "line 1: size 1.5 is not a whole number"),
        ("1 -1\n", "probability -1 is outside"),
        ("5 0\n3 1\n", "line 2: '3 1' falls below the line before"),
        ("5 0.5\n6 0.4\n", "falls below"),
        ("5 0.5\n6 0.9\n", "line 2: the last probability is 0.9"),
        ("0 0.5\n6 1\n", "messages of 0 bytes"),
    ],
)
def test_broken_files_are_refused(tmp_path, text, message):
    path = tmp_path / "cdf.txt"
    path.write_text(text)
    with pytest.raises(TrafficFileError, match=message):
        sizes.from_file(path)


@pytest.mark.parametrize(
    ("law", "arguments"),
    [
        ("fixed", (0,)),
        ("uniform", (5, 4)),
        ("lognormal", (0, 1)),
        ("lognormal", (100, 0)),
        ("lognormal", (float("nan"), 1)),
        ("pareto", (100, 1.0)),
        ("pareto", (-1, 2)),
    ],
)
def test_impossible_laws_are_refused(law, arguments):
    with pytest.raises(SizeLawError):
        SIZE_LAWS[law](*arguments)
