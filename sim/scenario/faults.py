"""Faults of a scenario: links, switches, hosts and replicas that change during the run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from sim.scenario.cluster import Cluster, Where
from sim.scenario.errors import quoted
from sim.scenario.link_names import wrong_link, wrong_switch
from sim.scenario.quantities import BytesPerS, CountOrZero, Part, PositiveShare, Seconds, Text, refused


def _read_replica(value: Any) -> Any:
    if isinstance(value, int):
        raise refused(f"{quoted(value)} does not say whose replica; write for example 'chat/{value}'")
    return value


class Fault(Part):
    """One link, switch or host that is slower, or down, for a while or for good; or a replica that is down.

    Where faults overlap on a link, it has the lowest of their rates, and is down while any of them says so.
    """

    at_s: Seconds = Field(description="when it begins")
    until_s: Seconds | None = Field(default=None, description="when all is as before; left out: never")
    link: Text | None = Field(
        default=None,
        description="both directions of a link, named as in the fabric's `links`",
        examples=["leaf0-spine3"],
    )
    switch: Text | None = Field(
        default=None,
        description="every link of a switch: 'leaf0', 'spine3', 'plane1/spine3' (without a plane: in all of them)",
        examples=["spine3"],
    )
    host: CountOrZero | None = Field(
        default=None, description="every link between a host and its leaves; where it is down, replicas on it are too"
    )
    replica: Annotated[Text, BeforeValidator(_read_replica)] | None = Field(
        default=None,
        description="a replica of a serving workload: its requests are lost to it (`client.on_failure`), and its cache",
        examples=["chat/1"],
    )
    rate_bytes_per_s: BytesPerS | None = Field(default=None, description="what one direction of each link carries now")
    state: Literal["down"] | None = Field(default=None, description="down: it carries nothing, or serves nobody")
    loss: PositiveShare | None = Field(
        default=None, description="probability that a packet is lost, on a link; fidelity: packet only"
    )

    @model_validator(mode="after")
    def _says_what(self) -> Fault:
        given = [word for word in ("link", "switch", "host", "replica") if getattr(self, word) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            things = "one link, one switch, one host or one replica"
            raise refused(f"a fault is about {things}, here {found}; make it one entry each")
        keys = {"rate_bytes_per_s": "rate", "state": "state", "loss": "loss"}
        changes = [key for name, key in keys.items() if getattr(self, name) is not None]
        if len(changes) != 1:
            found = " and ".join(changes) or "nothing"
            raise refused(f"a fault changes one thing, here {found}; give a rate, or state: down, or a loss")
        if self.switch is not None and self.state is None:
            raise refused("a switch can only be down; write state: down, or name its links", changes[0])
        if self.replica is not None and self.state is None:
            raise refused("a replica can only be down; write state: down", changes[0])
        if self.loss is not None and self.link is None:
            raise refused("loss is a property of a link; name one by `link`", "loss")
        if self.until_s is not None and self.until_s <= self.at_s:
            raise refused("it ends before it begins; give an `until` after `at`, or leave it out", "until")
        return self


def fault_problems(
    cluster: Cluster, fault: Fault, num_replicas: Mapping[str, int]
) -> Iterator[tuple[Where, str]]:
    """What does not fit, as (path below the fault, sentence); num_replicas: of each serving workload."""
    if fault.replica is not None:
        name, _, index = fault.replica.rpartition("/")
        names = [f"{name}/0" if n == 1 else f"{name}/0 … {name}/{n - 1}" for name, n in num_replicas.items()]
        if name not in num_replicas or not (index.isascii() and index.isdigit() and int(index) < num_replicas[name]):
            there = f"there are {', '.join(names)}" if names else "no workload serves a model"
            yield ("replica",), f"there is no replica '{fault.replica}'; {there}"
    if fault.link is not None and (sentence := wrong_link(cluster, fault.link)) is not None:
        yield ("link",), sentence
    if fault.switch is not None and (sentence := wrong_switch(cluster, fault.switch)) is not None:
        yield ("switch",), sentence
    if fault.host is not None and fault.host >= cluster.num_hosts:
        yield ("host",), f"there is no host {fault.host}; hosts are 0 … {cluster.num_hosts - 1}"
