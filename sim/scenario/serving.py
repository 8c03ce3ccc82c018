"""A serving workload: a model, its replicas, its requests, and what goes together."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, Strict, ValidationInfo, WithJsonSchema, model_validator

from sim.scenario.adapters import Adapters
from sim.scenario.clients import Autoscale, Client, ClosedLoopArrivals
from sim.scenario.errors import quoted, suggestion
from sim.scenario.quantities import (
    Count,
    Label,
    Part,
    PositiveNumber,
    PositiveSeconds,
    Ranks,
    RoutingFile,
    Seconds,
    all_refused,
    found_file,
    no_file,
    refused,
)
from sim.scenario.replicas import Degrees, Disaggregation, KvCache, Pool, Router
from sim.scenario.requests import Arrivals, Lengths, Sessions, Trace
from sim.scenario.scheduling import PASSED_IN_LINE, Batching, scheduling_problems
from sim.scenario.tiers import tier_problems
from sim.scenario.traffic import Workload
from sim.serving.tenants import TARGETS


def _read_model(value: Any, info: ValidationInfo) -> str:
    """A preset's name, or the path of a config.json that is there."""
    from models.architecture import ARCHITECTURES

    if not isinstance(value, str) or not value:
        raise refused(f"{quoted(value)} is no model; write for example 'llama-3.1-8b'")
    if value in ARCHITECTURES:
        return value
    if value.endswith(".json") or "/" in value:
        folder = (info.context or {}).get("folder")
        path = found_file(value, folder)
        if path is None:
            raise refused(
                f"{no_file(value, folder)}; give the path of a Hugging Face config.json, or one of "
                f"{', '.join(ARCHITECTURES)}"
            )
        return str(path)
    raise refused(
        f"unknown model {quoted(value)}; {suggestion(value, ARCHITECTURES)} "
        "(or give the path of a Hugging Face config.json)"
    )


Model = Annotated[
    str,
    BeforeValidator(_read_model),
    WithJsonSchema({"type": "string", "examples": ["llama-3.1-8b", "config.json"]}),
]


class Precision(Part):
    """How weights and keys and values are stored."""

    weights: Literal["bf16", "fp8"] | None = Field(
        default=None, description="by default as the model is published: fp8 for deepseek-v3, else bf16 but for files "
        "whose quantization_config says fp8",
    )  # fmt: skip
    kv: Literal["bf16", "fp8"] = Field(default="bf16", description="of keys and values in the cache; by default bf16")


class Experts(Part):
    """How popular a mixture's experts are."""

    popularity: Literal["uniform", "zipf", "recorded"] = Field(
        default="uniform", description="how often a token's router chooses each: all alike (uniform), by a power law, "
        "or as recorded",
    )  # fmt: skip
    alpha: PositiveNumber | None = Field(
        default=None, description="zipf: the i-th expert is drawn as often as i to the power −alpha"
    )

    file: RoutingFile | None = Field(
        default=None, description="recorded: router decisions, .npz with `expert_ids` [layers, tokens, top_k], or "
        'ESFT\'s scores, JSON {"token_scores": {"1": {"0": 0.01, …}}}',
    )  # fmt: skip

    @model_validator(mode="after")
    def _each_goes_with_its_law(self) -> Experts:
        for law, key in (("zipf", "alpha"), ("recorded", "file")):
            if (self.popularity == law) != (getattr(self, key) is not None):
                raise refused(f"{key} goes with popularity: {law}, and only with it", key)
        return self


def _known_targets(targets: dict[str, float]) -> dict[str, float]:
    for name in targets:
        if name not in TARGETS:
            raise refused(f"'{name}' is no latency that can be bounded; {suggestion(name, TARGETS)}", name)
    return targets


Targets = Annotated[
    dict[str, PositiveNumber],
    AfterValidator(_known_targets),
    Field(
        default_factory=dict, examples=[{"p99_ttft_ms": 2000, "p99_itl_ms": 50}],
        description="upper bounds of latencies, in ms, by the names of the metrics; a request is within them where its "
        "own latencies are. Gives slo_attainment and request_goodput, and `spindle size` what to hold",
    ),
]  # fmt: skip


class Tenant(Part):
    """One of those who share a workload: a part of its arrivals."""

    name: Label = Field(description="metrics are serving.<workload>.<name>.<metric>")
    share: PositiveNumber = Field(
        default=1.0, description="of the arrivals, in proportion to the others': each request is drawn on its own, so "
        "that of Poisson arrivals every tenant's are Poisson",
    )  # fmt: skip
    lengths: Lengths | None = Field(default=None, description="by default as the workload's, or as the trace's")
    targets: Targets = Field(description="added to the workload's, in place of those of the same name")
    priority: Annotated[int, Strict(), Field(ge=-(2**31), lt=2**31)] = Field(
        default=0, description="its service class: lower goes first, with batching.policy: priority"
    )


class Serving(Workload):
    """Replicas of a model that serve requests."""

    kind: Literal["serving"] = Field(description="requests on replicas of a model: serving")
    model: Model = Field(
        description="a preset of `spindle list models`, or the path of a Hugging Face config.json"
    )
    precision: Precision = Field(default=Precision(), description="of weights, and of keys and values")
    replicas: Count = Field(default=1, description="with autoscale: at the beginning")
    autoscale: Autoscale | None = Field(default=None, description="replicas come and go with the load")
    parallelism: Degrees = Field(default=Degrees(), description="how one replica is cut")
    disaggregation: Disaggregation | None = Field(
        default=None, description="prefill and decode on separate replicas, in place of `replicas` and `parallelism`"
    )
    ranks: Ranks = Field(
        default=None, description="accelerators given to it; by default as many as it needs, from 0"
    )
    batching: Batching = Field(default=Batching(), description="what a step computes, and who joins it when")
    kv: KvCache = Field(default=KvCache(), description="the cache of keys and values")
    router: Router = Field(default=Router(), description="which replica a request goes to")
    arrivals: Arrivals = Field(description="when requests come, or how many clients send them")
    lengths: Lengths | None = Field(
        default=None, description="token counts; needed unless a trace gives them"
    )
    stop: Literal["length", "eos"] = Field(
        default="length", description="what ends an output: a number of tokens that the request names, as in vllm "
        "bench serve, or a token that the model says (eos); an asynchronous engine then computes one token too many",
    )  # fmt: skip
    sessions: Sessions | None = Field(default=None, description="conversations instead of single requests")
    trace: Trace | None = Field(default=None, description="requests from a file")
    num_requests: Count | None = Field(default=None, description="stop arrivals after so many")
    duration_s: PositiveSeconds | None = Field(default=None, description="stop arrivals after this time")
    host_time_s: Seconds = Field(
        default=0.0,
        description="the engine's own time per step; a step takes the larger of it and the accelerator's",
    )
    client: Client = Field(default=Client(), description="what becomes of a request that takes too long, or is lost")
    experts: Experts = Field(default=Experts(), description="how popular a mixture's experts are")
    adapters: Adapters | None = Field(default=None, description="fine-tuned experts over the model")
    tenants: tuple[Tenant, ...] = Field(default=(), description="who shares it; metrics then are also by tenant")
    targets: Targets
    contention: bool = Field(
        default=False,
        description="tell contention from the time that transfers take anyway: each step's messages are also run alone "
        "on an ideal fabric, which takes about as long again; of experts spread over accelerators",
    )

    @property
    def is_reactive(self) -> bool:
        """Whether somebody reacts to what becomes of requests while it runs."""
        return self.has_reacting_clients or self.autoscale is not None or self.router.report_interval_s > 0

    @property
    def has_reacting_clients(self) -> bool:
        """Whether what they send depends on what they get."""
        waits = self.client.timeout_s is not None or self.sessions is not None
        return waits or isinstance(self.arrivals, ClosedLoopArrivals)

    @property
    def most_replicas(self) -> int:
        """For which it needs accelerators."""
        return self.replicas if self.autoscale is None else self.autoscale.max

    @property
    def num_accelerators(self) -> int:
        """That it needs: all replicas."""
        if self.disaggregation is not None:
            return self.disaggregation.prefill.num_accelerators + self.disaggregation.decode.num_accelerators
        return self.most_replicas * self.parallelism.num_accelerators

    @property
    def own_ranks(self) -> tuple[int, ...]:
        """Its accelerators: those it names, or the first that it needs; of two pools the prefill pool's first."""
        if self.ranks is not None:
            return self.ranks
        if self.disaggregation is not None and self.disaggregation.prefill.ranks is not None:
            return (*self.disaggregation.prefill.ranks, *(self.disaggregation.decode.ranks or ()))
        return tuple(range(self.num_accelerators))

    @property
    def pools(self) -> tuple[tuple[tuple[str, ...], Serving], ...]:
        """(where it stands below the workload, the pool as a workload of its own): itself, where it is not split."""
        if self.disaggregation is None:
            return (((), self),)
        pools, first = [], 0
        for name in ("prefill", "decode"):
            pool: Pool = getattr(self.disaggregation, name)
            last = first + pool.num_accelerators if pool.ranks is None else first + len(pool.ranks)
            update = {
                "disaggregation": None, "replicas": pool.replicas, "parallelism": pool.parallelism,
                "batching": pool.batching or self.batching, "router": pool.router or self.router,
                "ranks": self.own_ranks[first:last],
            }  # fmt: skip
            pools.append((("disaggregation", name), self.model_copy(update=update)))
            first = last
        return tuple(pools)

    @model_validator(mode="after")
    def _merged_models_have_replicas(self) -> Serving:
        num_models = 1 if self.adapters is None else self.adapters.num_models
        if num_models > 1 and self.autoscale is not None:
            raise refused("autoscale is for one model; leave it out, or the adapters unmerged", "autoscale")
        if num_models > 1 and self.disaggregation is not None:
            raise refused("merged models have no pools of their own; leave disaggregation out", "disaggregation")
        if self.replicas % num_models:
            raise refused(
                f"{self.replicas} replicas for {num_models} merged models; give each as many, such as {num_models} in "
                "all", "replicas",
            )  # fmt: skip
        return self

    @model_validator(mode="after")
    def _has_adapters_to_route_by(self) -> Serving:
        for where, pool in self.pools:
            if self.adapters is None and pool.router.policy == "adapter_affinity":
                at = where if where and getattr(self.disaggregation, where[1]).router is not None else ()
                raise refused(
                    "adapter_affinity brings an adapter's requests together, and there are no adapters; give adapters, "
                    "or use another policy",
                    *at, "router", "policy",
                )  # fmt: skip
        return self

    @model_validator(mode="after")
    def _loads_adapters_where_it_can(self) -> Serving:
        if self.adapters is None or not self.adapters.is_on_demand:
            return self
        key = "resident" if self.adapters.pool_bytes is None else "pool"
        if self.disaggregation is not None:
            raise refused(
                f"adapters come and go on replicas that prefill and decode; leave {key} out, or disaggregation",
                "adapters", key,
            )  # fmt: skip
        if self.kv.tiers:
            raise refused(
                f"who waits for an adapter and who waits for blocks are not told apart; leave {key} out, or kv.tiers",
                "adapters", key,
            )  # fmt: skip
        if self.batching.policy not in PASSED_IN_LINE:
            raise refused(
                f"who waits for an adapter is passed by others, which {self.batching.policy} does not do; use "
                f"{' or '.join(PASSED_IN_LINE)}, or leave {key} out",
                "adapters", key,
            )  # fmt: skip
        return self

    @model_validator(mode="after")
    def _spreads_adapters(self) -> Serving:
        """Over ranks of experts they are there all the time, and choose as the base does."""
        if self.adapters is None or all(pool.parallelism.expert == 1 for _, pool in self.pools):
            return self
        if self.adapters.is_on_demand:
            key = "resident" if self.adapters.pool_bytes is None else "pool"
            raise refused(
                f"adapters come and go where experts lie on one rank; leave {key} out, or expert parallelism",
                "adapters", key,
            )  # fmt: skip
        for i, adapter in enumerate(self.adapters.fine_tuned):
            if adapter.routing is not None and not self.adapters.is_merged:
                raise refused(
                    "over ranks of experts an adapter's tokens choose as the base's do; leave routing out, or expert "
                    "parallelism",
                    "adapters", "fine_tuned", i, "routing",
                )  # fmt: skip
        return self

    @model_validator(mode="after")
    def _tells_tenants_apart(self) -> Serving:
        names = [tenant.name for tenant in self.tenants]
        for i, name in enumerate(names):
            if "." in name:
                sentence = f"'{name}' has a dot, which parts the names of metrics; leave it out"
                raise refused(sentence, "tenants", i, "name")
            if name in names[:i]:
                raise refused(f"two tenants are named '{name}'; give each its own name", "tenants", i, "name")
        return self

    @model_validator(mode="after")
    def _has_contention(self) -> Serving:
        if self.contention and self.parallelism.pipeline > 1:
            raise refused("contention is told apart for spread experts, not for pipeline stages; leave it out",
                          "contention")  # fmt: skip
        if self.adapters is not None and self.parallelism.pipeline > 1:
            raise refused("adapters are not there with pipeline stages; leave out parallelism.pipeline, or adapters",
                          "adapters")  # fmt: skip
        return self

    @model_validator(mode="after")
    def _has_requests(self) -> Serving:
        if self.autoscale is not None and not self.autoscale.min <= self.replicas <= self.autoscale.max:
            raise refused(
                f"{self.replicas} at the beginning is not from autoscale.min, {self.autoscale.min}, to autoscale.max, "
                f"{self.autoscale.max}; give a number between",
                "replicas",
            )
        if self.arrivals.kind == "trace" and self.trace is None:
            raise refused(
                "arrivals: trace needs a trace; write for example trace: {format: azure, file: requests.csv}",
                "trace",
            )
        if self.sessions is not None and self.trace is not None:
            raise refused("a trace says what is asked, turn by turn; leave out sessions, or the trace", "sessions")
        if self.lengths is None and self.trace is None and not (
            self.tenants and all(tenant.lengths is not None for tenant in self.tenants)
        ):
            raise refused(
                "lengths are missing, and there is no trace to take them from; write for example "
                "lengths: {input: {law: fixed, tokens: 512}, output: {law: fixed, tokens: 128}}",
                "lengths",
            )
        if self.trace is None and self.num_requests is None and self.duration_s is None:
            raise refused("arrivals have no end; give num_requests or duration")
        if self.trace is None and self.num_requests is None and isinstance(self.arrivals, ClosedLoopArrivals):
            raise refused(
                "how many requests a closed loop sends shows only when it runs; give num_requests, the most of them, "
                "beside the duration",
                "num_requests",
            )
        if isinstance(self.arrivals, ClosedLoopArrivals) and self.duration_s is not None and (
            self.arrivals.ramp_s > self.duration_s
        ):
            raise refused(
                f"ramp is {self.arrivals.ramp_s:g} s, above the duration, {self.duration_s:g} s: some clients would "
                "never begin; shorten it",
                "arrivals", "ramp",
            )  # fmt: skip
        for where, pool in self.pools:
            batching = pool.batching
            if batching.is_chunked and batching.max_num_batched_tokens < batching.max_num_seqs:
                at = where if where and getattr(self.disaggregation, where[1]).batching is not None else ()
                raise refused(
                    f"max_num_batched_tokens is {batching.max_num_batched_tokens}, below max_num_seqs, "
                    f"{batching.max_num_seqs}: not every running request could decode; raise it",
                    *at,
                    "batching",
                    "max_num_batched_tokens",
                )
        problems = list(scheduling_problems(
            self.batching, bool(self.tenants), self.kv.swap_space_bytes, self.kv.prefix_caching, self.parallelism
        ))  # fmt: skip
        problems += tier_problems(self)
        if problems:
            raise all_refused(problems)
        return self

    @model_validator(mode="after")
    def _says_once_what_its_pools_are(self) -> Serving:
        if self.disaggregation is None:
            return self
        for key in ("replicas", "parallelism"):
            if key in self.model_fields_set:
                raise refused(f"{key} is said of each pool; move it into disaggregation: {{prefill, decode}}", key)
        if self.ranks is not None and self.disaggregation.prefill.ranks is not None:
            raise refused("ranks are given for the workload and for its pools; keep one", "ranks")
        (_, _), (_, decode) = self.pools
        if not decode.batching.is_chunked:
            raise refused(
                f"the decode pool cannot batch by {decode.batching.policy}, which admits whole prompts; give it "
                "batching: {policy: chunked_prefill}",
                "disaggregation", "decode", "batching",
            )  # fmt: skip
        for where, pool in self.pools:
            batching = pool.batching
            at = where if getattr(self.disaggregation, where[1]).batching is not None else ()
            if batching.preemption == "swap" or batching.speculative is not None or batching.policy == "batchllm":
                raise refused(
                    "swapping, drafts and batchllm are not there with prefill and decode apart; leave them out",
                    *at, "batching",
                )  # fmt: skip
            if at and batching.policy == "priority" and not self.tenants:
                raise refused(
                    "priority orders requests by their tenants, and there are none; write for example tenants: "
                    "[{name: interactive, priority: 0}, {name: batch, priority: 1}]",
                    *at, "batching", "policy",
                )  # fmt: skip
        is_late = any(pool.router.report_interval_s > 0 for _, pool in self.pools)
        if self.client.timeout_s is not None or self.autoscale is not None or is_late:
            raise refused(
                "timeouts, late reports and scaling are not there with prefill and decode apart; leave them out",
                "disaggregation",
            )
        if self.contention:
            raise refused("contention is not told apart with prefill and decode apart; leave it out", "contention")
        return self
