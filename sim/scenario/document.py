"""A YAML document as a tree that remembers the place of every key and value.

Only plain data gets in: no tags, no merge keys, no key twice, aliases within a limit. The tree is
immutable, so merging shares parts instead of copying them, and each part keeps its place.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import ScalarNode
from ruamel.yaml.reader import ReaderError

from sim.scenario.errors import Place, ScenarioError, quoted

LARGEST_FILE_BYTES = 256 * 1024
DEEPEST_NESTING = 40
MOST_VALUES = 20_000
"""Values in a document, aliases expanded."""

Scalar = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Node:
    """A scalar, a mapping (name → Node) or a sequence (tuple of Nodes).

    key_places   of a mapping: where each key was written
    num_values   nodes in this tree, itself included, aliases expanded
    """

    value: Scalar | tuple[Node, ...] | Mapping[str, Node]
    place: Place
    key_places: Mapping[str, Place] = field(default_factory=dict)
    num_values: int = 1

    @property
    def mapping(self) -> Mapping[str, Node] | None:
        return self.value if isinstance(self.value, Mapping) else None

    @property
    def sequence(self) -> tuple[Node, ...] | None:
        return self.value if isinstance(self.value, tuple) else None

    def child(self, key: str) -> Node | None:
        """The value of a key; None where this is no mapping or has no such key."""
        return None if self.mapping is None else self.mapping.get(key)

    def plain(self) -> Any:
        """Dicts, lists and scalars, without places."""
        if self.mapping is not None:
            return {key: node.plain() for key, node in self.mapping.items()}
        if self.sequence is not None:
            return [node.plain() for node in self.sequence]
        return self.value


def mapping_node(entries: Mapping[str, Node], place: Place, key_places: Mapping[str, Place]) -> Node:
    """A mapping; every key needs its place."""
    return Node(dict(entries), place, dict(key_places), 1 + sum(n.num_values for n in entries.values()))


def sequence_node(items: tuple[Node, ...], place: Place) -> Node:
    return Node(items, place, {}, 1 + sum(n.num_values for n in items))


def read_text(path: Path) -> str:
    """The text of a scenario file. Raises ScenarioError unless it is readable UTF-8 text of moderate size."""
    place = Place(str(path))
    try:
        if path.is_dir():
            raise ScenarioError.at(place, "is a directory; give the scenario file in it")
        if not path.exists():
            raise ScenarioError.at(place, f"there is no such file{_neighbour(path)}")
        if not path.is_file():
            raise ScenarioError.at(place, "is not a regular file; save the scenario as a .yaml file")
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ScenarioError.at(place, f"cannot be read: {reason}") from error
    if len(content) > LARGEST_FILE_BYTES:
        raise ScenarioError.at(
            place,
            f"is larger than {LARGEST_FILE_BYTES // 1024} KiB; put data into files that the scenario names",
        )
    if b"\0" in content:
        raise ScenarioError.at(place, "is a binary file; a scenario is YAML text in UTF-8")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ScenarioError.at(
            Place(str(path), line), f"byte 0x{content[error.start]:02x} is not UTF-8; save the file as UTF-8"
        ) from error
    if not text.strip():
        raise ScenarioError.at(place, "is empty; a scenario needs at least name, cluster and workloads")
    return text


def _neighbour(path: Path) -> str:
    """A file that the user may have meant: the same name with .yaml."""
    for other in (path.with_name(f"{path.name}.yaml"), Path("scenarios") / path.name):
        if other.is_file():
            return f"; did you mean '{other}'?"
    return ""


def parse_document(text: str, source: str, *, is_option: bool = False) -> Node:
    """The tree of a YAML text. Raises ScenarioError with the line.

    source: what errors call it. With is_option it is a command-line option, which has no lines.
    """
    try:
        root = _Builder(source, is_option).build(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = None if mark is None or is_option else mark.line + 1
        problem = (error.problem or error.context or "cannot be read").strip()
        remedy = _yaml_remedy(problem)
        opened = error.context_mark
        if opened is not None and line is not None and opened.line + 1 < line:
            problem += f", in what starts on line {opened.line + 1}"
        raise ScenarioError.at(Place(source, line), f"is not YAML: {problem}{remedy}") from error
    except ReaderError as error:
        line = None if is_option else text[: int(error.position)].count("\n") + 1
        raise ScenarioError.at(
            Place(source, line), "holds a control character, which YAML does not allow; delete it"
        ) from error
    except (YAMLError, RecursionError, ValueError) as error:
        problem = " ".join(str(error).split())
        raise ScenarioError.at(Place(source), f"is not YAML: {problem}") from error
    if root is None:
        raise ScenarioError.at(
            Place(source), "is empty; a scenario needs at least name, cluster and workloads"
        )
    return root


def _yaml_remedy(problem: str) -> str:
    if "\\t" in problem:
        return "; indent with spaces instead of tabs"
    if "mapping values are not allowed" in problem:
        return "; put text with a colon in quotes, and check the indentation"
    if "expected <block end>" in problem or "expected the node content" in problem:
        return "; check the indentation and brackets around this line"
    return ""


class _Builder:
    """Builds the tree from parser events, so that every limit holds while the text is read."""

    def __init__(self, source: str, is_option: bool) -> None:
        self.source, self.is_option = source, is_option
        self.yaml = YAML(typ="safe", pure=True)
        self.anchors: dict[str, Node | None] = {}
        self.num_values = 0

    def place(self, event: Any) -> Place:
        return Place(self.source, None if self.is_option else event.start_mark.line + 1)

    def build(self, text: str) -> Node | None:
        events: Iterator[Any] = iter(self.yaml.parse(io.StringIO(text)))
        root: Node | None = None
        num_documents = 0
        for event in events:
            kind = type(event).__name__
            if kind == "DocumentStartEvent":
                num_documents += 1
                if event.version is not None or event.tags:
                    raise ScenarioError.at(
                        self.place(event), "YAML directives (%) are not read; remove the line"
                    )
                if num_documents > 1:
                    raise ScenarioError.at(
                        self.place(event), "a second document starts here (---); write one scenario per file"
                    )
            elif kind not in ("StreamStartEvent", "StreamEndEvent", "DocumentEndEvent"):
                root = self.node(event, events, 0)
        return root

    def node(self, event: Any, events: Iterator[Any], depth: int) -> Node:
        kind = type(event).__name__
        place = self.place(event)
        if depth > DEEPEST_NESTING:
            raise ScenarioError.at(
                place,
                f"values are nested deeper than {DEEPEST_NESTING} levels; no scenario needs it",
            )
        if kind == "AliasEvent":
            return self.alias(event, place)
        if event.tag is not None:
            raise ScenarioError.at(place, f"YAML tags are not read; remove the tag {quoted(event.tag)}")
        self.count(1, place)
        if event.anchor is not None:
            self.anchors[event.anchor] = None
        if kind == "ScalarEvent":
            node = Node(self.scalar(event, place), place)
        elif kind == "SequenceStartEvent":
            items = []
            while type(inner := next(events)).__name__ != "SequenceEndEvent":
                items.append(self.node(inner, events, depth + 1))
            node = sequence_node(tuple(items), place)
        else:
            node = self.mapping(events, place, depth)
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        return node

    def mapping(self, events: Iterator[Any], place: Place, depth: int) -> Node:
        entries: dict[str, Node] = {}
        key_places: dict[str, Place] = {}
        while type(event := next(events)).__name__ != "MappingEndEvent":
            key_place = self.place(event)
            key = self.key(event, key_place)
            value = self.node(next(events), events, depth + 1)
            if key in entries:
                raise ScenarioError.at(
                    key_place,
                    f"the key '{key}' is given twice, first on {_line(key_places[key])}; keep one",
                    key,
                )
            entries[key], key_places[key] = value, key_place
        return mapping_node(entries, place, key_places)

    def key(self, event: Any, place: Place) -> str:
        if type(event).__name__ != "ScalarEvent":
            raise ScenarioError.at(place, "a key must be a plain word, not a list, a mapping or an alias")
        if event.tag is not None:
            raise ScenarioError.at(place, f"YAML tags are not read; remove the tag {quoted(event.tag)}")
        if event.value == "<<" and event.implicit[0]:
            raise ScenarioError.at(
                place, "merge keys (<<) are not read; write the keys out, or use `compare` for variants"
            )
        if event.anchor is not None:
            raise ScenarioError.at(place, f"a key cannot carry an anchor; remove &{event.anchor}")
        value = self.scalar(event, place)
        if not isinstance(value, str) or not value:
            shown = "an empty key" if value in (None, "") else f"the key {quoted(value)}"
            raise ScenarioError.at(place, f"{shown} is not a word; if it is meant, put it in quotes")
        return value

    def alias(self, event: Any, place: Place) -> Node:
        if event.anchor not in self.anchors:
            raise ScenarioError.at(place, f"the alias *{event.anchor} refers to no anchor above it")
        node = self.anchors[event.anchor]
        if node is None:
            raise ScenarioError.at(place, f"the alias *{event.anchor} refers to what it is a part of")
        self.count(node.num_values, place)
        return node

    def count(self, num_values: int, place: Place) -> None:
        self.num_values += num_values
        if self.num_values > MOST_VALUES:
            raise ScenarioError.at(
                place, f"the document holds more than {MOST_VALUES} values with its aliases expanded"
            )

    def scalar(self, event: Any, place: Place) -> Scalar:
        text = event.value
        if not event.implicit[0]:
            return text
        kind = str(self.yaml.resolver.resolve(ScalarNode, text, event.implicit)).rpartition(":")[2]
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        if kind == "int":
            return _whole_number(text, place)
        if kind == "float":
            return _number(text, place)
        return text


def _line(place: Place) -> str:
    return f"line {place.line}" if place.line is not None else str(place)


def _whole_number(text: str, place: Place) -> int | str:
    digits = text.replace("_", "")
    if re.fullmatch(r"[+-]?0[0-9]+", digits):
        raise ScenarioError.at(
            place,
            f"{quoted(text)} begins with 0: some read it as octal, some as decimal; write {int(digits)}, or put it in "
            "quotes if it is text",
        )
    if len(digits) > 40:
        raise ScenarioError.at(place, f"{quoted(text)} has too many digits")
    prefix = re.match(r"[+-]?0[xob]", digits)
    try:
        return int(digits, 0) if prefix else int(digits)
    except ValueError:
        return text


def _number(text: str, place: Place) -> float | str:
    try:
        value = float(
            text.replace("_", "").replace(".nan", "nan").replace(".NaN", "nan").replace(".NAN", "nan")
        )
    except ValueError:
        if "inf" not in text.lower():
            return text
        value = math.inf
    if not math.isfinite(value):
        raise ScenarioError.at(
            place, f"{quoted(text)} is not a finite number; write one, or leave the key out"
        )
    return value
