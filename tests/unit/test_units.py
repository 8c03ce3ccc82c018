"""Quantities: what is read exactly, what is refused, and with which words."""

import math
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import units
from models.units import UnitError


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0 B", 0),
        ("1 B", 1),
        ("16 MB", 16_000_000),
        ("16 MiB", 16 * 2**20),
        ("1.5 kB", 1500),
        ("80 GiB", 80 * 2**30),
        ("2 TB", 2 * 10**12),
        ("1e3 kB", 10**6),
        (" 64KiB ", 65536),
        ("0.1 GB", 10**8),
        ("+3 B", 3),
        (".5 KiB", 512),
    ],
)
def test_sizes_are_whole_bytes(text, size_bytes):
    assert units.parse_bytes(text) == size_bytes
    assert isinstance(units.parse_bytes(text), int)


@pytest.mark.parametrize(
    ("text", "bytes_per_s"),
    [
        ("400 Gbit/s", 50e9),
        ("8 bit/s", 1.0),
        ("1 Tbit/s", 125e9),
        ("50 GB/s", 50e9),
        ("900 GB/s", 900e9),
        ("1 GiB/s", 2**30),
        ("0.1 Gbit/s", 12.5e6),
        ("3 kbit/s", 375.0),
    ],
)
def test_rates_are_exact(text, bytes_per_s):
    assert units.parse_bytes_per_s(text) == bytes_per_s


@pytest.mark.parametrize(
    ("text", "time_s"),
    [
        ("500 ns", 500e-9),
        ("2 us", 2e-6),
        ("2 µs", 2e-6),
        ("2 μs", 2e-6),
        ("1.5 ms", 1.5e-3),
        ("0 s", 0.0),
        ("5 min", 300.0),
        ("0.3 us", 3e-7),
        ("1 h", 3600.0),
    ],
)
def test_times_are_the_nearest_float(text, time_s):
    """Multiplying by 1e-9 would miss some of these by a rounding; a fraction does not."""
    assert units.parse_seconds(text) == time_s


def test_other_dimensions():
    assert units.parse_per_s("5 /s") == units.parse_per_s("5 req/s") == units.parse_per_s("300 /min") == 5.0
    assert units.parse_flop_per_s("989 Tflop/s") == 989e12
    assert units.parse_fraction("0.1 %") == units.parse_fraction("0.001") == 0.001


@pytest.mark.parametrize(
    ("parse", "text", "words"),
    [
        (units.parse_bytes_per_s, "400", "'400' has no unit; write for example '400 Gbit/s'"),
        (units.parse_seconds, "0", "'0' has no unit; write '0 s'"),
        (units.parse_bytes, "0.0", "write '0 B'"),
        (units.parse_bytes_per_s, "400 Gbps", "unknown unit 'Gbps'; did you mean 'Gbit/s'?"),
        (units.parse_bytes_per_s, "400 gbit/s", "did you mean 'Gbit/s'?"),
        (units.parse_bytes, "16 KB", "did you mean 'kB'?"),
        (units.parse_bytes, "16 mb", "did you mean 'MB'?"),
        (units.parse_bytes, "3 apples", "a size has one of B, kB"),
        (units.parse_bytes, "400 Gbit/s", "is a rate, but a size is needed"),
        (units.parse_seconds, "5 /s", "is a frequency, but a time is needed"),
        (units.parse_per_s, "5 Hz", "did you mean '/s'?"),
        (units.parse_bytes, "1.5 B", "no whole number of bytes (1.5 B); write for example '2 B'"),
        (units.parse_bytes, "0.0001 KiB", "no whole number of bytes"),
        (units.parse_bytes, "-1 MB", "negative"),
        (units.parse_seconds, "nan s", "a number and a unit are needed"),
        (units.parse_seconds, "inf", "a number and a unit are needed"),
        (units.parse_seconds, "", "a number and a unit are needed"),
        (units.parse_seconds, "1e999 s", "exponent beyond"),
        (units.parse_seconds, "1e9999 s", "no time"),
        (units.parse_seconds, "1" * 5000 + " s", "too long"),
        (units.parse_seconds, "1,5 ms", "'1,5 ms' is no time"),
        (units.parse_seconds, "1 m s", "a number and a unit"),
        (units.parse_seconds, "٣ s", "a number and a unit are needed"),
    ],
)
def test_refusals_name_the_value_and_the_remedy(parse, text, words):
    with pytest.raises(UnitError) as caught:
        parse(text)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (units.format_seconds(1.5e-6), "1.5 µs"),
        (units.format_seconds(0.0), "0 s"),
        (units.format_seconds(2.25e-3), "2.25 ms"),
        (units.format_seconds(999.96e-6), "1 ms"),
        (units.format_seconds(192.0), "3.2 min"),
        (units.format_seconds(1e-12), "0.001 ns"),
        (units.format_seconds(math.nan), "nan s"),
        (units.format_bytes(16_000_000), "16 MB"),
        (units.format_bytes(512), "512 B"),
        (units.format_bytes_per_s(50e9), "400 Gbit/s"),
        (units.format_count(950), "950"),
        (units.format_count(1_200_000), "1.2 M"),
        (units.format_seconds(7200), "2 h"),
        (units.format_bytes(12345e12), "12340 TB"),
    ],
)
def test_formats(shown, expected):
    assert shown == expected


@given(st.floats(1e-9, 1e5))
def test_what_is_written_reads_back(time_s):
    """Four digits: a relative error of at most 0.05 %."""
    assert units.parse_seconds(units.format_seconds(time_s)) == pytest.approx(time_s, rel=5.1e-4)


@given(st.integers(0, 10**15))
def test_sizes_and_rates_read_back(size_bytes):
    assert units.parse_bytes(units.format_bytes(size_bytes)) == pytest.approx(size_bytes, rel=5.1e-4)
    rate = units.format_bytes_per_s(size_bytes)
    assert units.parse_bytes_per_s(rate) == pytest.approx(size_bytes, rel=5.1e-4)


@given(st.text(max_size=100))
def test_any_text_is_read_or_refused(text):
    for parse in (units.parse_bytes, units.parse_bytes_per_s, units.parse_seconds, units.parse_fraction):
        with suppress(UnitError):
            assert math.isfinite(parse(text))
