"""Collectives on numbers of ranks that were not measured, against the form they are made of."""

import numpy as np
import pandas as pd
import pytest

from models.cost.collectives import alpha_beta, other_ranks
from models.cost.measured import Measured
from models.cost.provenance import Source
from models.cost.table import table_of
from models.features import Operator, affine

LAUNCH, ALPHA, BETA = 4e-6, 1e-6, 1 / 300e9
SIZES = 2.0 ** np.arange(10, 30, 2)


def seconds(ranks, size_bytes):
    return LAUNCH + ALPHA * (ranks - 1) + BETA * (ranks - 1) / ranks * size_bytes


def measured(of=seconds, ranks=(2, 4, 8), sizes=SIZES) -> pd.DataFrame:
    rows = [{"operator": "all_gather", "name": "nccl", "ranks": n, "size_bytes": int(s), "seconds": of(n, s),
             "unit": "s", "gpu": "A", "source": "a test"} for n in ranks for s in sizes]  # fmt: skip
    return table_of(rows, "made").rows


def test_the_form_is_found_again():
    rows = measured()
    found = alpha_beta(*(rows[c].to_numpy(float) for c in ("ranks", "size_bytes", "seconds")))
    assert found == pytest.approx([LAUNCH, ALPHA, BETA])


@pytest.mark.parametrize(("ranks", "source"), [(3, Source.INTERPOLATED), (6, Source.INTERPOLATED),
                                               (16, Source.EXTRAPOLATED)])  # fmt: skip
def test_times_that_follow_the_form_are_found_on_other_ranks(ranks, source):
    fit, found = other_ranks(measured(), ranks)
    assert found == source
    assert fit.points[:, 0].tolist() == SIZES.tolist()
    assert fit.seconds == pytest.approx(seconds(ranks, SIZES))


def test_what_the_form_is_off_stays_and_nothing_leaves_the_measured_times():
    """A protocol that takes half as long from 64 KiB on, whatever the ranks, does so on 3 ranks as well."""
    def of(ranks, size_bytes):
        return seconds(ranks, size_bytes) * np.where(size_bytes >= 65536, 0.5, 1.0)

    fit, _ = other_ranks(measured(of), 3)
    assert fit.seconds == pytest.approx(of(3, SIZES), rel=0.01)
    noise = np.random.default_rng(1)
    rows = measured(lambda n, s: seconds(n, s) * noise.uniform(0.3, 3))
    fit, _ = other_ranks(rows, 6)
    beside = [rows[rows["ranks"] == n]["seconds"].to_numpy() for n in (4, 8)]
    assert (fit.seconds >= np.min(beside, axis=0)).all() and (fit.seconds <= np.max(beside, axis=0)).all()


def test_sizes_that_one_of_the_two_lacks_are_left_out_and_one_number_of_ranks_says_nothing():
    rows = measured()
    rows = rows[~((rows["ranks"] == 2) & (rows["size_bytes"] == 1024))]
    assert other_ranks(rows, 3)[0].points[:, 0].tolist() == SIZES[1:].tolist()
    assert other_ranks(measured(ranks=(2,)), 3) is None


def test_a_model_s_collective_says_where_its_time_comes_from():
    table = Measured(table_of(measured().drop(columns=["method"]), "made"))
    roof = lambda points: points[:, 0]  # noqa: E731
    operator = Operator("gather", "s", affine(), affine(), kind="all_gather", shape=(6, 1024))
    times = table.by_rows(operator, [1, 10, 2**20], roof)
    assert times.seconds[:2] == pytest.approx(seconds(6, np.array([1024, 10240])))
    assert times.source.tolist() == [Source.INTERPOLATED, Source.INTERPOLATED, Source.EXTRAPOLATED]
    beyond = Operator("gather", "s", affine(), affine(), kind="all_gather", shape=(16, 1024))
    assert set(table.by_rows(beyond, [1, 10], roof).source) == {Source.EXTRAPOLATED}
