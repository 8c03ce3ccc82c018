"""Pydantic's errors in the words of the scenario: the line, the field as `--set` addresses it, the remedy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from sim.scenario.document import Node
from sim.scenario.errors import Place, Problem, quoted, suggestion
from sim.scenario.merge import item_name

Where = Sequence[str | int]


def problems_of(error: ValidationError, root: Node, model: type[BaseModel]) -> list[Problem]:
    """Every error as a Problem, in the order of the lines."""
    problems: dict[Problem, None] = {}
    for found in error.errors(include_url=False):
        if found["type"] == "too_short" and found["input"]:
            continue  # the items are there, and each has its own error
        for path, sentence in _sentences(found, model):
            place, field = _locate(root, path, found["type"] == "extra_forbidden")
            problems[Problem(place, field, sentence)] = None
    return sorted(problems, key=lambda p: (p.place.source, p.place.line or 0))


def problem_at(root: Node, path: Where, sentence: str, variant: str | None = None) -> Problem:
    """A problem with what the path of keys and positions leads to, or with the last of it that is there."""
    place, field = _locate(root, path, is_about_key=False)
    return Problem(place, field, sentence, variant)


def _locate(root: Node, path: Where, is_about_key: bool) -> tuple[Place, str]:
    """Place and dotted field of a path; steps that are names of union members are no keys and are skipped."""
    node, place, shown = root, root.place, ""
    for i, part in enumerate(path):
        if isinstance(part, int):
            if node.sequence is None or part >= len(node.sequence):
                continue
            node = node.sequence[part]
            place = node.place
            name = item_name(node)
            shown = f"{shown}.{name}" if name else f"{shown}[{part}]"
        elif node.mapping is not None and part in node.mapping:
            child = node.mapping[part]
            is_scalar = child.mapping is None and child.sequence is None
            key_place = node.key_places[part]
            # A scalar may stand below its key; a block starts below it, and its key is what people look for.
            place = child.place if is_scalar and not (is_about_key and i == len(path) - 1) else key_place
            node = child
            shown = f"{shown}.{part}" if shown else part
        elif i == len(path) - 1:
            shown = f"{shown}.{part}" if shown else part
    return place, shown


def _sentences(found: Any, model: type[BaseModel]) -> Iterator[tuple[Where, str]]:
    """(path, sentence) of one pydantic error."""
    path, kind, value = found["loc"], found["type"], found["input"]
    context = found.get("ctx", {})
    if kind == "refused":
        for below, sentence in context["problems"]:
            yield (*path, *below), sentence
    elif kind == "extra_forbidden":
        part = _model_at(model, path[:-1])
        known = [] if part is None else [_key(name, field) for name, field in part.model_fields.items()]
        sentence = f"unknown key '{path[-1]}'; {suggestion(str(path[-1]), known)}"
        others = _siblings_with(model, path)
        yield path, f"{sentence}; '{path[-1]}' is a key of {', '.join(others)}" if others else sentence
    elif kind == "missing":
        yield path, f"is missing; {_example(model, path)}"
    elif kind == "union_tag_invalid":
        key = context["discriminator"].strip("'")
        tag = value.get(key) if isinstance(value, dict) else context["tag"]
        known = [name.strip("' ") for name in context["expected_tags"].split(",")]
        if isinstance(tag, str):
            yield (*path, key), f"unknown {key} {quoted(tag)}; {suggestion(tag, known)}"
        else:
            yield (*path, key), f"{quoted(tag)} is no {key}; choose one of {', '.join(known)}"
    elif kind == "union_tag_not_found":
        key = context["discriminator"].strip("'")
        known = _tags(_annotation_at(model, path), (key,))
        if isinstance(value, dict) and key in value:
            yield (*path, key), f"{quoted(value[key])} is no {key}; choose one of {', '.join(known)}"
        else:
            yield (*path, key), f"is missing; choose one of {', '.join(known)}"
    elif kind == "literal_error":
        known = [str(choice) for choice in _choices(_annotation_at(model, path))]
        yield path, f"unknown {path[-1]} {quoted(value)}; {suggestion(str(value), known)}"
    elif value is None:
        yield path, f"has no value; {_example(model, path)}"
    else:
        yield path, _plain_sentence(kind, value, context, found["msg"])


def _plain_sentence(kind: str, value: Any, context: dict[str, Any], message: str) -> str:
    shown = quoted(value)
    if kind in ("int_type", "int_from_float", "int_parsing"):
        return f"{shown} is no whole number; write one without unit or quotes"
    if kind in ("float_type", "float_parsing"):
        return f"{shown} is no number; write one without unit or quotes"
    if kind == "finite_number":
        return f"{shown} is not finite; write a number"
    if kind in ("bool_type", "bool_parsing"):
        return f"{shown} is neither true nor false"
    if kind == "string_type":
        return (
            f"{shown} is not text; put it in quotes"
            if isinstance(value, int | float)
            else f"{shown} is not text"
        )
    if kind == "string_too_short":
        return "is empty; write some text"
    if kind == "string_too_long":
        return f"is longer than {context['max_length']} characters; shorten it"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"{shown} is not a mapping; write key: value pairs"
    if kind in ("tuple_type", "list_type"):
        return f"{shown} is not a list; write its items with dashes, or in square brackets"
    if kind == "too_short":
        return "is empty; give at least one"
    if kind == "none_required":
        return f"{shown}: this key is kept for later; leave it out"
    bounds = {
        "greater_than_equal": ("at least", "ge"),
        "greater_than": ("above", "gt"),
        "less_than_equal": ("at most", "le"),
        "less_than": ("below", "lt"),
    }
    if kind in bounds:
        words, name = bounds[kind]
        bound = context[name]
        return f"{shown} must be {words} {bound:g}" if isinstance(bound, float) else f"{shown} must be {words} {bound}"
    return f"{shown}: {message[:1].lower()}{message[1:]}"


def _example(model: type[BaseModel], path: Where) -> str:
    """What to write for a missing key."""
    field = _field_at(model, path)
    key = path[-1]
    if field is None:
        return f"add {key}"
    examples = field.examples or [
        example for meta in field.metadata for example in getattr(meta, "examples", None) or []
    ]
    if examples:
        return f"write for example `{key}: {examples[0]}`"
    choices = _choices(field.annotation)
    if choices:
        return f"choose one of {', '.join(map(str, choices))}"
    return f"write for example `{key}: 8`" if field.annotation is int else f"add {key}"


def _key(name: str, field: FieldInfo) -> str:
    return field.alias or name


def _field_at(model: type[BaseModel], path: Where) -> FieldInfo | None:
    part = _model_at(model, path[:-1])
    if part is None:
        return None
    return next((field for name, field in part.model_fields.items() if _key(name, field) == path[-1]), None)


def _annotation_at(model: type[BaseModel], path: Where) -> Any:
    """The type of what the path leads to, union members taken as steps."""
    at: Any = model
    for part in path:
        at = _step(at, part)
        if at is None:
            return None
    return at


def _model_at(model: type[BaseModel], path: Where) -> type[BaseModel] | None:
    at = _bare(_annotation_at(model, path))
    return at if isinstance(at, type) and issubclass(at, BaseModel) else None


def _siblings_with(model: type[BaseModel], path: Where) -> list[str]:
    """Of a mapping of several kinds: those of the others that have the key that this one lacks."""
    union = _bare(_annotation_at(model, path[:-2])) if len(path) > 1 else None
    if get_origin(union) not in (Union, UnionType):
        return []
    own = _model_at(model, path[:-1])
    members = [m for m in map(_bare, get_args(union)) if isinstance(m, type) and issubclass(m, BaseModel) and m != own]
    having = [m for m in members if path[-1] in {_key(name, field) for name, field in m.model_fields.items()}]
    return list(dict.fromkeys(tag for member in having for tag in _tags(member)))


def _bare(annotation: Any) -> Any:
    """Without Annotated, and without "or None"."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, UnionType):
        members = [member for member in get_args(annotation) if member is not type(None)]
        if len(members) == 1:
            return _bare(members[0])
    return annotation


def _step(annotation: Any, part: str | int) -> Any:
    """The type one step further down."""
    at = _bare(annotation)
    if isinstance(part, int):
        members = get_args(at)
        return members[0] if get_origin(at) in (tuple, list) and members else None
    if get_origin(at) in (Union, UnionType):
        return next((member for member in get_args(at) if part in _tags(member)), None)
    if isinstance(at, type) and issubclass(at, BaseModel):
        field = next((f for name, f in at.model_fields.items() if _key(name, f) == part), None)
        return None if field is None else field.annotation
    return None


_DISCRIMINATORS = ("kind", "pattern", "policy", "law")


def _tags(annotation: Any, keys: Sequence[str] = _DISCRIMINATORS) -> list[str]:
    """What the discriminators of a union may be: kinds, patterns, policies or laws of its members."""
    at = _bare(annotation)
    if get_origin(at) in (Union, UnionType):
        return list(dict.fromkeys(tag for member in get_args(at) for tag in _tags(member, keys)))
    if isinstance(at, type) and issubclass(at, BaseModel):
        return [
            str(tag)
            for key in keys
            if key in at.model_fields
            for tag in _choices(at.model_fields[key].annotation)
        ]
    return []


def _choices(annotation: Any) -> tuple[Any, ...]:
    at = _bare(annotation)
    return get_args(at) if get_origin(at) is Literal else ()
