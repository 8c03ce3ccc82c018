"""What the tiers behind KV caches held, and what went over their links."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.serving.replica import Engine


def tier_metrics(requests: NDArray[Any], asked: NDArray[Any], engines: Sequence[Engine]) -> dict[str, float | None]:
    """Hit rates and traffic of all replicas' tiers together.

    kv_<device, host, disk>_hit_rate: of the prompt tokens of all requests scheduled so far, the share that was there
    then; they add up to prefix_cache_hit_rate. kv_<host, disk>_<fetched, stored>_bytes over the tier's link, of all
    accelerators, and _<fetch, store>_s the time that this took: over the host's link also what came from a disk.
    Counted up to where each replica has been advanced.
    """
    is_scheduled = ~np.isnan(requests["scheduled_s"])
    scheduled, of_tier = requests[is_scheduled], asked[is_scheduled]
    num_asked = int(scheduled["num_prompt_tokens"].sum())
    found = {tier: int(of_tier[f"from_{tier}"].sum()) for tier in ("host", "disk")}
    found = {"device": int(scheduled["num_cached"].sum()) - sum(found.values())} | found
    kinds = [tier.kind for tier in engines[0].limits.tiers]
    metrics: dict[str, float | None] = {
        f"kv_{tier}_hit_rate": num / num_asked if num_asked else None
        for tier, num in found.items() if tier in ("device", *kinds)
    }  # fmt: skip
    for i, kind in enumerate(kinds):
        rows = [list(tier_rows(engine))[i] for engine in engines]
        for name in ("fetched_bytes", "stored_bytes", "fetch_s", "store_s"):
            metrics[f"kv_{kind}_{name}"] = sum(row[name] for row in rows)
    return metrics


def tier_rows(engine: Engine) -> Iterator[dict[str, Any]]:
    """Of each tier of a replica its row of table `kv_tiers`."""
    for limits, tier in zip(engine.limits.tiers, engine.state.tiers.tiers, strict=True):
        yield {
            "replica": engine.index, "copy": engine.copy, "tier": limits.kind, "num_blocks": limits.num_blocks,
            "num_held": int(tier["num_used"]), "num_evicted": int(tier["num_evicted"]),
            "fetched_bytes": int(tier["num_fetched"]) * limits.block_bytes,
            "stored_bytes": int(tier["num_stored"]) * limits.block_bytes,
            "fetch_s": float(tier["fetch_s"]), "store_s": float(tier["store_s"]),
        }  # fmt: skip
