"""Workloads that only move bytes: traffic patterns, collectives, training-like jobs."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from sim.scenario.errors import suggestion
from sim.scenario.quantities import (
    Count,
    CountOrZero,
    Flag,
    InputFile,
    Name,
    Part,
    PositiveBytes,
    PositiveNumber,
    PositiveSeconds,
    Ranks,
    Seconds,
    refused,
)


class FixedSizes(Part):
    """Every message alike."""

    law: Literal["fixed"] = Field(description="every message alike: fixed")
    size_bytes: PositiveBytes = Field(description="payload of each message")


class UniformSizes(Part):
    """Every whole number of bytes from low to high equally likely."""

    law: Literal["uniform"] = Field(description="every whole number of bytes equally likely: uniform")
    low_bytes: PositiveBytes = Field(description="smallest payload")
    high_bytes: PositiveBytes = Field(description="largest payload")

    @model_validator(mode="after")
    def _rises(self) -> UniformSizes:
        if self.low_bytes > self.high_bytes:
            raise refused(f"low is {self.low_bytes} B, above high, {self.high_bytes} B; swap them", "low")
        return self


class LognormalSizes(Part):
    """Lognormal; sigma is the spread of the logarithm."""

    law: Literal["lognormal"] = Field(description="the logarithm of the size is normal: lognormal")
    mean_bytes: PositiveBytes = Field(description="mean payload")
    sigma: PositiveNumber = Field(description="standard deviation of the logarithm of the size")


class ParetoSizes(Part):
    """Pareto: P(size > x) falls as x to the power −shape."""

    law: Literal["pareto"] = Field(description="a power law: pareto")
    mean_bytes: PositiveBytes = Field(description="mean payload")
    shape: Annotated[PositiveNumber, Field(gt=1)] = Field(
        description="above 1, or the mean would be infinite"
    )


class FileSizes(Part):
    """A distribution from lines `bytes probability` (that a message is at most so long)."""

    law: Literal["file"] = Field(description="a distribution from a file: file")
    file: InputFile = Field(
        description="lines `bytes probability`, both rising: the probability that a message is at most so long"
    )


Sizes = Annotated[
    FixedSizes | UniformSizes | LognormalSizes | ParetoSizes | FileSizes, Field(discriminator="law")
]


class Workload(Part):
    """What every workload has."""

    name: Name = Field(description="part of its metrics' names: <kind>.<name>.<metric>")

    @property
    def is_endless(self) -> bool:
        """Runs until the others have finished."""
        return False


class _Traffic(Workload):
    kind: Literal["traffic"] = Field(description="flows by a pattern: traffic")
    ranks: Ranks = Field(default=None, description="accelerators that take part; all by default")
    start_s: Seconds = Field(default=0.0, description="when it begins; by default at 0")
    jitter_s: Seconds = Field(
        default=0.0, description="each flow starts later by up to this much, evenly drawn"
    )
    queue_pairs: Count = Field(default=1, description="queue pairs that each flow is striped over")


class _Repeated(_Traffic):
    size_per_flow_bytes: PositiveBytes = Field(description="bytes of each ordered pair")
    repeat: Count = Field(
        default=1, description="times that the pattern is sent, each after the one before; by default once"
    )
    gap_s: Seconds = Field(default=0.0, description="pause between repetitions")


class Permutation(_Repeated):
    """Everyone sends to one and receives from one, drawn at random."""

    pattern: Literal["permutation"] = Field(description="everyone sends to one and receives from one: permutation")
    cross_leaf: Flag = Field(default=True, description="every pair crosses leaves")


class Shift(_Repeated):
    """Every host sends to its twin `leaves_by` leaves further on."""

    pattern: Literal["shift"] = Field(description="every host sends to its twin some leaves further on: shift")
    leaves_by: Count = Field(default=1, description="leaves between a host and its twin; by default the next leaf")


class Incast(_Repeated):
    """Many send to one."""

    pattern: Literal["incast"] = Field(description="many send to one: incast")
    fan_in: Count | None = Field(default=None, description="number of senders; all others by default")
    receiver: CountOrZero = Field(default=0, description="position among the ranks")


class AllToAll(_Repeated):
    """Everyone sends to everyone else."""

    pattern: Literal["all_to_all"] = Field(description="everyone sends to everyone else: all_to_all")


class Matrix(_Traffic):
    """Flows from a file: CSV, or htsim's connection files (.cm)."""

    pattern: Literal["matrix"] = Field(description="flows from a file: matrix")
    file: InputFile = Field(
        description=".csv of bytes between ranks (a square table, or source,destination,bytes), or htsim's .cm"
    )
    repeat: Count = Field(
        default=1, description="times that all flows are sent, each after the ones before; by default once"
    )
    gap_s: Seconds = Field(default=0.0, description="pause between repetitions")

    @model_validator(mode="after")
    def _is_known_form(self) -> Matrix:
        if self.file.suffix.lower() not in (".csv", ".cm"):
            raise refused(
                f"'{self.file.name}' is neither .csv nor .cm; the ending says how it is read", "file"
            )
        return self


class Poisson(_Traffic):
    """Flows between random pairs, at random times."""

    pattern: Literal["poisson"] = Field(description="flows between random pairs at random times: poisson")
    load: Annotated[PositiveNumber, Field(le=10)] = Field(
        description="offered wire bytes/s over the sum of the host links' rates", examples=[0.5]
    )
    duration_s: PositiveSeconds = Field(description="how long flows keep arriving")
    sizes: Sizes = Field(description="payload of each flow: a law, or a file")


Traffic = Annotated[
    Permutation | Shift | Incast | AllToAll | Matrix | Poisson, Field(discriminator="pattern")
]



def keys_of_pattern(pattern: object) -> frozenset[str]:
    """Keys that a traffic workload of this pattern may have; none for what is no pattern."""
    for part in get_args(get_args(Traffic)[0]):
        if pattern in get_args(part.model_fields["pattern"].annotation):
            return frozenset(field.alias or name for name, field in part.model_fields.items())
    return frozenset()


Operation = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "send_recv"]
AlgorithmName = Literal["ring", "halving_doubling", "double_binary_tree", "direct"]
_USUAL_ALGORITHM = {
    "all_reduce": "ring",
    "all_gather": "ring",
    "reduce_scatter": "ring",
    "all_to_all": "direct",
    "broadcast": "ring",
    "send_recv": "direct",
}


class _Communicates(Workload):
    """A collective operation among some ranks."""

    ranks: Ranks = Field(
        default=None, description="accelerators that take part, in rank order; all by default"
    )
    operation: Operation = Field(description="what the ranks do together, by the names of NCCL")
    algorithm: AlgorithmName = Field(
        description="default: ring for all_reduce, all_gather, reduce_scatter and broadcast, else direct"
    )
    size_bytes: PositiveBytes = Field(
        description="as nccl-tests prints it: the larger of a rank's send and receive buffer",
        examples=["64 MB"],
    )
    start_s: Seconds = Field(default=0.0, description="when it begins; by default at 0")
    jitter_s: Seconds = Field(
        default=0.0, description="each rank starts later by up to this much, evenly drawn"
    )
    chunk_bytes: PositiveBytes | None = Field(default=None, description="pipelining unit of trees and chains")
    hierarchical: Flag = Field(default=False, description="inside the hosts first, then across them on rails")
    queue_pairs: Count = Field(default=1, description="queue pairs that each message is striped over")

    @model_validator(mode="before")
    @classmethod
    def _usual_algorithm(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("algorithm") is None:
            usual = _USUAL_ALGORITHM.get(str(value.get("operation")))
            return value if usual is None else {**value, "algorithm": usual}
        return value

    @model_validator(mode="after")
    def _algorithm_fits(self) -> _Communicates:
        from sim.collectives.algorithms import ALGORITHMS

        if (self.operation, self.algorithm) not in ALGORITHMS:
            names = [name for operation, name in ALGORITHMS if operation == self.operation]
            raise refused(
                f"{self.operation} has no algorithm '{self.algorithm}'; {suggestion(self.algorithm, names)}",
                "algorithm",
            )
        return self

    @model_validator(mode="after")
    def _options_apply(self) -> _Communicates:
        from sim.collectives.algorithms import ALGORITHMS
        from sim.collectives.hierarchical import HIERARCHICAL

        if self.chunk_bytes is not None and not ALGORITHMS[self.operation, self.algorithm].takes_chunk:
            takers = ", ".join(f"{o} with {a}" for (o, a), found in ALGORITHMS.items() if found.takes_chunk)
            raise refused(f"{self.operation} with {self.algorithm} takes no chunk; {takers} do", "chunk")
        if self.hierarchical and self.operation not in HIERARCHICAL:
            raise refused(
                f"{self.operation} has no hierarchical form; {', '.join(HIERARCHICAL)} have", "hierarchical"
            )
        return self


class Collective(_Communicates):
    """A collective, once or several times."""

    kind: Literal["collective"] = Field(description="an operation among ranks: collective")
    repeat: Count = Field(default=1, description="times that it is done, each after the one before; by default once")
    gap_s: Seconds = Field(default=0.0, description="pause between repetitions")


class Training(_Communicates):
    """A training-like neighbour: compute, then a collective, again and again."""

    kind: Literal["training"] = Field(description="compute and communicate in turn: training")
    compute_s: Seconds = Field(description="time of a step without communication")
    steps: Count | None = Field(default=None, description="absent: as long as the other workloads run")

    @property
    def is_endless(self) -> bool:
        return self.steps is None
