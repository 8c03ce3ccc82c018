"""Connection files (`.cm`) of the packet simulator htsim.

Syntax as htsim's reader defines it: csg-htsim, sim/datacenter/connection_matrix.cpp and sim/trigger.cpp.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from sim.fabric.messages import Int64
from sim.workload.flow_file import MatrixFlows, TrafficFileError, numbered_lines, whole_number

PICOSECONDS = 1e12


@dataclass(slots=True)
class _Trigger:
    """A trigger of a connection file: who counts it up, whom it starts."""

    line: int
    kind: str | None = None
    count: int = 1
    fired_by: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)


@dataclass(slots=True)
class _Connection:
    line: int
    source: int
    destination: int
    size_bytes: int | None = None
    start_s: float | None = None
    triggers: dict[str, int] = field(default_factory=dict)


_TRIGGER_WORDS = ("trigger", "send_done_trigger", "recv_done_trigger")


def read_connections(path: str | Path) -> MatrixFlows:
    """The flows of an htsim `.cm` file; start times are picoseconds, triggers become edges.

    `oneshot` starts its flows when the one flow that names it is done, `barrier … count N` when N are.
    Simplifications: `send_done_trigger` fires on receipt, as `recv_done_trigger` does, not one
    acknowledgement later. `id` and `prio` are read and not used. Refused: flows without a size,
    `multishot`, `addon`, failures.
    """
    path = Path(path)
    declared: dict[str, tuple[int, int]] = {}
    connections: list[_Connection] = []
    triggers: dict[int, _Trigger] = {}
    ids: dict[int, int] = {}
    for number, line in numbered_lines(path):
        words = line.split()
        if words[0] in ("Nodes", "Connections", "Triggers", "Failures"):
            if len(words) != 2:
                raise TrafficFileError(path, number, f"'{line}': write `{words[0]} N`")
            declared[words[0]] = (
                number,
                whole_number(path, number, words[1], f"number of {words[0].lower()}"),
            )
        elif "->" in words[0]:
            _read_connection(path, number, words, len(connections), connections, triggers, ids)
        elif words[0] == "trigger":
            _read_trigger(path, number, words[1:], triggers)
        elif words[0] == "failure":
            raise TrafficFileError(
                path, number, "failures are not read; write them under the scenario's `faults`"
            )
        else:
            raise TrafficFileError(path, number, f"unknown word '{words[0]}'")
    found = {
        "Connections": len(connections),
        "Triggers": sum(t.kind is not None for t in triggers.values()),
        "Failures": 0,
    }
    for word, count in found.items():
        line_number, expected = declared.get(word, (None, 0))
        if expected != count:
            problem = f"`{word} {expected}`" if line_number else f"no line `{word} N`"
            raise TrafficFileError(
                path, line_number, f"{problem}, but {count} are listed: write `{word} {count}`"
            )
    if "Nodes" not in declared:
        raise TrafficFileError(path, None, "has no line `Nodes N`")
    num_nodes = declared["Nodes"][1]
    for c in connections:
        if max(c.source, c.destination) >= num_nodes:
            raise TrafficFileError(
                path, c.line, f"{c.source}->{c.destination}, but nodes are 0 … {num_nodes - 1}"
            )
    return _linked(path, num_nodes, connections, triggers)


def _read_connection(path, number, words, index, connections, triggers, ids) -> None:
    ends = words[0].split("->")
    if len(ends) != 2:
        raise TrafficFileError(path, number, f"'{words[0]}' is not `source->destination`")
    source, destination = (whole_number(path, number, end, "node") for end in ends)
    if source == destination:
        raise TrafficFileError(path, number, f"node {source} sends to itself")
    connection = _Connection(number, source, destination)
    rest = iter(words[1:])
    for word in rest:
        if word not in ("id", "start", "size", "prio", *_TRIGGER_WORDS):
            raise TrafficFileError(
                path, number, f"'{word}' is not read; known: id, start, size, prio, triggers"
            )
        value = next(rest, None)
        if value is None:
            raise TrafficFileError(path, number, f"'{word}' has no value")
        if word == "start":
            connection.start_s = _start_s(path, number, value)
            continue
        whole = whole_number(path, number, value, word)
        if word == "id":
            if whole == 0 or whole in ids:
                first = f"; line {ids[whole]} has it" if whole in ids else ""
                raise TrafficFileError(path, number, f"id {whole}: ids are above 0 and used once{first}")
            ids[whole] = number
        elif word == "size":
            connection.size_bytes = whole
        elif word in _TRIGGER_WORDS and whole:
            connection.triggers[word] = whole
            trigger = triggers.setdefault(whole, _Trigger(number))
            (trigger.starts if word == "trigger" else trigger.fired_by).append(index)
    if not connection.size_bytes:
        raise TrafficFileError(path, number, "has no size above 0: flows without an end are not simulated")
    if (connection.start_s is None) == ("trigger" not in connection.triggers):
        raise TrafficFileError(path, number, "give either `start` or `trigger`")
    connections.append(connection)


def _start_s(path: Path, number: int, value: str) -> float:
    try:
        start_s = float(value) / PICOSECONDS
    except ValueError:
        start_s = math.nan
    if not (math.isfinite(start_s) and start_s >= 0):
        raise TrafficFileError(path, number, f"start '{value}' is not a time in picoseconds")
    return start_s


def _read_trigger(path: Path, number: int, words: list[str], triggers: dict[int, _Trigger]) -> None:
    values = {"id": 0, "count": 1}
    kind = None
    rest = iter(words)
    for word in rest:
        if word in values:
            values[word] = whole_number(path, number, next(rest, ""), word)
        elif word in ("oneshot", "barrier") and kind is None:
            kind = word
        elif word == "multishot":
            raise TrafficFileError(
                path, number, "multishot triggers are not read: the flow they start depends on time"
            )
        else:
            raise TrafficFileError(
                path, number, f"'{word}': write `trigger id N oneshot` or `… barrier count M`"
            )
    if kind is None or values["id"] == 0:
        raise TrafficFileError(
            path, number, "write `trigger id N oneshot` or `trigger id N barrier count M`, N > 0"
        )
    trigger = triggers.setdefault(values["id"], _Trigger(number))
    if trigger.kind is not None:
        raise TrafficFileError(path, number, f"trigger {values['id']} is given twice (line {trigger.line})")
    trigger.line, trigger.kind = number, kind
    trigger.count = values["count"] if kind == "barrier" else 1


def _linked(
    path: Path, num_nodes: int, connections: list[_Connection], triggers: dict[int, _Trigger]
) -> MatrixFlows:
    """Flows with their triggers as edges; a trigger with several flows on both sides gets a join."""
    source = [c.source for c in connections]
    destination = [c.destination for c in connections]
    size_bytes = [c.size_bytes or 0 for c in connections]
    start_s = [c.start_s or 0.0 for c in connections]
    edges: list[tuple[int, int]] = []
    for trigger_id, trigger in triggers.items():
        if trigger.kind is None:
            raise TrafficFileError(path, trigger.line, f"trigger {trigger_id} is used but never given")
        if len(trigger.fired_by) != trigger.count and (trigger.starts or trigger.fired_by):
            raise TrafficFileError(
                path, trigger.line,
                f"trigger {trigger_id} needs {trigger.count} to fire it, has {len(trigger.fired_by)}",
            )  # fmt: skip
        fired_by = sorted(set(trigger.fired_by))
        if len(fired_by) > 1 and len(trigger.starts) > 1:
            join = len(source)
            source.append(connections[trigger.starts[0]].source)
            destination.append(source[-1])
            size_bytes.append(0)
            start_s.append(0.0)
            edges += [(i, join) for i in fired_by] + [(join, j) for j in trigger.starts]
        else:
            edges += [(i, j) for i in fired_by for j in trigger.starts]
    edge_from, edge_to = np.array(edges, np.int64).reshape(-1, 2).T
    _check_no_circle(path, connections, edge_from, edge_to, len(source))
    return MatrixFlows(
        num_nodes,
        np.array(source, np.int64),
        np.array(destination, np.int64),
        np.array(size_bytes, np.int64),
        np.array(start_s),
        edge_from,
        edge_to,
    )


def _check_no_circle(path: Path, connections, edge_from: Int64, edge_to: Int64, num_messages: int) -> None:
    if len(edge_from) == 0:
        return
    links = coo_array((np.ones(len(edge_from)), (edge_from, edge_to)), shape=(num_messages, num_messages))
    num_components, component = connected_components(links, directed=True, connection="strong")
    if num_components < num_messages or np.any(edge_from == edge_to):
        circular = np.bincount(component)[component] > 1
        circular[edge_from[edge_from == edge_to]] = True
        lines = sorted({connections[i].line for i in np.flatnonzero(circular) if i < len(connections)})
        raise TrafficFileError(path, lines[0], f"flows wait for each other in a circle (lines {lines[:8]})")
