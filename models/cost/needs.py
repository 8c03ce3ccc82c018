"""What a step needs a table to say: its operators as rows know them, and how large they may become.

`sim` writes needs, `calibration` measures them; both read them here. Imports nothing that a GPU box may lack.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from models.features import Feature, Operator
from models.hardware import Precision

__all__ = ["Limits", "Need", "need_of", "needs_from_json", "needs_to_json", "reason_against"]


@dataclass(frozen=True, slots=True)
class Limits:
    """The most tokens and sequences of a step, and the longest context of a request."""

    tokens: int = 16_384
    seqs: int = 256
    context: int = 32_768


@dataclass(frozen=True, slots=True)
class Need:
    """One operator. kind, name, shape as in `models.features.Operator`; precision of attention: the cache's.

    most_rows     tokens or sequences of one call; of attention a chunk's tokens
    most_seqs     of attention: sequences that decode in one call
    most_context  of attention: cached tokens of one sequence
    """

    kind: str
    name: str
    precision: str
    shape: tuple[int, ...]
    most_rows: int
    most_seqs: int = 0
    most_context: int = 0


def reason_against(operator: Operator) -> str | None:
    """Why no row of one device's table would be used for it; None where one would."""
    if operator.is_communication:
        return "its time is several devices', one alone cannot measure it"
    if not operator.shape:
        return "tables have no rows for it; the roofline prices it"
    if operator.kind not in ("attention", "experts") and operator.runs_on not in (Feature.TOKENS, Feature.SEQUENCES):
        return "it does not run on tokens or sequences; the roofline prices it, or the experts' rows include it"
    return None


def need_of(operator: Operator, kv: Precision, limits: Limits) -> Need | None:
    """None for an operator that `reason_against` speaks against."""
    if reason_against(operator) is not None:
        return None
    if operator.kind == "attention":
        chunk = min(limits.tokens, limits.context)
        return Need("attention", "", kv, operator.shape, chunk, limits.seqs, limits.context)
    most = limits.seqs if operator.runs_on == Feature.SEQUENCES else limits.tokens
    return Need(operator.kind, operator.name, operator.precision, operator.shape, most)


def needs_to_json(needs: Iterable[Need]) -> str:
    """One need a line, so that two files can be compared."""
    return "[\n" + ",\n".join(json.dumps(asdict(need)) for need in needs) + "\n]\n"


def needs_from_json(text: str) -> Sequence[Need]:
    """As `needs_to_json` wrote them. Raises ValueError for anything else."""
    try:
        found: list[dict[str, Any]] = json.loads(text)
        return tuple(Need(**{**each, "shape": tuple(each["shape"])}) for each in found)
    except (TypeError, KeyError) as error:
        raise ValueError(f"no list of needs: {error}") from error
