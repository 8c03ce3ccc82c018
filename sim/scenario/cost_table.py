"""The table of measured times that a scenario names: a file, or the tables that aiconfigurator publishes."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from functools import cache
from importlib import metadata, util
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, ValidationInfo, WithJsonSchema

from models.cost.measured import Measured
from models.cost.table import TableError, read_table
from sim.scenario.errors import quoted
from sim.scenario.quantities import found_file, no_file, refused

PRESETS = ("h100", "h200", "b200", "a100")
"""Accelerators whose times aiconfigurator publishes."""
OWN = {
    f"spindle-{file.stem}": file
    for folder in (util.find_spec("calibration").submodule_search_locations or ())  # type: ignore[union-attr]
    for file in sorted(Path(folder, "data").glob("*.parquet"))
}
"""Tables of this project's own measurements (`docs/calibration.md`)."""


def _read_name(value: Any, info: ValidationInfo) -> str | None:
    """A preset's name, or the path of a file that is there."""
    if value is None or value in PRESETS or value in OWN:
        return value
    folder = (info.context or {}).get("folder")
    path = found_file(str(value), folder) if isinstance(value, str) and value else None
    if path is None:
        raise refused(
            f"{no_file(str(value), folder)}; give a table of `spindle calibrate`, or one of "
            f"{', '.join((*PRESETS, *OWN))}"
        )
    if path.suffix not in (".parquet", ".csv"):
        raise refused(f"{quoted(value)} is no table; give a .parquet or .csv file of `spindle calibrate`")
    return str(path)


TableFile = Annotated[
    str | None,
    BeforeValidator(_read_name),
    WithJsonSchema({"type": "string", "examples": ["h200", "calibration/h200.parquet"]}),
]


@cache
def measured(name: str, accelerator: str) -> Measured:
    """The table behind a name or path. Raises TableError for one that is broken, missing, or another accelerator's."""
    table = read_table(table_path(name))
    if not is_of(accelerator, table.gpu):
        raise TableError(
            f"{name} has times of {table.gpu}, the accelerator is {accelerator}; take a table of its own, or leave "
            "cost.table out"
        )
    return Measured(table)


def table_path(name: str) -> Path:
    """The file behind a name or path. Raises TableError where the tables of a name cannot be had."""
    if name in PRESETS:
        return _imported(name)
    return OWN.get(name, Path(name))


def fingerprint(name: str) -> str:
    """A table's name with a digest of what is in it."""
    path = table_path(name)
    return f"{path.stem}-{hashlib.sha256(path.read_bytes()).hexdigest()[:12]}"


OTHER_CARDS = {"pcie", "nvl"}
"""Words in the name of a card that shares its chip's name only: the presets are of SXM modules, whose clocks and memory
are others."""


def is_of(accelerator: str, gpu: str) -> bool:
    """Whether a device that calls itself `gpu` is this accelerator: its name is one or more whole words of it.

    "NVIDIA H100 80GB HBM3" is h100, "NVIDIA RTX PRO 6000" rtxpro6000; "NVIDIA GB200" is no b200, an H100 PCIe no h100.
    """
    words = re.findall("[a-z0-9]+", gpu.lower())
    runs = {"".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1)}
    return "".join(filter(str.isalnum, accelerator.lower())) in runs and not OTHER_CARDS & set(words)


def _imported(accelerator: str) -> Path:
    """The imported table of an accelerator, made once for each version of the package and of what imports it."""
    try:
        version = metadata.version("aiconfigurator-core")
    except metadata.PackageNotFoundError:
        raise TableError(
            f"the times of {accelerator} come with aiconfigurator-core, which is missing; "
            "pip install 'spindle-sim[tables]'"
        ) from None
    digest = hashlib.sha256()
    for module in ("importers", "groups", "methods"):
        found = util.find_spec(f"calibration.{module}")
        assert found is not None and found.origin is not None, "our own package"
        digest.update(Path(found.origin).read_bytes())
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spindle-tables"
    path = base / f"{accelerator}-{version}-{digest.hexdigest()[:8]}.parquet"
    if not path.exists():
        command = [sys.executable, "-m", "calibration", "import", "aiconfigurator", "--accelerator", accelerator,
                   "--out", str(path)]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise TableError(f"the times of {accelerator} cannot be read: {done.stderr.strip().splitlines()[-1]}")
    return path
