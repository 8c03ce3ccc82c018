"""What broke, in sentences."""

from sim.results.fault_lines import fault_lines
from sim.results.run_results import RunResults, VariantResult


def test_a_replica_that_dies_is_under_no_flows():
    row = {"at_s": 60.0, "until_s": 120.0, "what": "replica chat/1 down", "flows_affected": 0, "moved_bytes": 0}
    run = RunResults("s", None, (1,), ("calm", "dead"), "1", None)
    run.results["dead", 1] = VariantResult("dead", 1, {}, {}, {"faults": [row]})

    assert fault_lines(run) == ["replica chat/1 down from 60 s until 2 min, under dead."]
