"""Laws of the tiers behind the KV cache, on random small engines that preempt, share and are cut short anywhere."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from test_serving_laws import check_against_plain, run_compiled, small_engines, tiered_engines

from sim.devices.kv_tiers import TierLimits
from sim.serving.request import COMPLETED

PARTS = ("queue", "prefill", "decode", "recompute", "waiting_again", "host", "communication", "kv_transfer")


@settings(max_examples=400, deadline=None)
@given(tiered_engines())
def test_compiled_and_plain_tiers_hold_the_same_blocks_in_the_same_order(engine):
    """Steps, times and hits of every request, and of each tier what it holds, by recency, and what its link did."""
    state, plain, everybody = check_against_plain(engine)

    for request in everybody:
        asked, split = state.tiers.asked[request.number], state.splits[request.number]
        assert (asked["from_host"], asked["from_disk"]) == request.fetched
        e2e_s = request.token_times_s[-1] - request.arrival_s
        assert [split[f"{part}_s"] for part in PARTS] == pytest.approx(
            [request.parts_s[part] for part in PARTS], rel=1e-9, abs=1e-9 * e2e_s
        )
        assert sum(split[f"{part}_s"] for part in PARTS) == pytest.approx(e2e_s, rel=1e-9)
    for row, tier in zip(state.tiers.tiers, plain.tiers.all, strict=True):
        assert contents_by_recency(state, row) == [content_number(c) for c in tier.ready_s]
        names = ("num_fetched", "num_stored", "num_evicted", "fetch_s", "store_s")
        assert [row[name] for name in names] == [
            tier.fetched, tier.stored, tier.evicted, tier.fetch_s, tier.store_s
        ]  # fmt: skip


def contents_by_recency(state, tier) -> list[int]:
    found, place = [], int(tier["oldest"])
    while place >= 0:
        found.append(int(state.tiers.places["content"][place]))
        place = int(state.tiers.places["after"][place])
    return found


def content_number(content) -> int:
    return content if isinstance(content, int) else -2 - ((content[0] << 24) | content[1])


@settings(max_examples=200, deadline=None)
@given(tiered_engines())
def test_every_request_ends_once_and_nothing_is_left_on_its_way(engine):
    state, requests, _, fits = run_compiled(engine, engine["cuts"])

    assert (requests["outcome"][fits] == COMPLETED).all()
    assert state.counts["num_completed"][0] == fits.sum()
    assert state.kv.counts["num_free"][0] == engine["num_blocks"]
    assert state.counts["first_fetch"][0] == 0 and (state.tiers.asked["num_blocks"] == 0).all()
    asked = state.tiers.asked[fits]
    assert (requests["num_cached"][fits] < requests["num_prompt_tokens"][fits]).all()
    assert (asked["from_host"] + asked["from_disk"] <= requests["num_cached"][fits]).all()
    block_size = engine["block_size"]
    host, *disk = state.tiers.tiers
    if not requests["num_preemptions"].any():  # who gives way while the disk is read needs nothing from the host
        assert host["num_fetched"] * block_size >= (asked["from_host"] + asked["from_disk"]).sum()
        assert all(host["num_fetched"] >= tier["num_fetched"] for tier in disk)
    # Over a link at most one block at a time.
    for tier, limits in zip(state.tiers.tiers, engine["tiers"], strict=True):
        assert tier["num_placed"] - tier["num_evicted"] <= limits.num_blocks
        busy_s = (tier["fetch_s"], tier["store_s"]) if tier["is_duplex"] else (tier["fetch_s"] + tier["store_s"],)
        last_s = max(tier["fetches_until_s"], tier["stores_until_s"])
        assert all(seconds <= last_s * (1 + 1e-12) for seconds in busy_s)


@settings(max_examples=150, deadline=None)
@given(small_engines())
def test_tiers_without_room_change_no_byte(engine):
    engine |= {"is_caching": True, "speculation": None, "host_blocks": 0, "policy": "chunked_prefill"}
    found = []
    for tiers in ((), (TierLimits("host", 0, 1e-3, 1e-3), TierLimits("disk", 0, 1e-3, 1e-3))):
        state, requests, token_time_s, _ = run_compiled(engine | {"tiers": tiers}, engine["cuts"])
        rows = state.steps[: state.counts["num_recorded"][0]]
        found.append((rows.tobytes(), requests.tobytes(), token_time_s.tobytes(), state.splits.tobytes()))
    assert found[0] == found[1]
    assert (state.tiers.tiers["num_stored"] == 0).all()
