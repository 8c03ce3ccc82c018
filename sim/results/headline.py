"""The answer to a scenario's question in one computed sentence, with its confidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sim.results.main_metric import main_metric, unserved
from sim.results.metrics import (
    MetricMeaning,
    cut_at_zero,
    format_interval,
    format_percent,
    format_value,
    meaning_of,
    number,
)
from sim.results.run_results import RunResults
from sim.results.statistics import (
    Better,
    Difference,
    Estimate,
    mean_interval,
    paired_difference,
    ratio_of_means,
)
from sim.results.study import answer_of, findings_of

NAMED_AT_MOST = 3
FIGURES_OF = {"fluid": "in fluid", "packet": "in packets"}
PRICE_FROM = 0.05
"""A share of throughput, or of a tail of latency, that is worth a word as the price of the other."""
LIKE_IDEAL = 1e-4
"""A variant better than the ideal one by less than this share shows the same digits."""


@dataclass(frozen=True, slots=True)
class Headline:
    """sentence: the answer; short: the same as a figure's title; key: the metric it rests on, if any.

    best and ties: the leading variants (ties are no different from best); empty when none leads.
    """

    sentence: str
    short: str
    key: str | None
    best: str | None = None
    ties: tuple[str, ...] = ()


def ranked(means: Mapping[str, float | None], better: Better) -> list[str]:
    """The names that have a mean, the best first: the smallest one unless more is better; equals as they come."""
    known = {name: mean for name, mean in means.items() if mean is not None}
    sign = -1.0 if better == "higher" else 1.0
    return sorted(known, key=lambda name: sign * known[name])


def headline_of(run: RunResults) -> Headline:
    """Compute the answer.

    The variant with the best mean leads; others tie with it when the paired difference lies within ±1 %
    (network tax: ±1 percentage point). It is compared with the first variant of the scenario, or the worst
    one if the first ties. An ideal fabric is no contender; where one workload has it to itself and nothing is
    better under another variant, it is a bound. Of a run that was interrupted, only
    results that reached their end are compared. Of a run with axes it counts who wins under how many circumstances.
    Where the metric that the scenario asks for was not measured, it says so. It never says yes or no: what the question
    wants is not computed.
    """
    whole = run.comparable()
    key = main_metric(whole)
    ending = f"; partial: {_finished(run)}" if run.partial else ""
    lost = unserved(whole)
    none_served = [f"no request of {_named(w)} was served{': ' if why else ''}{why}" for w, why in lost.items()]
    if lost and (key is None or (key != run.answer and not run.axes)):
        short = f"No request of {_named(next(iter(lost)))} was served"
        return Headline(_capital("; ".join(none_served)) + f"{ending}.", short, None)
    if key is None:
        was_cut = len(whole.results) < len(run.results)
        said = f"{'No comparison' if was_cut else 'No answer yet'}: {_finished(run)}"
        return Headline(f"{said}.", said, None)
    beside = [*none_served, *_not_measured(whole, key)]
    if run.axes:
        answer = answer_of(findings_of(run))
        text = "; ".join([answer.removesuffix("."), *beside])
        return Headline(f"{text}{ending}.", answer, key)
    text, short, best, ties = _Answer(whole, key).compose()
    text = "; ".join([text, *beside])
    contenders = [name for name in run.variants if name != run.ideal_variant]
    if run.partial and sum(bool(whole.of_variant(name)) for name in contenders) < min(2, len(contenders)):
        short = f"No comparison: {_finished(run)}"
        return Headline(f"{short}; {text}.", short, key)
    return Headline(f"{_capital(text)}{ending}.", short, key, best, tuple(ties))


def _finished(run: RunResults) -> str:
    return f"{run.num_finished} of {run.num_expected} runs finished"


def _not_measured(run: RunResults, key: str) -> list[str]:
    """The metric that should answer, where another one had to."""
    if run.answer is None or run.answer == key:
        return []
    fidelities = {run.fidelity_of(name) for name in run.variants} - {None}
    is_of_packets = run.answer not in run.metric_keys() and fidelities == {"fluid"}
    why = f" (fluid has no {'queues' if 'queue' in run.answer else 'packets'})" if is_of_packets else ""
    return [f"{run.answer} was not measured{why}"]


class _Answer:
    """The comparison of variants by one metric, and the words for it."""

    def __init__(self, run: RunResults, key: str) -> None:
        self.run = run
        self.meaning: MetricMeaning = meaning_of(key)
        self.values = {name: run.values(name, key) for name in run.variants}
        self.mean = {name: mean_interval(values) for name, values in self.values.items()}
        self.known = [name for name in run.variants if self.mean[name].mean is not None]
        contenders = [name for name in self.known if name != run.ideal_variant]
        self.contenders = contenders if len(contenders) >= 1 else self.known
        self.ranked = self.in_rank(self.contenders)

    def in_rank(self, names: list[str]) -> list[str]:
        """The best first. Where `fidelity: auto` left some in fluid, fluid ranks all, and packets what they have."""
        better = self.meaning.better
        by_own = ranked({name: self.mean[name].mean for name in names}, better)
        if not self.run.mixes_fidelities(names):
            return by_own
        fluid = {name: mean_interval(self.run.fluid_values(name, self.meaning.key)).mean for name in names}
        order = by_fluid = ranked(fluid, better)
        if not by_fluid or self.run.fidelity_of(by_fluid[0]) == "packet":
            packets = [name for name in by_own if self.run.fidelity_of(name) == "packet"]
            order = packets + [name for name in by_fluid if name not in packets]
        return [name for name in order if self.difference(name, order[0]).difference.mean is not None]

    def difference(self, name: str, reference: str) -> Difference:
        return paired_difference(
            *self.run.paired(name, reference, self.meaning.key), self.meaning.better, self.meaning.is_share
        )

    def compose(self) -> tuple[str, str, str | None, list[str]]:
        best = self.ranked[0]
        if len(self.contenders) == 1:
            text, short = self.only(best)
            return text + self.bound() + self.missing() + self.fidelities(), short, None, []
        ties, clear, unclear = [], [], []
        for name in self.ranked[1:]:
            found = self.difference(name, best)
            if found.is_none:
                ties.append(name)
            elif found.verdict == "unclear":
                unclear.append(name)
            else:
                clear.append(name)
        ties, unclear = self.in_order(ties), self.in_order(unclear)
        if not clear and not unclear:
            text, short = self.no_difference()
        elif not clear:
            text, short = self.cannot_tell(best, ties, unclear)
        else:
            first = self.run.variants[0]
            reference = first if first in clear else clear[-1]
            text, short = self.against(best, reference, self.in_order([best, *ties]))
            text += self.others(best, reference, clear, ties, unclear) + self.tenants(best, reference)
            text += self.price(best, reference)
        if not clear:
            return text + self.bound() + self.missing() + self.fidelities(), short, None, []
        return text + self.bound() + self.missing() + self.fidelities(), short, best, ties

    def in_order(self, names: list[str]) -> list[str]:
        return [name for name in self.run.variants if name in names]

    def confidence(self) -> str:
        n = min(self.mean[name].num_values for name in self.contenders)
        return f"({n} seeds, 95 % CI)" if n > 1 else "(one seed: luck not excluded)"

    def value(self, name: str, with_interval: bool = False) -> str:
        estimate = self.mean[name]
        if self.meaning.is_share:
            shown = cut_at_zero(estimate, self.meaning) if with_interval else _point(estimate)
            return format_percent(shown, signed=False)
        text = format_value(estimate.mean, self.meaning)
        if with_interval and estimate.low != estimate.high:
            text += f" {format_interval(estimate, self.meaning)}"
        return text

    def subject(self) -> str:
        """The workload, as the sentence calls it."""
        return "the fabric" if self.meaning.workload is None else _named(self.meaning.workload)

    def lead(self, name: str) -> str:
        """`spray finishes shift in 327.1 µs`, in the words that fit the metric."""
        m, value = self.meaning, self.value(name)
        if m.name == "completion_time_s":
            return f"{name} finishes {self.subject()} in {value}"
        if m.name == "network_tax":
            tax = self.value(name, with_interval=True)
            return f"under {name} the network adds {tax} to {self.subject()}'s p99 time between tokens"
        extreme = {"lower": "lowest", "higher": "highest"}.get(m.better or "", "smallest")
        of = f" of {self.subject()}" if m.workload else ""
        return f"{name} has the {extreme} {m.label}{of}: {value}"

    def only(self, name: str) -> tuple[str, str]:
        m, value = self.meaning, self.value(name, with_interval=True)
        short = f"{m.label} of {self.subject()}: {self.value(name)}"
        if m.name == "completion_time_s":
            text = f"{self.subject()} finishes in {value}"
            short = f"{self.subject()} finishes in {self.value(name)}"
        elif m.name == "network_tax":
            over = "p99 time between tokens over an ideal fabric"
            text = f"the network adds {value} to {self.subject()}'s {over}"
        else:
            text = f"the {m.label} of {self.subject()} is {value}"
        under = "" if name == "run" else f" under {name}"
        return f"{text}{under} {self.confidence()}", _capital(short)

    def no_difference(self) -> tuple[str, str]:
        count = "both" if len(self.contenders) == 2 else f"all {len(self.contenders)}"
        value, m = self.value(self.ranked[0]), self.meaning
        within = f"within 1 {'percentage point' if m.is_share else '%'} of one another {self.confidence()}"
        if m.name == "completion_time_s":
            text = f"{count} variants finish {self.subject()} in {value}"
        else:
            text = f"under {count} variants the {m.label} of {self.subject()} is {value}"
        return f"no difference: {text}, {within}", f"No difference: {text}"

    def cannot_tell(self, best: str, ties: list[str], unclear: list[str]) -> tuple[str, str]:
        worst = [name for name in self.ranked if name in unclear][-1]
        gap = self.difference(best, worst)
        judged = gap.difference if self.meaning.is_share else gap.relative
        points = " points" if self.meaning.is_share else ""
        text = (
            f"no clear difference in the {self.meaning.label} of {self.subject()}: {best} against {worst} is "
            f"{format_percent(judged)}{points}, an interval that includes 0 {self.confidence()}"
        )
        if ties:
            text += f"; {_listed(ties)} {_are(ties)} no different from {best} (within 1 %)"
        short = f"No clear difference in the {self.meaning.label} of {self.subject()}"
        return text + "; more seeds would tell", short

    def against(self, best: str, reference: str, leaders: list[str]) -> tuple[str, str]:
        if self.meaning.name == "network_tax":
            against = f"against {self.value(reference, True)} under {reference}"
            text = f"{self.lead(best)} over an ideal fabric, {against}"
            short = f"Network tax: {self.value(best)} under {best}, {self.value(reference)} under {reference}"
            return f"{text} {self.confidence()}", short
        words, plain = self.ratio(best, reference)
        if self.meaning.name == "completion_time_s":
            short = f"{_listed(leaders)} finish{'es' if len(leaders) == 1 else ''} {self.subject()} {plain}"
        else:
            short = f"{_listed(leaders)}: {self.meaning.label} of {self.subject()} {plain}"
        return f"{self.lead(best)}, {words} {self.confidence()}", _capital(short)

    def ratio(self, best: str, reference: str) -> tuple[str, str]:
        """How much better, with and without the interval: a factor from 1.5 on, a percentage below."""
        m = self.meaning
        ours, theirs = self.run.paired(best, reference, m.key)
        factor = ratio_of_means(ours, theirs) if m.better == "higher" else ratio_of_means(theirs, ours)
        is_time = m.quantity in ("seconds", "milliseconds")
        if factor.mean is not None and factor.mean >= 1.5:
            bounds = _factor_bounds(factor)
            if m.name == "completion_time_s":
                form = "{} times as fast as " + reference
            elif m.better == "higher":
                form = "{} times that of " + reference
            else:
                form = f"{{}} times {'shorter' if is_time else 'smaller'} than under {reference}"
            value = _factor(factor.mean)
            return form.format(value + bounds), form.format(value)
        relative = self.difference(best, reference).relative
        size = relative.mapped(abs)  # the interval excludes 0 here, so that abs is monotonic on it
        is_up = (relative.mean or 0.0) > 0
        form, start = f"{{}} {'higher' if is_up else 'lower'} than under {reference}", ""
        if m.name == "completion_time_s":
            form, start = f"{{}} {'more' if is_up else 'less'} time than {reference}", "in "
        return form.format(format_percent(size, False)), start + form.format(format_percent(_point(size), False))

    def others(self, best: str, reference: str, clear: list[str], ties: list[str], unclear: list[str]) -> str:
        text = ""
        if ties:
            margin = "1 percentage point" if self.meaning.is_share else "1 %"
            text += f"; {_listed(ties)} {_are(ties)} no different from {best} (within {margin})"
        alike = [name for name in clear if not self.run.compares_in_fluid(name, best)]
        if alike and alike[-1] != reference:
            is_time = self.meaning.quantity in ("seconds", "milliseconds")
            among = "" if len(alike) == len(clear) else f" {FIGURES_OF[str(self.run.fidelity_of(best))]}"
            worst = f"{'slowest' if is_time else 'worst'}{among} is {alike[-1]} with {self.value(alike[-1])}"
            text += f"; the {worst}"
        if unclear:
            n = min(self.mean[name].num_values for name in (best, *unclear))
            means = [f"{name} ({self.value(name)} on average)" for name in unclear]
            text += f"; {_listed(means)} cannot be told apart from {best} with {n} seeds"
        return text

    def tenants(self, best: str, reference: str) -> str:
        """Of a tenant's metric: what the workload's other tenants have of it, under the same two variants."""
        parent, _, tenant = (self.meaning.workload or "").rpartition(".")
        start, name = f"{self.meaning.kind}.{parent}.", self.meaning.name
        keys = self.run.metric_keys()
        if not parent or f"{start}{name}" not in keys:
            return ""
        text = ""
        for key in keys:
            other = key.removeprefix(start).removesuffix(f".{name}")
            if key != f"{start}{other}.{name}" or "." in other or other == tenant:
                continue
            pairs = self.run.paired(best, reference, key)
            found = paired_difference(*pairs, self.meaning.better, self.meaning.is_share)
            mean = mean_interval(self.run.values(best, key)).mean
            shown = found.difference if self.meaning.is_share else found.relative
            if mean is None or shown.mean is None:
                continue
            points = " points" if self.meaning.is_share else ""
            change = f"{format_percent(shown)}{points} against {reference}"
            is_worse = (shown.mean > 0) == (self.meaning.better == "lower")
            if found.is_none:
                text += f"; {other} has the same ({format_value(mean, self.meaning)})"
            elif found.verdict != "unclear":
                verb = "pays" if is_worse else "gains as well"
                text += f"; {other} {verb}: {format_value(mean, self.meaning)}, {change}"
            else:
                text += f"; what {other} pays cannot be told: {format_value(mean, self.meaning)}, {change}"
        return text

    def price(self, best: str, reference: str) -> str:
        """What a service's better latency costs in output throughput, and more throughput in tails of latency."""
        is_latency = self.meaning.quantity == "milliseconds"
        text = ""
        for name in ("output_throughput",) if is_latency else ("p99_ttft_ms", "p99_itl_ms"):
            key = f"serving.{self.meaning.workload}.{name}"
            if self.meaning.kind != "serving" or not (is_latency or self.meaning.quantity == "per_second"):
                return ""
            if key not in self.run.metric_keys():
                continue
            other = meaning_of(key)
            found = paired_difference(*self.run.paired(best, reference, key), other.better)
            change = found.relative.mean
            is_worse = change is not None and (change > 0) == (other.better == "lower")
            if change is not None and is_worse and abs(change) >= PRICE_FROM and found.verdict != "unclear":
                value = format_value(mean_interval(self.run.values(best, key)).mean, other)
                text += f"; it costs in {other.label}: {value}, {format_percent(found.relative)} against {reference}"
        return text

    def bound(self) -> str:
        """What an ideal fabric would do, where it is known and not the metric's own reference."""
        ideal = self.run.ideal_variant
        if ideal is None or ideal in self.contenders or ideal not in self.known or self.meaning.is_share:
            return ""
        if self.run.compares_in_fluid(ideal, self.ranked[0]):
            return ""
        why_not = self.why_no_bound(ideal)
        if why_not:
            return f"; {ideal} gives {self.value(ideal)} (no bound here: {why_not})"
        return f"; an ideal fabric gives {self.value(ideal)}"

    def why_no_bound(self, ideal: str) -> str:
        """Why the ideal variant bounds nothing; empty where it does.

        Several workloads compete for the hosts' links on an ideal fabric too: what delays one may speed another up.
        """
        best, bound = self.mean[self.ranked[0]].mean or 0.0, self.mean[ideal].mean or 0.0
        gain = best - bound if self.meaning.better == "higher" else bound - best
        if self.meaning.better is not None and gain > LIKE_IDEAL * abs(bound):
            return f"{self.ranked[0]} is better"
        workloads = {meaning_of(key).workload for key in self.run.metric_keys()} - {None}
        return "several workloads share the hosts' links" if len(workloads) > 1 else ""

    def fidelities(self) -> str:
        """What of the comparison is of another fidelity than the best one's figures."""
        best = self.ranked[0]
        in_fluid = [n for n in self.ranked[1:] if self.run.compares_in_fluid(n, best)]
        text = f"; {_listed(in_fluid)} {_are(in_fluid)} compared with it in fluid" if in_fluid else ""
        apart = [name for name in self.contenders if name not in self.ranked]
        if apart:
            text += f"; {_listed(apart)} {_are(apart)} not compared: of another fidelity"
        return text

    def missing(self) -> str:
        lost = [name for name in self.run.variants if name not in self.known]
        lost = [name for name in lost if self.run.of_variant(name)]
        if not lost:
            return ""
        has_key = any(self.meaning.key in result.metrics for name in lost for result in self.run.of_variant(name))
        fidelities = {self.run.fidelity_of(name) for name in lost}, {self.run.fidelity_of(n) for n in self.known}
        if not has_key and fidelities == ({"fluid"}, {"packet"}):
            return f"; {_listed(lost)} ran in fluid, which does not measure it"
        completed = f"serving.{self.meaning.workload}.completed"
        served_none = all(self.run.values(name, completed).count(0) == len(self.run.seeds) for name in lost)
        return f"; {_listed(lost)} {'served no request' if served_none else 'did not get there'}"


def _named(workload: str) -> str:
    """A workload's name in a sentence; one or two letters could be taken for a word, so they are quoted."""
    return workload if len(workload) > 2 else f"'{workload}'"


def _point(estimate: Estimate) -> Estimate:
    return Estimate(estimate.mean, None, None, estimate.num_values)


def _factor(value: float) -> str:
    return number(value, 1 if value < 100 else 0)


def _factor_bounds(factor: Estimate) -> str:
    if factor.low is None or factor.high is None:
        return ""
    return f" [{_factor(factor.low)}, {_factor(factor.high)}]"


def _listed(names: list[str]) -> str:
    shown = names if len(names) <= NAMED_AT_MOST else [*names[: NAMED_AT_MOST - 1], f"{len(names) - 2} more"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def _are(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _capital(text: str) -> str:
    """A capital first letter, unless the first word is a setting such as paths.policy=ecmp."""
    first = text.split(" ", 1)[0].rstrip(",:;")
    return text[:1].upper() + text[1:] if first.isalpha() else text
