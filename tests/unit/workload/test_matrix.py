import numpy as np
import pytest

from sim.workload.flow_file import TrafficFileError
from sim.workload.matrix import read_matrix


@pytest.fixture
def read(tmp_path):
    def read_text(text, name="m.csv"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_matrix(path)

    return read_text


def triples(flows):
    return list(
        zip(flows.source.tolist(), flows.destination.tolist(), flows.size_bytes.tolist(), strict=True)
    )


EXPECTED = [(0, 1, 5), (1, 2, 1_000_000), (2, 0, 7)]


@pytest.mark.parametrize(
    "text",
    [
        "0,5,0\n0,0,1e6\n7,0,0\n",
        "# bytes\n0, 5, \n\n,0,1000000\n7,0,0",
        ",a,b,c\na,0,5,0\nb,0,0,1000000\nc,7,0,0\n",
        ",0,1,2\n0,0,5,0\n1,0,0,1000000\n2,7,0,0\n",
        "from/to,0,1,2\n0,,5,\n1,,,1000000\n2,7,,\n",
        "source,destination,bytes\n0,1,5\n1,2,1000000\n2,0,7\n",
        "\ufeffSource, Destination, Bytes\n0,1,5\n1,2,1000000\n2,0,7\n1,1,0\n",
    ],
)
def test_csv_forms(read, text):
    flows = read(text)
    assert triples(flows) == EXPECTED
    assert flows.num_ranks == 3
    assert flows.start_s.tolist() == [0.0] * 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("0,1\n2,0,3\n", "line 2: has 3 numbers, expected 2"),
        ("0,1\n", "1 rows but 2 columns"),
        ("0,x\n1,0\n", "line 1: 'x' is not a number of bytes"),
        ("0,1\nx,0\n", "line 2: 'x' is not a number of bytes"),
        ("0,-1\n1,0\n", "line 1: '-1' is not a number of bytes: give a whole number"),
        ("0,1.5\n1,0\n", "'1.5' is not"),
        ("0,nan\n1,0\n", "'nan' is not"),
        ("4,1\n1,0\n", "rank 0 sends 4 bytes to itself"),
        (",a,b\na,0,1\nc,1,0\n", "line 3: row label 'c' where column 2 is 'b'"),
        ("source,destination,bytes\n0,1\n", "line 2: has 2 cells"),
        ("source,destination,bytes\n3,3,9\n", "rank 3 sends to itself"),
        ("source,destination,bytes\n0,1,many\n", "'many' is not a number of bytes"),
        ("source,dest,bytes\n0,1,2\n", "write source,destination,bytes"),
        ("0;5\n7;0\n", "line 1: '0;5' has no commas; separate the cells by commas"),
        ("# bytes\nsource;destination;bytes\n0;1;2\n", "line 2: 'source;destination;bytes' has no commas"),
        ("0\t5\n7\t0\n", "has no commas"),
        ("0,0\n0,0\n", "sends nothing"),
        ("0\n", "sends nothing"),
        ("source,destination,bytes\n", "sends nothing"),
        ("source,destination,bytes\n0,1,0\n", "sends nothing: no flow in it has a byte; give at least one"),
        (b"\xff\xfe\x00\x01", "is not a text file"),
    ],
)
def test_broken_csv_is_refused_with_its_line(read, text, message):
    with pytest.raises(TrafficFileError, match=message) as error:
        read(text)
    assert "m.csv" in str(error.value)


def test_unreadable_and_unknown_files(tmp_path):
    with pytest.raises(TrafficFileError, match=r"cannot be read: No such file"):
        read_matrix(tmp_path / "none.csv")
    with pytest.raises(TrafficFileError, match=r"neither .csv .* nor .cm"):
        read_matrix(tmp_path / "m.txt")


def test_large_tables_are_read_fast_enough(read):
    n = 300
    table = np.ones((n, n), int) - np.eye(n, dtype=int)
    assert len(read("\n".join(",".join(map(str, row)) for row in table)).source) == n * (n - 1)


CHAIN = """Nodes 16
Connections 3
Triggers 2
# a chain of two and one of its own
3->7 id 1 start 0 size 1000 send_done_trigger 1
7->9 id 2 trigger 1 size 2000 recv_done_trigger 2
1->2 start 2500000 size 3000 prio 5
trigger id 1 oneshot
trigger id 2 oneshot
"""


def test_connections_with_triggers(read):
    """Start times are picoseconds: 2,500,000 ps are 2.5 µs."""
    flows = read(CHAIN, "chain.cm")
    assert flows.num_ranks == 16
    assert triples(flows) == [(3, 7, 1000), (7, 9, 2000), (1, 2, 3000)]
    assert flows.start_s.tolist() == [0.0, 0.0, 2.5e-6]
    assert (flows.edge_from.tolist(), flows.edge_to.tolist()) == ([0], [1])


def test_a_barrier_with_several_flows_on_both_sides_gets_a_join(read):
    flows = read(
        "Nodes 4\nConnections 4\nTriggers 1\ntrigger id 9 barrier count 2\n"
        "0->1 start 0 size 10 recv_done_trigger 9\n1->2 start 0 size 10 recv_done_trigger 9\n"
        "2->3 trigger 9 size 20\n3->0 trigger 9 size 20\n",
        "barrier.cm",
    )
    assert triples(flows)[4] == (2, 2, 0)
    assert set(zip(flows.edge_from.tolist(), flows.edge_to.tolist(), strict=True)) == {
        (0, 4), (1, 4), (4, 2), (4, 3),
    }  # fmt: skip


def test_the_plain_form_that_htsim_ships(read):
    flows = read(
        "Nodes 16\nConnections 2\n0->13 start 0 size 2000000\n13->0 start 0 size 2000000\n\n", "bidir.cm"
    )
    assert triples(flows) == [(0, 13, 2_000_000), (13, 0, 2_000_000)]


def cm(*lines, nodes=4, connections=1, triggers=None):
    head = [f"Nodes {nodes}", f"Connections {connections}"] + ([f"Triggers {triggers}"] if triggers else [])
    return "\n".join([*head, *lines])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Connections 0\n", "has no line `Nodes N`"),
        ("Nodes 2\n0->1 start 0 size 5\n", "no line `Connections N`, but 1 are listed"),
        (cm("0->1 start 0 size 5", connections=2), "but 1 are listed: write `Connections 1`"),
        (cm("0->1 start 0 size 5", triggers=1), "`Triggers 1`, but 0 are listed"),
        ("Nodes few\n", "'few' is not a number of nodes"),
        ("Nodes\n", "write `Nodes N`"),
        (cm("0->4 start 0 size 5"), "line 3: 0->4, but nodes are 0 … 3"),
        (cm("0->0 start 0 size 5"), "sends to itself"),
        (cm("0->one start 0 size 5"), "'one' is not a node"),
        (cm("0->1 start 0"), "has no size above 0"),
        (cm("0->1 start 0 size 0"), "has no size above 0"),
        (cm("0->1 size 5"), "either `start` or `trigger`"),
        (cm("0->1 start 0 trigger 1 size 5"), "either `start` or `trigger`"),
        (cm("0->1 start soon size 5"), "'soon' is not a time in picoseconds"),
        (cm("0->1 start 0 size"), "'size' has no value"),
        (cm("0->1 start 0 size 5 addon"), "'addon' is not read"),
        (cm("0->1 id 0 start 0 size 5"), "ids are above 0"),
        (cm("0->1 id 7 start 0 size 5", "1->0 id 7 start 0 size 5", connections=2), "line 3 has it"),
        (cm("failure switch_type TOR switch_id 1"), "scenario's `faults`"),
        (cm("broadcast 3"), "unknown word 'broadcast'"),
        (cm("0->1 trigger 3 size 5"), "trigger 3 is used but never given"),
        (cm("0->1 trigger 3 size 5", "trigger id 3 oneshot", triggers=1), "needs 1 to fire it, has 0"),
        (
            cm("0->1 start 0 size 5 recv_done_trigger 3", "trigger id 3 barrier count 2", triggers=1),
            "line 5: trigger 3 needs 2 to fire it, has 1",
        ),
        (cm("trigger id 3 multishot", connections=0, triggers=1), "multishot triggers are not read"),
        (cm("trigger oneshot", connections=0, triggers=1), "write `trigger id N oneshot`"),
        (cm("trigger id 3 oneshot", "trigger id 3 oneshot", connections=0, triggers=1), "is given twice"),
        (
            cm(
                "0->1 trigger 1 size 5 recv_done_trigger 2",
                "1->0 trigger 2 size 5 recv_done_trigger 1",
                "trigger id 1 oneshot", "trigger id 2 oneshot", connections=2, triggers=2,
            ),
            r"in a circle \(lines \[4, 5\]\)",
        ),
        (
            cm("0->1 trigger 1 size 5 recv_done_trigger 1", "trigger id 1 oneshot", triggers=1),
            r"in a circle \(lines \[4\]\)",
        ),
    ],
)  # fmt: skip
def test_broken_connections_are_refused_with_their_line(read, text, message):
    with pytest.raises(TrafficFileError, match=message):
        read(text, "c.cm")
