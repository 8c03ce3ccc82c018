"""Quantities with units: text that people write into numbers in SI units, and back.

Reading is exact: the number is taken as a fraction, multiplied by the unit, and rounded once at the end, so
"400 Gbit/s" is 50e9 bytes/s to the last bit. Decimal prefixes are powers of 1000 (kB, MB), binary ones
powers of 1024 (KiB, MiB). Writing is for people: four digits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from fractions import Fraction

__all__ = [
    "BYTES",
    "BYTES_PER_S",
    "FLOP_PER_S",
    "FRACTION",
    "PER_S",
    "SECONDS",
    "Dimension",
    "UnitError",
    "format_bytes",
    "format_bytes_per_s",
    "format_count",
    "format_seconds",
    "parse_bytes",
    "parse_bytes_per_s",
    "parse_flop_per_s",
    "parse_fraction",
    "parse_per_s",
    "parse_seconds",
]


class UnitError(ValueError):
    """A quantity that cannot be read: the text says what is wrong with it and what to write instead."""


@dataclass(frozen=True, slots=True)
class Dimension:
    """What a quantity measures: its units as multiples of the SI unit, and an example for messages."""

    name: str
    units: Mapping[str, Fraction] = field(hash=False)
    zero: str
    example: str


def _prefixed(unit: str, prefixes: str, step: int, ending: str = "", scale: Fraction = Fraction(1)):
    """Units with prefixes: the i-th one of "kMGT" is step to the power i + 1."""
    letters = prefixes.split()
    return {f"{letter}{unit}{ending}": scale * step ** (i + 1) for i, letter in enumerate(letters)}


_DECIMAL, _BINARY = "k M G T", "Ki Mi Gi Ti"
_BYTE_UNITS = {"B": Fraction(1), **_prefixed("B", _DECIMAL, 1000), **_prefixed("B", _BINARY, 1024)}
_BIT = Fraction(1, 8)

BYTES = Dimension("size", _BYTE_UNITS, "0 B", "16 MB")
BYTES_PER_S = Dimension(
    "rate",
    {
        "bit/s": _BIT,
        **_prefixed("bit", _DECIMAL, 1000, "/s", _BIT),
        **{f"{unit}/s": value for unit, value in _BYTE_UNITS.items()},
    },
    "0 bit/s",
    "400 Gbit/s",
)
SECONDS = Dimension(
    "time",
    {
        "ns": Fraction(1, 10**9),
        "us": Fraction(1, 10**6),
        "µs": Fraction(1, 10**6),
        "ms": Fraction(1, 1000),
        "s": Fraction(1),
        "min": Fraction(60),
        "h": Fraction(3600),
    },
    "0 s",
    "500 ns",
)
PER_S = Dimension(
    "frequency",
    {"/s": Fraction(1), "req/s": Fraction(1), "/min": Fraction(1, 60), "req/min": Fraction(1, 60)},
    "0 /s",
    "5 /s",
)
FLOP_PER_S = Dimension(
    "arithmetic rate",
    {"flop/s": Fraction(1), **_prefixed("flop/s", "k M G T P", 1000)},
    "0 flop/s",
    "989 Tflop/s",
)
FRACTION = Dimension("share", {"%": Fraction(1, 100)}, "0", "0.1 %")

_ALL = (BYTES, BYTES_PER_S, SECONDS, PER_S, FLOP_PER_S, FRACTION)
_HABITS = {
    "bps": "bit/s", "kbps": "kbit/s", "mbps": "Mbit/s", "gbps": "Gbit/s", "tbps": "Tbit/s",
    "gb/s": "GB/s", "gbit": "Gbit/s", "sec": "s", "seconds": "s", "usec": "us", "msec": "ms", "nsec": "ns",
    "minutes": "min", "hz": "/s", "rps": "req/s", "qps": "req/s", "requests/s": "req/s", "bytes": "B",
    "byte": "B", "tflops": "Tflop/s", "pflops": "Pflop/s", "percent": "%", "k": "kB", "m": "MB", "g": "GB",
}  # fmt: skip
"""Units that people write and that are not ours; only ever suggested, never guessed."""

_QUANTITY = re.compile(r"([+-]?)([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE]([+-]?[0-9]{1,3}))?\s*(\S*)")
_MOST_CHARACTERS = 64
_LARGEST_EXPONENT = 30


def parse_bytes(text: str) -> int:
    """A size in whole bytes: "16 MB" is 16,000,000 and "16 MiB" 16,777,216. Raises UnitError."""
    value = _read(text, BYTES)
    if value.denominator != 1:
        raise UnitError(
            f"{_quoted(text)} is no whole number of bytes ({float(value):g} B); "
            f"write for example '{math.ceil(value)} B'"
        )
    return int(value)


def parse_bytes_per_s(text: str) -> float:
    """A rate in bytes/s; bits and bytes are both understood. Raises UnitError."""
    return float(_read(text, BYTES_PER_S))


def parse_seconds(text: str) -> float:
    """A time in seconds. Raises UnitError."""
    return float(_read(text, SECONDS))


def parse_per_s(text: str) -> float:
    """A frequency in 1/s: "5 /s", "5 req/s", "300 /min". Raises UnitError."""
    return float(_read(text, PER_S))


def parse_flop_per_s(text: str) -> float:
    """An arithmetic rate in flop/s. Raises UnitError."""
    return float(_read(text, FLOP_PER_S))


def parse_fraction(text: str) -> float:
    """A share: "0.1 %" and "0.001" are the same. Raises UnitError."""
    return float(_read(text, FRACTION))


def _quoted(value: object) -> str:
    shown = str(value)
    return f"'{shown}'" if len(shown) <= _MOST_CHARACTERS else f"'{shown[:_MOST_CHARACTERS]}…'"


def _read(text: str, dimension: Dimension) -> Fraction:
    """The quantity in SI units, exactly; never negative."""
    shown, example = _quoted(text), f"write for example '{dimension.example}'"
    if len(text) > _MOST_CHARACTERS:
        raise UnitError(f"{shown} is too long for a {dimension.name}; {example}")
    match = _QUANTITY.fullmatch(text.strip())
    if match is None:
        raise UnitError(f"{shown} is no {dimension.name}: a number and a unit are needed; {example}")
    sign, digits, exponent, unit = match.groups()
    if abs(int(exponent or 0)) > _LARGEST_EXPONENT:
        raise UnitError(f"{shown} has an exponent beyond ±{_LARGEST_EXPONENT}; {example}")
    number = Fraction(digits) * Fraction(10) ** int(exponent or 0)
    if sign == "-" and number:
        raise UnitError(f"{shown} is negative; a {dimension.name} is at least {dimension.zero}")
    return number * _factor(unit.replace("μ", "µ"), shown, number, dimension)


def _factor(unit: str, shown: str, number: Fraction, dimension: Dimension) -> Fraction:
    if unit in dimension.units:
        return dimension.units[unit]
    if not unit:
        if dimension is FRACTION:
            return Fraction(1)
        remedy = f"write '{dimension.zero}'" if number == 0 else f"write for example '{dimension.example}'"
        raise UnitError(f"{shown} has no unit; {remedy}")
    for other in _ALL:
        if other is not dimension and unit in other.units:
            raise UnitError(
                f"{shown} is a {other.name}, but a {dimension.name} is needed; "
                f"write for example '{dimension.example}'"
            )
    raise UnitError(f"{shown} has the unknown unit '{unit}'; {_suggestion(unit, dimension)}")


def _suggestion(unit: str, dimension: Dimension) -> str:
    habit = _HABITS.get(unit.lower())
    folded = {known.lower(): known for known in dimension.units}
    close = get_close_matches(unit.lower(), list(folded), n=1, cutoff=0.6)
    if habit in dimension.units:
        return f"did you mean '{habit}'?"
    if unit.lower() in folded:
        return f"did you mean '{folded[unit.lower()]}'?"
    if close:
        return f"did you mean '{folded[close[0]]}'?"
    return f"a {dimension.name} has one of {', '.join(dimension.units)}"


def format_seconds(time_s: float) -> str:
    """A time for people: "1.5 µs", "2.25 ms", "3.2 min"."""
    if abs(time_s) >= 3600 and math.isfinite(time_s):
        return f"{_four_digits(time_s / 3600)} h"
    if abs(time_s) >= 120 and math.isfinite(time_s):
        return f"{_four_digits(time_s / 60)} min"
    return _scaled(time_s, (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6), ("ns", 1e-9)))


def format_bytes(size_bytes: float) -> str:
    """A size for people, in decimal units: "16 MB"."""
    return _scaled(size_bytes, (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("B", 1.0)))


def format_bytes_per_s(rate_bytes_per_s: float) -> str:
    """A rate for people, in bits as networks are sold: "400 Gbit/s"."""
    bits = (("Tbit/s", 1e12), ("Gbit/s", 1e9), ("Mbit/s", 1e6), ("kbit/s", 1e3), ("bit/s", 1.0))
    return _scaled(rate_bytes_per_s * 8, bits)


def format_count(count: float) -> str:
    """A number of things for people: "950", "1.2 M"."""
    return _scaled(count, (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3), ("", 1.0))).strip()


def _scaled(value: float, units: tuple[tuple[str, float], ...]) -> str:
    """The value in the largest unit in which its four digits are at least 1."""
    if not math.isfinite(value) or value == 0:
        base = next(unit for unit, scale in units if scale == 1.0)
        return f"{value:g} {base}"
    for unit, scale in units:
        if abs(float(f"{value / scale:.4g}")) >= 1:
            return f"{_four_digits(value / scale)} {unit}"
    unit, scale = units[-1]
    return f"{_four_digits(value / scale)} {unit}"


def _four_digits(value: float) -> str:
    """Four significant digits, no exponent where it can be helped: 1235, 16, 0.25."""
    shown = f"{value:.4g}"
    return f"{float(shown):.0f}" if "e+" in shown and abs(value) < 1e15 else shown
