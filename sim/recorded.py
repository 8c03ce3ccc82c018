"""Where recorded traces and runs of others lie, which are not part of the repository."""

from __future__ import annotations

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def roots() -> list[Path]:
    """Folders that may hold them: SPINDLE_DATA, then shared/data beside the repository."""
    named = [Path(os.environ["SPINDLE_DATA"])] if "SPINDLE_DATA" in os.environ else []
    return [*named, REPOSITORY.parent / "shared" / "data"]


def recorded(name: str) -> Path | None:
    """A file or folder of the recorded data, None where it is not here."""
    return next((root / name for root in roots() if (root / name).exists()), None)
