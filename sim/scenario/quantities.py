"""The types of a scenario's fields: quantities with units, counts, shares, ranks, input files.

Each type reads what people write into SI numbers, and describes itself in the JSON Schema.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel as PydanticModel
from pydantic import BeforeValidator, ConfigDict, Field, Strict, ValidationInfo, WithJsonSchema
from pydantic_core import PydanticCustomError

from models import units
from models.units import Dimension, UnitError
from sim.scenario.errors import quoted

LARGEST_COUNT = 1 << 20
"""Accelerators, ranks, links of a kind: more than a run could hold."""


def refused(sentence: str, *path: str | int) -> PydanticCustomError:
    """An error of the schema: a whole sentence, about the field at `path` below the model that raises it."""
    return PydanticCustomError(
        "refused", "{sentence}", {"problems": [(path, sentence)], "sentence": sentence}
    )


def all_refused(problems: list[tuple[tuple[str | int, ...], str]]) -> PydanticCustomError:
    """Several errors of one model at once."""
    sentence = "; ".join(text for _, text in problems)
    return PydanticCustomError("refused", "{sentence}", {"problems": problems, "sentence": sentence})


_UNIT_ENDINGS = ("_flop_per_s", "_bytes_per_s", "_per_s", "_bytes", "_s")


def file_key(attribute: str) -> str:
    """The key in the file: the attribute without its unit, which the file's value carries itself."""
    for ending in _UNIT_ENDINGS:
        if attribute.endswith(ending):
            return attribute.removesuffix(ending)
    return attribute


class Part(PydanticModel):
    """A mapping of the scenario file: frozen, no unknown keys, finite numbers only.

    Attributes carry their unit (`rate_bytes_per_s`), keys of the file do not (`rate`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, alias_generator=file_key)


MOST_BYTES = f"{2**53} B"
"""9 PB: a float counts every byte of a message up to this."""

MOST_SECONDS = "9e6 s"
"""104 days: 64 bits count picoseconds, as packets need them, up to this."""


def _quantity(
    dimension: Dimension, parse: Callable[[str], float], is_positive: bool = False, most: str | None = None
) -> Any:
    """A field that is read by `parse`; a bare number is refused, and so is one above `most`."""

    def read(value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise refused(f"{quoted(value)} is no {dimension.name}; write for example '{dimension.example}'")
        try:
            number = parse(str(value))
        except UnitError as error:
            raise refused(str(error)) from error
        if most is not None and number > parse(most):
            raise refused(f"{quoted(value)} is more than {most}, the largest {dimension.name} of a run; lower it")
        if is_positive and number == 0:
            raise refused(f"{quoted(value)} must be above 0; write for example '{dimension.example}'")
        return number

    kind = {"type": "string", "title": dimension.name, "examples": [dimension.example]}
    return BeforeValidator(read), WithJsonSchema(kind), Field(examples=[dimension.example])


Bytes = Annotated[int, *_quantity(units.BYTES, units.parse_bytes, most=MOST_BYTES)]
PositiveBytes = Annotated[int, *_quantity(units.BYTES, units.parse_bytes, True, MOST_BYTES)]
BytesPerS = Annotated[float, *_quantity(units.BYTES_PER_S, units.parse_bytes_per_s, is_positive=True)]
Seconds = Annotated[float, *_quantity(units.SECONDS, units.parse_seconds, most=MOST_SECONDS)]
PositiveSeconds = Annotated[float, *_quantity(units.SECONDS, units.parse_seconds, True, MOST_SECONDS)]
PerS = Annotated[float, *_quantity(units.PER_S, units.parse_per_s, is_positive=True)]

Count = Annotated[int, Strict(), Field(ge=1, le=LARGEST_COUNT)]
CountOrZero = Annotated[int, Strict(), Field(ge=0, le=LARGEST_COUNT)]
Seed = Annotated[int, Strict(), Field(ge=0, lt=2**63)]
Flag = Annotated[bool, Strict()]
Number = Annotated[float, Strict()]
PositiveNumber = Annotated[float, Strict(), Field(gt=0)]
Text = Annotated[str, Field(min_length=1, max_length=500)]


def _read_share(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return units.parse_fraction(value)
    except UnitError as error:
        raise refused(str(error)) from error


_SHARE_SCHEMA = WithJsonSchema(
    {"anyOf": [{"type": "number", "minimum": 0, "maximum": 1}, {"type": "string"}], "examples": [0.5, "50 %"]}
)
Share = Annotated[float, Strict(), Field(ge=0, le=1), BeforeValidator(_read_share), _SHARE_SCHEMA]
PositiveShare = Annotated[float, Strict(), Field(gt=0, le=1), BeforeValidator(_read_share), _SHARE_SCHEMA]


def _read_name(value: Any) -> str:
    if isinstance(value, bool | int | float):
        raise refused(f"{quoted(value)} is not text; put it in quotes")
    if not isinstance(value, str):
        raise refused(f"{quoted(value)} is no name; write a word")
    if not re.fullmatch(r"\w[\w :/+-]{0,59}", value) or value != value.strip():
        raise refused(
            f"{quoted(value)} is no name: use letters, digits, spaces and _ - + : / (metric names contain it)"
        )
    return value


Name = Annotated[
    str,
    BeforeValidator(_read_name),
    WithJsonSchema({"type": "string", "pattern": r"^\w[\w :/+-]{0,59}$", "examples": ["chat"]}),
]
"""A name that metric keys are built from; it holds no dot."""


def _read_label(value: Any) -> str:
    if isinstance(value, bool | int | float):
        raise refused(f"{quoted(value)} is not text; put it in quotes")
    if not isinstance(value, str) or not value.strip():
        raise refused(f"{quoted(value)} is no name; write a few words")
    if len(value) > 120 or not value.isprintable():
        raise refused(f"{quoted(value)} is no name: at most 120 characters, on one line")
    return value.strip()


Label = Annotated[
    str, BeforeValidator(_read_label), WithJsonSchema({"type": "string", "minLength": 1, "maxLength": 120})
]
"""A name for people: one line of text."""


def _read_ranks(value: Any) -> tuple[int, ...] | None:
    """None for all; else accelerator ids in the order given."""
    if value is None or value == "all":
        return None
    example = "write all, a number n for the first n, a range '0-63', or a list [0, 8, 16]"
    if isinstance(value, bool | float):
        raise refused(f"{quoted(value)} names no ranks; {example}")
    if isinstance(value, int):
        if not 1 <= value <= LARGEST_COUNT:
            raise refused(f"{quoted(value)} is no number of ranks; {example}")
        return tuple(range(value))
    if isinstance(value, str):
        ranks: list[int] = []
        for part in value.split(","):
            ranks += _range(part, value, example)
            if len(ranks) > LARGEST_COUNT:
                raise refused(f"{quoted(value)} is more than {LARGEST_COUNT} ranks")
        return _checked_ranks(ranks)
    if isinstance(value, list | tuple) and value:
        wrong = [item for item in value if isinstance(item, bool) or not isinstance(item, int) or item < 0]
        if wrong:
            raise refused(f"{quoted(wrong[0])} in the list of ranks is no accelerator id; {example}")
        return _checked_ranks(list(value))
    raise refused(f"{quoted(value)} names no ranks; {example}")


def _range(part: str, value: str, example: str) -> range:
    match = re.fullmatch(r"\s*([0-9]{1,9})(?:\s*-\s*([0-9]{1,9}))?\s*", part)
    if match is None:
        raise refused(f"{quoted(value)} names no ranks; {example}")
    first, last = int(match[1]), int(match[2] or match[1])
    if last < first:
        raise refused(f"{quoted(value)}: the range {first}-{last} is empty; write {last}-{first}")
    return range(first, min(last, first + LARGEST_COUNT) + 1)


def _checked_ranks(ranks: list[int]) -> tuple[int, ...]:
    seen: set[int] = set()
    for rank in ranks:
        if rank in seen:
            raise refused(f"rank {rank} is given twice; give each once")
        seen.add(rank)
    return tuple(ranks)


Ranks = Annotated[
    tuple[int, ...] | None,
    BeforeValidator(_read_ranks),
    WithJsonSchema(
        {
            "anyOf": [
                {"const": "all"},
                {"type": "integer", "minimum": 1},
                {"type": "string", "pattern": "^[0-9, -]+$"},
                {"type": "array", "items": {"type": "integer", "minimum": 0}},
            ],
            "examples": ["all", 8, "0-63", [0, 8, 16]],
        }
    ),
]
"""Accelerator ids; None means all of them."""


def found_file(value: str, folder: Path | None) -> Path | None:
    """The file that a scenario names: looked for beside the scenario, then in the working directory."""
    for path in ([folder / value] if folder is not None else []) + [Path(value)]:
        try:
            if path.is_file():
                return path
        except (OSError, ValueError):
            return None
    return None


def no_file(value: str, folder: Path | None) -> str:
    """Why `found_file` found none."""
    for path in ([folder / value] if folder is not None else []) + [Path(value)]:
        try:
            if path.is_dir():
                return f"{quoted(value)} is a folder, no regular file"
            if path.exists():
                return f"{quoted(value)} is no regular file"
        except (OSError, ValueError):
            break
    where = f"neither in {folder} nor in the working directory" if folder is not None else "in the working directory"
    return f"there is no file {quoted(value)} {where}"


def _read_path(value: Any, info: ValidationInfo) -> Path:
    if not isinstance(value, str | Path) or not str(value):
        raise refused(f"{quoted(value)} is no file name; write for example 'sizes.txt'")
    folder: Path | None = (info.context or {}).get("folder")
    path = found_file(str(value), folder)
    if path is None:
        raise refused(f"{no_file(str(value), folder)}; give the path of a file that is there")
    return path


def _read_file(value: Any, info: ValidationInfo) -> Path:
    path = _read_path(value, info)
    try:
        with path.open("rb") as file:
            start = file.read(_START_BYTES)
    except OSError as error:
        raise refused(f"{quoted(value)} cannot be read: {error.strerror}") from error
    if not _is_text(start):
        raise refused(
            f"{quoted(value)} is a binary file; unpack it if it is packed, or save it as text in UTF-8, a table as CSV"
        )
    return path


_START_BYTES = 1 << 16


def _is_text(start: bytes) -> bool:
    """Whether a file that starts so may be UTF-8; the last character may be cut. The rest is for its reader."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        return False
    return b"\0" not in start


InputFile = Annotated[
    Path,
    BeforeValidator(_read_file),
    WithJsonSchema({"type": "string", "examples": ["traces/conversation.csv"]}),
]
"""A text file that must be there; relative to the scenario's folder, then to the working directory."""


def _read_routing(value: Any, info: ValidationInfo) -> Path:
    return _read_path(value, info) if str(value).endswith(".npz") else _read_file(value, info)


RoutingFile = Annotated[
    Path,
    BeforeValidator(_read_routing),
    WithJsonSchema({"type": "string", "examples": ["routing_law.npz", "scores.json"]}),
]
"""The same, or recorded router decisions as NumPy saves them."""
