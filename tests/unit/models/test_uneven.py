"""Uneven batches by hand: the longest decode reads on alone, so many seconds for each token beyond the mean."""

import numpy as np
import pandas as pd
import pytest

from calibration.check import uneven_errors
from models.cost.step import no_attention, tail_seconds
from models.cost.table import table_of
from models.cost.uneven import tail_of

PER_TOKEN_S = {(0, 4): 2e-8, (0, 8): 3e-8, (512, 4): 5e-8}
"""By chunk and decodes."""


def rows(*places, prefix=0):
    """One and two long decodes of 4,096 among others of 1,024, and even batches of the same means."""
    found = []
    for chunk, decodes in places:
        for num_long in (1, 2):
            mean = (num_long * 4096 + (decodes - num_long) * 1024) // decodes
            common = {"chunk": chunk, "prefix": prefix, "decodes": decodes}
            even_s = 1e-4 + 1e-7 * mean
            found.append(common | {"context": mean, "num_long": 0, "longest": mean, "seconds": even_s})
            tail_s = PER_TOKEN_S[chunk, decodes] * (4096 - mean)
            found.append(common | {"context": 1024, "num_long": num_long, "longest": 4096, "seconds": even_s + tail_s})
    return pd.DataFrame(found)


def seconds_of(tail, chunk, decodes, context, longest):
    names = ("tail_chunk", "tail_decodes", "tail_longest", "tail_evenness", "tail")
    attention = no_attention()._replace(**dict(zip(names, tail, strict=True)))
    return tail_seconds(attention, chunk, decodes, context, longest)


def test_the_time_per_token_of_measured_batches_is_found_again():
    tail = tail_of(rows((0, 4), (0, 8), (512, 4)))
    assert seconds_of(tail, 0, 4, 1792, 4096) == pytest.approx(2e-8 * (4096 - 1792))
    assert seconds_of(tail, 512, 4, 1792, 4096) == pytest.approx(5e-8 * (4096 - 1792))
    # Between 4 and 8 decodes, on the line; the evenness of 1,792 of 4,096 lies among those measured of either.
    assert seconds_of(tail, 0, 6, 1792, 4096) == pytest.approx(2.5e-8 * (4096 - 1792))


def test_what_was_not_measured_with_a_chunk_is_as_with_fewer_decodes():
    tail = tail_of(rows((0, 4), (0, 8), (512, 4)))
    assert seconds_of(tail, 512, 8, 1792, 4096) == pytest.approx(5e-8 * (4096 - 1792))


def test_even_batches_have_no_tail_and_time_is_never_taken_back():
    tail = tail_of(rows((0, 4)))
    assert seconds_of(tail, 0, 4, 4096, 4096) == 0.0
    faster = rows((0, 4))
    faster.loc[faster["num_long"] > 0, "seconds"] -= 1e-3
    assert (tail_of(faster).seconds == 0).all()


def test_without_even_batches_beside_them_nothing_is_said():
    lonely = rows((0, 4))
    assert tail_of(lonely[lonely["num_long"] > 0]).seconds.size == 0
    assert seconds_of(tail_of(lonely[lonely["num_long"] > 0]), 0, 4, 100, 200) == 0.0


def test_the_median_over_prefixes_counts():
    slow = rows((512, 4), prefix=8192)
    slow.loc[slow["num_long"] > 0, "seconds"] += 1.0
    tail = tail_of(pd.concat([rows((512, 4)), rows((512, 4), prefix=1024), slow]))
    assert np.nanmax(tail.seconds) == pytest.approx(5e-8)


def test_held_out_uneven_batches_are_found_from_the_others():
    """Twelve batches on one law: those held out lie on it."""
    places = [(0, 4), (0, 8), (512, 4)]
    found = pd.concat([rows(*places, prefix=prefix) for prefix in (0, 1024)])
    common = {"operator": "uneven_attention", "heads": 8, "kv_heads": 2, "head_dim": 64, "precision": "bf16",
              "unit": "s", "gpu": "GPU1", "source": "a test"}  # fmt: skip
    errors = uneven_errors(table_of(found.assign(**common), "here"))
    assert len(errors["with a tail"]) == len(errors["without"]) == 2
    assert errors["with a tail"] == pytest.approx(0.0, abs=1e-9)
    assert (errors["without"] > 0.05).all()
