"""A serving workload: model, parallelism, batching, arrivals, lengths."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, WithJsonSchema, model_validator

from models.parallelism import Exchange
from sim.scenario.adapters import Adapters
from sim.scenario.clients import Autoscale, Client, ClosedLoopArrivals, TimeLaw
from sim.scenario.errors import quoted, suggestion
from sim.scenario.quantities import (
    Count,
    InputFile,
    Label,
    Part,
    PerS,
    PositiveBytes,
    PositiveNumber,
    PositiveSeconds,
    PositiveShare,
    Ranks,
    RoutingFile,
    Seconds,
    all_refused,
    found_file,
    no_file,
    refused,
)
from sim.scenario.scheduling import Batching, ServiceClass, scheduling_problems
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
    kv: Literal["bf16", "fp8"] = "bf16"


class Degrees(Part):
    """How one replica is cut. With expert > 1 it must be a multiple of tensor; expert / tensor copies of the attention
    then step together, each an engine with the limits of `batching` and a cache of its own."""

    tensor: Count = Field(default=1, description="accelerators of one host that share each layer")
    expert: Count = Field(default=1, description="accelerators over which the routed experts lie")
    exchange: Exchange = Field(
        default="dispatch", description="of tokens between ranks of experts. dispatch: to those that hold a token's "
        "experts; all_gather: of every copy to all others, and a reduce-scatter back, as vLLM by default",
    )  # fmt: skip

    @property
    def num_accelerators(self) -> int:
        """Of one replica."""
        return max(self.tensor, self.expert)

    @model_validator(mode="after")
    def _nests(self) -> Degrees:
        if self.expert > 1 and self.expert % self.tensor:
            raise refused(
                f"expert degree {self.expert} must be 1 or a multiple of tensor degree {self.tensor}: the "
                "same accelerators hold attention and experts",
                "expert",
            )
        return self


class KvCache(Part):
    """Paged keys and values."""

    block_size: Count = Field(default=16, description="tokens per block")
    memory_fraction: PositiveShare = Field(
        default=0.9, description="of the device's memory, for weights and cache together"
    )
    prefix_caching: bool = Field(
        default=True, description="full blocks are found again by requests with the same content before them"
    )
    num_blocks: Count | None = Field(
        default=None, description="given outright instead of computed from the memory"
    )
    swap_space_bytes: PositiveBytes | None = Field(
        default=None, description="host memory of each accelerator for blocks of preempted requests, with "
        "batching.preemption: swap; by default 4 GiB, as vLLM has it",
    )  # fmt: skip


class Router(Part):
    """Which replica a request goes to; least_outstanding, also of two drawn (power_of_two), counts queued and running
    requests; least_kv the KV blocks that are held; prefix_affinity what a replica's cache has of the prompt;
    adapter_affinity requests of the same adapter, as long as a replica has not 1.25 times the mean of requests."""

    policy: Literal[
        "round_robin", "least_outstanding", "power_of_two", "least_kv", "prefix_affinity", "adapter_affinity"
    ] = "round_robin"
    report_interval_s: Seconds = Field(
        default=0.0, description="the router sees what each replica reported last, every so often; 0: what it is now"
    )

    @model_validator(mode="after")
    def _looks(self) -> Router:
        if self.report_interval_s > 0 and self.policy == "round_robin":
            sentence = "round_robin looks at no replica, so that reports have no effect; leave it out"
            raise refused(sentence, "report_interval")
        return self


class DiurnalShape(Part):
    """A day's rise and fall: rate · (1 + amplitude · sin(2 π t / period))."""

    kind: Literal["diurnal"]
    period_s: PositiveSeconds = Field(examples=["24 h"], description="of one rise and fall")
    amplitude: PositiveShare = Field(examples=[0.6], description="1: the rate goes from none to twice the mean")


class BurstShape(Part):
    """The last `length` of each period at `factor` times the rate of the rest; `rate` is the mean of both."""

    kind: Literal["burst"]
    period_s: PositiveSeconds = Field(examples=["60 s"], description="from burst to burst")
    length_s: PositiveSeconds = Field(examples=["10 s"], description="of a burst")
    factor: PositiveNumber = Field(examples=[4], description="rate within a burst over the rate outside of it")

    @model_validator(mode="after")
    def _is_within(self) -> BurstShape:
        if self.length_s >= self.period_s:
            raise refused("length is not below period, so that nothing lies outside of bursts; shorten it", "length")
        return self


Shape = Annotated[
    Annotated[DiurnalShape | BurstShape, Field(discriminator="kind")] | None,
    Field(description="how the rate varies around its mean; by default it does not"),
]


class Pool(Part):
    """Replicas that only prefill, or only decode."""

    replicas: Count = Field(default=1, description="of this pool")
    parallelism: Degrees = Degrees()
    batching: Batching | None = Field(default=None, description="by default the workload's")
    router: Router | None = Field(
        default=None, description="which replica of the pool a request goes to; by default the workload's"
    )
    ranks: Ranks = Field(
        default=None, description="accelerators of the pool; by default the prefill pool has the workload's first "
        "ones, the decode pool the next",
    )  # fmt: skip

    @property
    def num_accelerators(self) -> int:
        return self.replicas * self.parallelism.num_accelerators


class KvTransfer(Part):
    """How keys and values get from the prefill pool to the decode pool."""

    layers: Literal["at_end", "layer_by_layer"] = Field(
        default="at_end", description="at_end: when the prompt is done; layer_by_layer: each layer of a step's tokens "
        "when it is computed, while the others still are",
    )  # fmt: skip
    queue_pairs: Count = Field(default=1, description="over which each message between two ranks is striped")


class Disaggregation(Part):
    """Prompts on one pool of replicas, generation on another. Keys and values move over the fabric, into blocks
    reserved beforehand; where there is no room they wait in the prefill pool. The first token is the prompt's."""

    prefill: Pool = Pool()
    decode: Pool = Pool()
    transfer: KvTransfer = KvTransfer()

    @model_validator(mode="after")
    def _fits_together(self) -> Disaggregation:
        if (self.prefill.ranks is None) != (self.decode.ranks is None):
            given, other = ("decode", "prefill") if self.prefill.ranks is None else ("prefill", "decode")
            raise refused(f"{given} has ranks and {other} has none; give both pools theirs, or neither", given, "ranks")
        shared = set(self.prefill.ranks or ()) & set(self.decode.ranks or ())
        if shared:
            raise refused(f"accelerator {min(shared)} is in both pools; give each its own", "decode", "ranks")
        if self.transfer.layers == "layer_by_layer" and self.prefill.parallelism.expert > 1:
            raise refused(
                "layer_by_layer needs steps whose time is known beforehand, which those of experts on several "
                "accelerators are not; write layers: at_end, or prefill: {parallelism: {expert: 1}}",
                "transfer", "layers",
            )  # fmt: skip
        return self


class PoissonArrivals(Part):
    """Independent arrivals at a mean rate."""

    kind: Literal["poisson"]
    rate_per_s: PerS = Field(examples=["4 /s"])
    shape: Shape = None


class GammaArrivals(Part):
    """Gamma-distributed gaps: shape below 1 is burstier than Poisson, 1 is Poisson."""

    kind: Literal["gamma"]
    rate_per_s: PerS = Field(examples=["4 /s"])
    burstiness: Annotated[PositiveNumber, Field(ge=0.001)] = Field(
        default=1.0, description="shape of the gamma law of the gaps"
    )
    shape: Shape = None


class ConstantArrivals(Part):
    """One request every 1/rate."""

    kind: Literal["constant"]
    rate_per_s: PerS = Field(examples=["4 /s"])
    shape: Shape = None


class TraceArrivals(Part):
    """The trace's own times, at `scale` times its rate."""

    kind: Literal["trace"]
    scale: PositiveNumber = Field(default=1.0, description="2 doubles the rate")


Arrivals = Annotated[
    PoissonArrivals | GammaArrivals | ConstantArrivals | TraceArrivals | ClosedLoopArrivals, Field(discriminator="kind")
]


class FixedLength(Part):
    """Always the same."""

    law: Literal["fixed"]
    tokens: Count


class UniformLength(Part):
    """Every whole number from low to high equally likely."""

    law: Literal["uniform"]
    low: Count
    high: Count

    @model_validator(mode="after")
    def _rises(self) -> UniformLength:
        if self.low > self.high:
            raise refused(f"low is {self.low}, above high, {self.high}; swap them", "low")
        return self


class LognormalLength(Part):
    """Lognormal of the given mean; sigma is the spread of the logarithm."""

    law: Literal["lognormal"]
    mean: Annotated[PositiveNumber, Field(le=2**20)]
    sigma: Annotated[PositiveNumber, Field(le=5)]
    max: Count | None = Field(default=None, description="longer ones are cut to this")


Length = Annotated[FixedLength | UniformLength | LognormalLength, Field(discriminator="law")]


class Lengths(Part):
    """Tokens in and out of each request, drawn independently."""

    input: Length
    output: Length


class Sessions(Part):
    """Conversations: each turn's prompt is all prompts and answers before it, and `lengths.input` new tokens.

    `arrivals` and `num_requests` are then of sessions, `duration` ends their beginning. A session ends early with a
    turn that fails or is given up. What was said before is found where the prefix cache still has it.
    """

    turns: Length = Field(description="of a session: a law as in lengths", examples=["{law: fixed, tokens: 4}"])
    think_time: TimeLaw | None = Field(
        default=None, description="from an answer to the next turn: a time, or a law; by default none", examples=["5 s"]
    )


class Trace(Part):
    """Requests from a file: arrival times, and lengths unless `lengths` is given."""

    format: Literal["azure", "burstgpt", "mooncake", "vllm"] = Field(
        default="azure", description="azure: CSV with TIMESTAMP, ContextTokens, GeneratedTokens; burstgpt: CSV with "
        "Timestamp in s, Model, Request tokens, Response tokens (0: a failure, left out), Log Type; mooncake: JSON "
        "lines with timestamp in ms, input_length, output_length, hash_ids; vllm: JSON lines with arrival_time_ns, "
        "input_toks, output_toks, hash_ids. Equal hash_ids are equal blocks, of 512 and of 16 tokens",
    )  # fmt: skip
    file: InputFile
    from_s: Seconds = Field(default=0.0, description="requests before this are left out; from the first row")
    until_s: PositiveSeconds | None = None
    model: str | None = Field(default=None, description="burstgpt: only rows of this Model, such as GPT-4")
    log_type: str | None = Field(
        default=None, description="burstgpt: only rows of this Log Type, such as Conversation log"
    )

    @model_validator(mode="after")
    def _has_such_columns(self) -> Trace:
        for key in ("model", "log_type"):
            if getattr(self, key) is not None and self.format != "burstgpt":
                raise refused(f"a trace of format {self.format} has no column for {key}; leave it out", key)
        return self

    @model_validator(mode="after")
    def _is_a_span(self) -> Trace:
        if self.until_s is not None and self.until_s <= self.from_s:
            raise refused("until is not after from; no request would be left", "until")
        return self


class Experts(Part):
    """How popular a mixture's experts are."""

    popularity: Literal["uniform", "zipf", "recorded"] = "uniform"
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


class Serving(Workload):
    """Replicas of a model that serve requests."""

    kind: Literal["serving"]
    model: Model = Field(
        description="a preset of `spindle list models`, or the path of a Hugging Face config.json"
    )
    precision: Precision = Precision()
    replicas: Count = Field(default=1, description="with autoscale: at the beginning")
    autoscale: Autoscale | None = None
    parallelism: Degrees = Degrees()
    ranks: Ranks = Field(
        default=None, description="accelerators given to it; by default as many as it needs, from 0"
    )
    batching: Batching = Batching()
    kv: KvCache = KvCache()
    router: Router = Router()
    arrivals: Arrivals
    lengths: Lengths | None = Field(
        default=None, description="token counts; needed unless a trace gives them"
    )
    sessions: Sessions | None = None
    trace: Trace | None = None
    num_requests: Count | None = Field(default=None, description="stop arrivals after so many")
    duration_s: PositiveSeconds | None = Field(default=None, description="stop arrivals after this time")
    host_time_s: Seconds = Field(
        default=0.0,
        description="the engine's own time per step; a step takes the larger of it and the accelerator's",
    )
    client: Client = Client()
    experts: Experts = Experts()
    adapters: Adapters | None = None
    tenants: tuple[Tenant, ...] = Field(default=(), description="who shares it; metrics then are also by tenant")
    targets: Targets
    classes: tuple[ServiceClass, ...] = Field(
        default=(), description="service classes, drawn for each request by their shares; each has its own latencies "
        "among the metrics, such as serving.chat.interactive.p99_ttft_ms",
    )  # fmt: skip
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
    disaggregation: Disaggregation | None = Field(
        default=None, description="prefill and decode on separate replicas, in place of `replicas` and `parallelism`"
    )

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
        if self.contention and self.parallelism.expert == 1:
            raise refused(
                "nothing of a replica inside one host crosses the fabric; leave contention out, or spread its experts "
                "with parallelism: {expert: N}",
                "contention",
            )
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
            self.batching, self.classes, self.kv.swap_space_bytes, self.kv.prefix_caching, self.parallelism
        ))  # fmt: skip
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
            if batching.preemption == "swap" or batching.speculative is not None or batching.policy == "priority":
                raise refused(
                    "swapping, drafts and priorities are not there with prefill and decode apart; leave them out",
                    *where, "batching",
                )  # fmt: skip
        if self.is_reactive or any(pool.router.report_interval_s > 0 for _, pool in self.pools):
            raise refused(
                "clients that react, sessions, late reports and scaling are not there with prefill and decode apart; "
                "leave them out",
                "disaggregation",
            )
        if self.contention:
            raise refused("contention is not told apart with prefill and decode apart; leave it out", "contention")
        return self
