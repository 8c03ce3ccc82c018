"""Merging one tree over another, and editing a tree with `--set`.

Mappings merge; one whose `policy`, `kind` or `law` changes is replaced (parameters of another policy mean
nothing to it); a traffic workload whose `pattern` changes keeps what the new pattern has too (ranks,
size_per_flow, repeat, …) and drops what only the old one had (fan_in); lists whose items have a `name` merge by
it; other lists are replaced, and so is everything else.
"""

from __future__ import annotations

from sim.scenario.document import Node, mapping_node, parse_document, sequence_node
from sim.scenario.errors import Place, ScenarioError, quoted, suggestion
from sim.scenario.traffic import keys_of_pattern

DECIDING_KEYS = ("policy", "kind", "law")


def merged(base: Node, over: Node) -> Node:
    """`over` merged over `base`; each part keeps the place where it was written."""
    if base.mapping is not None and over.mapping is not None:
        if any(_changes(base, over, key) for key in DECIDING_KEYS):
            return over
        base = _without_keys_of_old_pattern(base, over)
        entries, key_places = dict(base.mapping or {}), dict(base.key_places)
        for key, node in over.mapping.items():
            entries[key] = merged(entries[key], node) if key in entries else node
            if entries[key] is node:
                key_places[key] = over.key_places[key]
        return mapping_node(entries, base.place, key_places)
    if base.sequence and over.sequence and _has_names(base) and _has_names(over):
        items = {str(item_name(item)): item for item in base.sequence}
        for item in over.sequence:
            name = str(item_name(item))
            items[name] = merged(items[name], item) if name in items else item
        return sequence_node(tuple(items.values()), base.place)
    return over


def _changes(base: Node, over: Node, key: str) -> bool:
    """Both say it, differently. Where the base leaves it to the default, the schema decides what fits."""
    new, old = over.child(key), base.child(key)
    return new is not None and old is not None and new.value != old.value


def _without_keys_of_old_pattern(base: Node, over: Node) -> Node:
    """The base, less what its pattern has and the other one has not; a misspelt key stays, to be refused."""
    if not _changes(base, over, "pattern"):
        return base
    old, new = (keys_of_pattern(getattr(node.child("pattern"), "value", None)) for node in (base, over))
    kept = {key: node for key, node in (base.mapping or {}).items() if not new or key not in old - new}
    return mapping_node(kept, base.place, {key: base.key_places[key] for key in kept})


def _has_names(node: Node) -> bool:
    """Every item is a mapping with a name, and no name comes twice."""
    names = [item_name(item) for item in node.sequence or ()]
    return None not in names and len(set(names)) == len(names)


def item_name(item: Node) -> str | None:
    """The name of a list item; None where it has none."""
    name = item.child("name")
    return name.value if name is not None and isinstance(name.value, str) else None


def with_setting(root: Node, setting: str) -> Node:
    """The tree after `--set a.b=value`: the value is YAML, list items are addressed by their name.

    The setting is merged like a variant, so `--set paths.policy=ecmp` drops another policy's parameters.
    Raises ScenarioError when the text is no setting or addresses an item that is not there.
    """
    path, equals, text = setting.partition("=")
    path, place = path.strip(), setting_place(setting)
    parts = path.split(".")
    if not equals or not path or not all(parts):
        raise ScenarioError.at(
            Place(f"--set {setting}"), "is not an assignment; write for example --set paths.policy=ecmp"
        )
    if parts[0] == "small":
        raise ScenarioError.at(place, "`small` is merged before --set; set the key itself")
    value = parse_document(text, str(place), is_option=True) if text.strip() else Node(None, place)
    return merged(root, _overlay(root, parts, value, place, "", root))


def setting_place(setting: str) -> Place:
    """What stands in for the line in errors about `--set a.b=value`."""
    return Place(f"--set {setting.partition('=')[0].strip()}")


def _overlay(node: Node | None, parts: list[str], value: Node, place: Place, path: str, root: Node) -> Node:
    """What to merge over `node` so that the addressed part becomes `value`."""
    if not parts:
        return value
    if node is not None and node.sequence is not None:
        return _item_overlay(node, parts, value, place, path, root)
    if node is not None and node.mapping is None and node.value is not None:
        raise ScenarioError.at(
            place, f"{path} is {quoted(node.value)}, which has no parts; set {path} itself"
        )
    key, rest = parts[0], parts[1:]
    inner = None if node is None else node.child(key)
    below = _overlay(inner, rest, value, place, f"{path}.{key}" if path else key, root)
    return mapping_node({key: below}, place, {key: place})


def _lists_variants(path: str) -> bool:
    """`compare`, or one of its axes: `compare.policy`. A list in a variant lies deeper."""
    return path == "compare" or (path.startswith("compare.") and path.count(".") == 1)


def _item_overlay(node: Node, parts: list[str], value: Node, place: Place, path: str, root: Node) -> Node:
    names = [name for name in map(item_name, node.sequence or ()) if name is not None]
    # Names may contain dots ("1.5 to 1"), so the longest run of parts that is a name wins.
    for length in range(len(parts), 0, -1):
        name = ".".join(parts[:length])
        if name not in names:
            continue
        if length == len(parts):
            raise ScenarioError.at(
                place, f"addresses a whole item; set one of its keys: --set {path}.{name}.key=…"
            )
        if parts[length:] == ["name"]:
            raise ScenarioError.at(place, "a name cannot be set: items are addressed by it")
        item = next(item for item in node.sequence or () if item_name(item) == name)
        # A variant's entry says little: what is a list shows in the scenario that it is merged over.
        shape = merged(root, item) if _lists_variants(path) else item
        below = _overlay(shape, parts[length:], value, place, f"{path}.{name}", root)
        entries = {"name": Node(name, place), **(below.mapping or {})}
        return sequence_node((mapping_node(entries, place, {"name": place, **below.key_places}),), place)
    if not names:
        raise ScenarioError.at(
            place, f"the items of {path} have no names; set the whole list: --set '{path}=[…]'"
        )
    raise ScenarioError.at(place, f"{path} has no item named '{parts[0]}'; {suggestion(parts[0], names)}")
