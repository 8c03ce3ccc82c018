"""What a YAML text may hold, and how fast and with which words the rest is refused."""

import os
import time

import pytest

from sim.scenario.document import LARGEST_FILE_BYTES, parse_document, read_text
from sim.scenario.errors import ScenarioError


def refused(text):
    with pytest.raises(ScenarioError) as caught:
        parse_document(text, "x.yaml")
    return str(caught.value)


def test_places_of_keys_and_values():
    root = parse_document("a: 1\nb:\n  c: [x,\n      y]\n", "x.yaml")
    assert root.plain() == {"a": 1, "b": {"c": ["x", "y"]}}
    assert str(root.key_places["b"]) == "x.yaml:2"
    inner = root.child("b").child("c")
    assert [str(item.place) for item in inner.sequence] == ["x.yaml:3", "x.yaml:4"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("0x1f", 31),
        ("1e3", 1000.0),
        ("'1'", "1"),
        ("yes", "yes"),
        ("true", True),
        ("~", None),
        ("1.5 ms", "1.5 ms"),
        ("2024-01-01", "2024-01-01"),
        ("-3", -3),
        ("1_000", 1000),
        ("0o17", 15),
        ("0", 0),
        ("'010'", "010"),
        ("010.5", 10.5),
        ("12:30", "12:30"),
        ("=", "="),
    ],
)
def test_scalars(text, value):
    found = parse_document(f"a: {text}", "x.yaml").child("a").value
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\nb: 2\na: 3\n", "x.yaml:3: a: the key 'a' is given twice, first on line 1; keep one"),
        ("a: {b: 1, b: 2}", "x.yaml:1: b: the key 'b' is given twice"),
        ("a: !!python/object/apply:os.system [ls]", "YAML tags are not read; remove the tag"),
        ("a: !mine 3", "remove the tag '!mine'"),
        ("!!map {a: 1}", "YAML tags are not read"),
        ("!!str a: 1", "YAML tags are not read"),
        ("a: &l {x: 1}\nb: {<<: *l}\n", "x.yaml:2: merge keys (<<) are not read"),
        ("a: *nowhere", "x.yaml:1: the alias *nowhere refers to no anchor above it"),
        ("a: &a [*a]", "the alias *a refers to what it is a part of"),
        ("? [a]\n: 1\n", "a key must be a plain word"),
        ("3: 1", "the key '3' is not a word; if it is meant, put it in quotes"),
        (": 1", "an empty key"),
        ("&k a: 1", "a key cannot carry an anchor"),
        ("%YAML 1.1\n---\na: 1\n", "YAML directives (%) are not read"),
        ("a: 1\n---\nb: 1\n", "x.yaml:2: a second document starts here"),
        ("a: .nan", "'.nan' is not a finite number"),
        ("a: -.INF", "'-.INF' is not a finite number"),
        ("a: 1e999", "'1e999' is not a finite number"),
        ("a: " + "9" * 5000, "has too many digits"),
        ("a: 010", "x.yaml:1: '010' begins with 0: some read it as octal, some as decimal; write 10, or put it in"),
        ("a: [1, -0_9]", "'-0_9' begins with 0"),
        (
            "a:\n\tb: 1",
            "x.yaml:2: is not YAML: found character '\\t' that cannot start any token; indent with spaces",
        ),
        ("a: why: b", "put text with a colon in quotes"),
        ("a: [1,\nb: 2", "x.yaml:2: is not YAML"),
        ("a: 1\nb: \x07", "x.yaml:2: holds a control character"),
        ("", "is empty"),
        ("# nothing\n", "is empty"),
    ],
)
def test_refusals(text, words):
    assert words in refused(text)


def test_aliases_are_read():
    root = parse_document("a: &l {x: 1}\nb: *l\n", "x.yaml")
    assert root.plain() == {"a": {"x": 1}, "b": {"x": 1}}


BOMBS = {
    "a billion laughs": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)),
    "deep nesting": "a: " + "[" * 100_000,
    "deep blocks": "".join(" " * i + "a:\n" for i in range(700)),
    "many values": "a: [" + "1," * 100_000 + "]",
}


@pytest.mark.parametrize("text", BOMBS.values(), ids=BOMBS)
def test_bombs_are_refused_quickly(text):
    start_s = time.perf_counter()
    assert "deeper" in refused(text) or "more than" in refused(text)
    assert time.perf_counter() - start_s < 8


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty; a scenario needs at least name, cluster and workloads"),
        (b" \n\n", "is empty"),
        (b"\x7fELF\x00\x01", "is a binary file"),
        (b"name: x\nquestion: caf\xe9\n", "scenario.yaml:2: byte 0xe9 is not UTF-8; save the file as UTF-8"),
        ("name: x".encode("utf-16"), "is a binary file; a scenario is YAML text in UTF-8"),
        (b"a" * (LARGEST_FILE_BYTES + 1), "is larger than 256 KiB"),
    ],
)
def test_files_that_are_no_text(tmp_path, content, words):
    path = tmp_path / "scenario.yaml"
    path.write_bytes(content)
    with pytest.raises(ScenarioError) as caught:
        read_text(path)
    assert words in str(caught.value)


def test_a_byte_order_mark_is_no_text(tmp_path):
    path = tmp_path / "scenario.yaml"
    path.write_bytes(b"\xef\xbb\xbfname: x\n")
    assert read_text(path) == "name: x\n"


def test_paths_that_are_no_file(tmp_path, monkeypatch):
    def words(path):
        with pytest.raises(ScenarioError) as caught:
            read_text(path)
        return str(caught.value)

    assert "is a directory" in words(tmp_path)
    assert "there is no such file" in words(tmp_path / "absent.yaml")
    (tmp_path / "here.yaml").write_text("a: 1")
    assert f"did you mean '{tmp_path / 'here.yaml'}'?" in words(tmp_path / "here")
    os.mkfifo(tmp_path / "pipe.yaml")
    assert "is not a regular file" in words(tmp_path / "pipe.yaml")
    (tmp_path / "loop.yaml").symlink_to(tmp_path / "loop.yaml")
    assert words(tmp_path / "loop.yaml")
    assert words(tmp_path / ("x" * 5000))
