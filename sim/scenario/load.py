"""Loading a scenario file: read, merge, validate each variant, and say everything that is wrong at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sim.scenario.document import Node, mapping_node, parse_document, read_text
from sim.scenario.errors import Place, Problem, ScenarioError, merged_problems
from sim.scenario.explain import problem_at, problems_of
from sim.scenario.merge import merged, setting_place, with_setting
from sim.scenario.schema import MOST_SEEDS, Scenario, ScenarioFile
from sim.scenario.variants import ONLY_VARIANT, variants_of


@dataclass(frozen=True, slots=True)
class LoadedScenario:
    """A scenario ready to run.

    seeds        seed … seed + N − 1
    variants     (label, scenario), in the order of `compare`; one named `run` without it
    axes         of a `compare` with axes: names of each axis' entries; the variants are their product, the last axis
                 fastest. sides: which side an entry of the last axis is on
    source_text  the file as read; `overrides` and `is_small` say what was changed for this run
    """

    name: str
    question: str | None
    answer: str | None
    seeds: list[int]
    variants: list[tuple[str, Scenario]]
    source_text: str
    path: Path
    overrides: tuple[str, ...] = ()
    is_small: bool = False
    trees: dict[str, Node] = field(default_factory=dict, repr=False)
    axes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    sides: dict[str, str] = field(default_factory=dict)

    def error(self, variant: str, path: Sequence[str | int], sentence: str) -> ScenarioError:
        """An error about a part of a variant, found after loading, with the line of that part.

        path: keys of the file and positions in lists, such as ("workloads", 0, "kv", "num_blocks").
        """
        label = None if len(self.variants) == 1 else variant
        return ScenarioError([problem_at(self.trees[variant], path, sentence, label)])


def load_scenario(
    path: str | Path,
    overrides: Sequence[str] = (),
    small: bool = False,
    seed: int | None = None,
    seeds: int | None = None,
) -> LoadedScenario:
    """Read a scenario file and validate every variant.

    The order: the file, its `small:` block (with small), each `--set` of overrides, `seed` and `seeds`, and
    then each entry of `compare` over the result. So `--set` reaches what `small` has set, and a variant has
    the last word; a setting that no variant keeps is refused. With small the file as written must be valid too:
    a bad value is no better for being replaced.

    Files that the scenario names are looked for beside it, then in the working directory.
    Raises ScenarioError with everything that is wrong.
    """
    path = Path(path)
    text = read_text(path)
    root = _mapping(parse_document(text, str(path)), "the file")
    changes = root.child("small")
    if changes is not None and changes.value is not None:
        _mapping(changes, "small")
        if small:
            _validated(variants_of(root).variants, path.parent)
            root = merged(root, changes)
    elif small:
        raise ScenarioError.at(Place(str(path)), "has no `small:` block; add one, or leave --small out")
    for setting in overrides:
        root = with_setting(root, setting)
    for key, number in (("seed", seed), ("seeds", seeds)):
        if number is not None:
            option = Place(f"--{key}")
            root = merged(root, mapping_node({key: Node(number, option)}, option, {key: option}))
    compared = variants_of(root)
    variants = compared.variants
    _check_settings(overrides, [node for _, node in variants])
    valid = _validated(variants, path.parent)
    first = valid[0][1]
    return LoadedScenario(
        name=first.name,
        question=first.question,
        answer=first.answer,
        seeds=[first.seed + i for i in range(first.seeds or 1)],
        variants=valid,
        source_text=text,
        path=path,
        overrides=tuple(overrides),
        is_small=small,
        trees=dict(variants),
        axes=compared.axes,
        sides=compared.sides,
    )


def _validated(variants: Sequence[tuple[str, Node]], folder: Path) -> list[tuple[str, Scenario]]:
    """Every variant as the schema reads it. Raises ScenarioError with everything that is wrong."""
    valid: list[tuple[str, Scenario]] = []
    problems: list[tuple[str, list[Problem]]] = []
    for label, node in variants:
        try:
            valid.append((label, Scenario.model_validate(node.plain(), context={"folder": folder})))
            problems.append((label, []))
        except ValidationError as error:
            problems.append((label, problems_of(error, node, ScenarioFile)))
    found = merged_problems(problems)
    if found:
        raise ScenarioError(found)
    return valid


def _check_settings(overrides: Sequence[str], variants: Sequence[Node]) -> None:
    """Refuses a setting of which nothing is left in any variant. Which variants there are is always left."""
    kept = {source for variant in variants for source in _sources(variant)}
    for setting in overrides:
        place = setting_place(setting)
        if place.source not in kept and not setting.startswith("compare="):
            raise ScenarioError.at(place, "has no effect: every variant, or a later --set, sets it again")


def _sources(node: Node) -> Iterator[str]:
    """Where the values of a tree come from; empty mappings and lists count as values."""
    children = list(node.mapping.values()) if node.mapping is not None else list(node.sequence or ())
    if not children:
        yield node.place.source
    for child in children:
        yield from _sources(child)


def _mapping(node: Node, what: str) -> Node:
    if node.mapping is None:
        raise ScenarioError.at(node.place, f"{what} is not a mapping; write key: value pairs")
    return node


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a scenario file, for editors."""
    schema = ScenarioFile.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "Spindle scenario"
    _write_defaults_with_units(schema)
    return schema


_SI_UNIT = {"time": "s", "size": "B", "rate": "B/s", "frequency": "/s"}


def _write_defaults_with_units(schema: Any) -> None:
    """Defaults of quantities as a file would give them: '4096 B', not 4096."""
    if isinstance(schema, list):
        for item in schema:
            _write_defaults_with_units(item)
    elif isinstance(schema, dict):
        default, unit = schema.get("default"), _SI_UNIT.get(str(schema.get("title")))
        if unit is not None and schema.get("type") == "string" and isinstance(default, int | float):
            schema["default"] = f"{default:g} {unit}"
        for item in schema.values():
            _write_defaults_with_units(item)


__all__ = ["MOST_SEEDS", "ONLY_VARIANT", "LoadedScenario", "json_schema", "load_scenario"]
