"""The variants of a scenario file: a list of them, or the product of several lists, each merged over the scenario."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product

from sim.scenario.document import Node, mapping_node
from sim.scenario.errors import Place, Problem, ScenarioError, quoted
from sim.scenario.merge import item_name, merged

ONLY_VARIANT = "run"
MOST_VARIANTS = 1000
MOST_VALUES_IN_VARIANTS = 500_000
LONGEST_NAME = 120
_NOT_IN_VARIANTS = ("seed", "seeds", "question", "answer", "compare", "small")
_AXIS = re.compile(r"[a-z][a-z0-9_]*")
_REMEDY = (
    "write for example `- {name: spray, paths: {policy: spray}}`, or several such lists under names of their own, or "
    "leave it out to run the scenario alone"
)


@dataclass(frozen=True, slots=True)
class Compared:
    """What `compare` makes of a scenario.

    variants   (label, tree); the place of every part survives
    axes       names of each axis' entries; the variants are their product, the last axis fastest; empty for a list
    sides      side of each entry of the last axis that names one
    """

    variants: list[tuple[str, Node]]
    axes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    sides: dict[str, str] = field(default_factory=dict)


def variants_of(root: Node) -> Compared:
    """Each entry of `compare`, or each combination of its axes' entries in their order, merged over the rest.

    Raises ScenarioError with everything that is wrong with `compare`.
    """
    base = _without(root, "compare", "small")
    compare = root.child("compare")
    if compare is None:
        return Compared([(ONLY_VARIANT, base)])
    place = root.key_places["compare"]
    if any(node.sequence is not None for node in (compare.mapping or {}).values()):
        return _crossed(base, compare, place)
    if not compare.sequence:
        raise ScenarioError.at(place, f"compare is a list of variants; {_REMEDY}", "compare")
    _check_number(len(compare.sequence), place)
    entries = _entries(compare.sequence, "compare")
    if wrong := [p for name, entry in entries for p in _wrong_side(entry, f"compare.{name}", is_last=False)]:
        raise ScenarioError(wrong)
    found = [(name, merged(base, _without(entry, "name"))) for name, entry in entries]
    _check_size(found, place)
    return Compared(found)


def _crossed(base: Node, compare: Node, place: Place) -> Compared:
    """The product of several lists of entries."""
    problems: list[Problem] = []
    axes: dict[str, list[tuple[str, Node]]] = {}
    for i, (axis, node) in enumerate((compare.mapping or {}).items()):
        where, key_place = f"compare.{axis}", compare.key_places[axis]
        if not _AXIS.fullmatch(axis):
            sentence = f"'{axis}' is no name of an axis; write a word in lower case, such as oversubscription"
            problems.append(Problem(key_place, where, sentence))
        elif not node.sequence:
            problems.append(Problem(key_place, where, f"an axis is a list of variants; {_REMEDY}"))
        else:
            try:
                axes[axis] = _entries(node.sequence, where)
            except ScenarioError as error:
                problems += error.problems
            else:
                is_last = i == len(compare.mapping or {}) - 1
                problems += [p for name, entry in axes[axis] for p in _wrong_side(entry, f"{where}.{name}", is_last)]
    if problems:
        raise ScenarioError(problems)
    number = 1
    for entries in axes.values():
        number *= len(entries)
    _check_number(number, place)
    variants: dict[str, Node] = {}
    for combination in product(*axes.values()):
        label = ", ".join(name for name, _ in combination)
        if label in variants:
            raise ScenarioError.at(place, f"two combinations are named '{label}'; name the entries apart", "compare")
        tree = base
        for _, entry in combination:
            tree = merged(tree, _without(entry, "name", "side"))
        variants[label] = tree
    _check_size(list(variants.items()), place)
    last = list(axes.values())[-1]
    sides = {name: str(side.value) for name, entry in last if (side := entry.child("side")) is not None}
    return Compared(
        list(variants.items()), {axis: tuple(name for name, _ in entries) for axis, entries in axes.items()}, sides
    )


def _wrong_side(entry: Node, field: str, is_last: bool) -> Iterator[Problem]:
    side = entry.child("side")
    if side is None:
        return
    if not is_last:
        sentence = "only the entries of the last axis of `compare` take a side; leave it out"
        yield Problem(entry.key_places["side"], f"{field}.side", sentence)
    elif not isinstance(side.value, str) or not _is_name(side.value):
        sentence = f"{quoted(side.plain())} is no side; write one line of text, such as spraying"
        yield Problem(side.place, f"{field}.side", sentence)


def _check_number(number: int, place: Place) -> None:
    if number > MOST_VARIANTS:
        raise ScenarioError.at(place, f"more than {MOST_VARIANTS} variants", "compare")


def _check_size(variants: Sequence[tuple[str, Node]], place: Place) -> None:
    if sum(node.num_values for _, node in variants) > MOST_VALUES_IN_VARIANTS:
        sentence = f"its variants hold more than {MOST_VALUES_IN_VARIANTS} values; split the file"
        raise ScenarioError.at(place, sentence)


def _entries(sequence: Sequence[Node], where: str) -> list[tuple[str, Node]]:
    """The entries of a list by their names. Raises ScenarioError with everything that is wrong."""
    problems: list[Problem] = []
    entries: dict[str, Node] = {}
    for i, entry in enumerate(sequence):
        label = item_name(entry)
        wrong = _wrong_entry(entry, label, f"{where}.{label}" if label else f"{where}[{i}]", entries)
        problems += wrong
        if not wrong:
            entries[str(label)] = entry
    if problems:
        raise ScenarioError(problems)
    return list(entries.items())


def _wrong_entry(entry: Node, label: str | None, field: str, others: dict[str, Node]) -> list[Problem]:
    if entry.mapping is None:
        sentence = f"{quoted(entry.plain())} is not a mapping; write name and what it changes"
        return [Problem(entry.place, field, sentence)]
    name = entry.child("name")
    if name is None:
        return [Problem(entry.place, field, "has no name; write for example `name: spray`")]
    if label is None:
        return [Problem(name.place, f"{field}.name", f"{quoted(name.plain())} is not text; put it in quotes")]
    if not _is_name(label):
        sentence = f"a variant's name is one line of at most {LONGEST_NAME} characters"
        return [Problem(name.place, f"{field}.name", sentence)]
    if label in others:
        return [Problem(name.place, field, f"two variants are named '{label}'; give each its own name")]
    return [
        Problem(
            entry.key_places[key], f"{field}.{key}", f"'{key}' is the same for all variants; move it to the top"
        )
        for key in _NOT_IN_VARIANTS
        if key in entry.mapping
    ]  # fmt: skip


def _is_name(text: str) -> bool:
    return bool(text.strip()) and text.isprintable() and len(text) <= LONGEST_NAME


def _without(node: Node, *keys: str) -> Node:
    entries = {key: child for key, child in (node.mapping or {}).items() if key not in keys}
    return mapping_node(entries, node.place, {key: node.key_places[key] for key in entries})
