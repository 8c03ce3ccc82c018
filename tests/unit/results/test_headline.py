from dataclasses import replace

import pytest
from synthetic_results import make_run

from sim.results.headline import headline_of, ranked
from sim.results.main_metric import main_metric
from sim.results.metrics import common_unit, cut_at_zero, format_interval, format_value, meaning_of
from sim.results.run_results import RunResults, VariantResult, add_network_tax
from sim.results.statistics import Estimate, mean_interval
from sim.results.study import answer_of, findings_of

KEY = "traffic.shift.completion_time_s"


def run_of(values: dict[str, list[float | None]], key: str = KEY, **overrides) -> RunResults:
    """A run whose only metric has these values per variant and seed."""
    num_seeds = max(len(v) for v in values.values())
    run = RunResults("s", "?", tuple(range(1, num_seeds + 1)), tuple(values), "0.1.0", None)
    for name, by_seed in values.items():
        for seed, value in enumerate(by_seed, start=1):
            run.results[name, seed] = VariantResult(name, seed, {key: value})
    for name, value in overrides.items():
        setattr(run, name, value)
    return run


def said(run: RunResults) -> str:
    return headline_of(run).sentence.replace("\u00a0", " ")


def test_best_against_the_first_with_a_tie():
    run = run_of({"ecmp": [3e-4, 4e-4, 5e-4], "spray": [1e-4] * 3, "ethereal": [1.001e-4] * 3})
    headline = headline_of(run)
    assert (headline.best, headline.ties) == ("spray", ("ethereal",))
    assert said(run) == (
        "Spray finishes shift in 100.0 µs, 4.0 [1.5, 6.5] times as fast as ecmp (3 seeds, 95 % CI); "
        "ethereal is no different from spray (within 1 %)."
    )


def test_one_seed_says_that_luck_is_not_excluded():
    assert said(run_of({"ecmp": [2e-4], "spray": [1e-4]})) == (
        "Spray finishes shift in 100.0 µs, 2.0 times as fast as ecmp (one seed: luck not excluded)."
    )


def test_small_gains_are_percentages():
    text = said(run_of({"ecmp": [1.0, 1.0, 1.1], "spray": [0.9, 0.9, 1.0]}))
    assert "less time than ecmp (3 seeds, 95 % CI)" in text and "9.7 %" in text


def test_no_difference_and_no_clear_difference():
    same = run_of({"a": [1.0, 2.0, 3.0], "b": [1.001, 2.001, 3.002]})
    assert said(same).startswith("No difference: both variants finish shift in")
    assert headline_of(same).best is None
    noisy = run_of({"a": [1.0, 2.0, 3.0], "b": [2.0, 1.0, 3.5]})
    assert said(noisy).startswith("No clear difference") and said(noisy).endswith("more seeds would tell.")


def test_the_ideal_fabric_is_a_bound_not_a_contender():
    run = run_of({"ecmp": [4.0], "spray": [1.02], "ideal": [1.0]}, ideal_variant="ideal")
    assert headline_of(run).best == "spray"
    assert said(run).endswith("; an ideal fabric gives 1.000 s.")


def test_an_ideal_fabric_is_called_no_bound_where_it_is_none():
    faster = run_of({"ecmp": [4.0], "spray": [0.9], "ideal": [1.0]}, ideal_variant="ideal")
    assert said(faster).endswith("; ideal gives 1.000 s (no bound here: spray is better).")
    equal = run_of({"ecmp": [4.0], "spray": [1.0 - 1e-9], "ideal": [1.0]}, ideal_variant="ideal")
    assert said(equal).endswith("; an ideal fabric gives 1.000 s.")
    shared = run_of({"ecmp": [4.0], "spray": [1.5], "ideal": [1.0]}, ideal_variant="ideal")
    for result in shared.results.values():
        result.metrics["training.neighbour.step_s.mean"] = 1.0
    assert said(shared).endswith("; ideal gives 1.000 s (no bound here: several workloads share the hosts' links).")


def test_a_variant_that_two_seeds_do_not_tell_apart_is_named_with_its_mean():
    """The last one's mean is four times the best one's too; its difference, 7.5 ± 12.7 · 1.5 ms, includes 0."""
    text = said(run_of({"exact": [2.5e-3, 2.5e-3], "ethereal": [10.2e-3, 10.3e-3], "single path": [8.5e-3, 11.5e-3]}))
    assert text.startswith("Exact finishes shift in 2.500 ms, 4.1 ")
    assert text.endswith("; single path (10.00 ms on average) cannot be told apart from exact with 2 seeds.")


def test_intervals_of_what_cannot_be_negative_are_shown_from_zero_on():
    """1 and 3: 2 ± 12.7, from −10.7 on; a tax may be a gain, so its interval stays."""
    estimate = mean_interval([1.0, 3.0])
    assert estimate.low < -10
    assert format_interval(estimate, meaning_of("serving.chat.p90_itl_ms")).startswith("[0.000, 14.7")
    tax = "serving.chat.network_tax"
    assert cut_at_zero(estimate, meaning_of(tax)) == estimate
    assert "[−10.7, 14.7]" in said(run_of({"run": [0.01, 0.03]}, key=tax))
    assert "[0.0, 14.7]" in said(run_of({"run": [0.01, 0.03]}, key="training.t.communication_share"))


def test_higher_is_better_turns_the_ranking_round():
    run = run_of({"a": [10e9, 11e9], "b": [20e9, 22e9]}, key="collective.x.bus_bytes_per_s")
    assert said(run).startswith(
        "B has the highest bus bandwidth of 'x': 21.00 GB/s, 2.0 [2.0, 2.0] times that of a (2 seeds"
    )


def test_network_tax_leads_where_there_is_an_ideal_fabric():
    run = make_run(("single path", "spray", "ideal"), 3, num_requests=40, leaves=2, spines=2)
    add_network_tax(run)
    assert main_metric(run) == "serving.chat.network_tax"
    text = said(run)
    assert text.startswith("Under spray the network adds ")
    assert "to chat's p99 time between tokens over an ideal fabric, against " in text


def test_the_scenario_may_name_the_metric_that_answers():
    run = make_run(num_seeds=1, num_requests=12, leaves=2, spines=2)
    assert main_metric(run) == "serving.chat.p99_itl_ms"
    run.answer = KEY
    assert main_metric(run) == KEY
    run.answer = "traffic.unknown.completion_time_s"
    assert main_metric(run) == "serving.chat.p99_itl_ms"


def test_a_single_variant_partial_and_missing_values():
    assert said(run_of({"run": [1.0, 1.0]})) == "Shift finishes in 1.000 s (2 seeds, 95 % CI)."
    lost = run_of({"a": [1.0], "b": [None]}, partial=True)
    assert "b did not get there" in said(lost) and "partial: 2 of 2 runs finished" in said(lost)
    assert headline_of(run_of({"a": [None]})).key is None
    assert headline_of(RunResults("s", None, (1,), ("a",), "0", None)).key is None


@pytest.mark.parametrize(
    ("key", "workload", "label", "better"),
    [
        (KEY, "shift", "completion time", "lower"),
        ("traffic.v1.5 load.fct_s.p99", "v1.5 load", "p99 flow completion time", "lower"),
        ("serving.chat.p99_itl_ms", "chat", "p99 time between tokens", "lower"),
        ("serving.chat.output_throughput", "chat", "output throughput", "higher"),
        ("links.max_load_over_fair", None, "hottest link over fair share", "lower"),
        ("training.gpt.num_steps", "gpt", "steps", None),
        ("traffic.v1.5 web.slowdown.p99", "v1.5 web", "p99 slowdown", "lower"),
        ("traffic.web.slowdown.1e4-1e5.p99", "web", "p99 slowdown of flows of 1e4-1e5 B", "lower"),
        ("serving.chat.new_wait_ms", "chat", "new wait", None),
    ],
)
def test_metric_keys_are_taken_apart(key, workload, label, better):
    meaning = meaning_of(key)
    assert (meaning.workload, meaning.label, meaning.better) == (workload, label, better)


def test_values_are_printed_in_units_that_read_well():
    time = meaning_of(KEY)
    shown = [format_value(v, time).replace("\u00a0", " ") for v in (3.271e-4, 1.0, 0.0, None)]
    assert shown == ["327.1 µs", "1.000 s", "0 s", "–"]
    assert common_unit(time, [3.27e-4, 1.4e-3]) == (1e-6, "µs")
    assert common_unit(time, [3.27e-4, 50.0]) == (1.0, "s")
    assert format_value(0.339, meaning_of("serving.chat.network_tax")) == "33.9\u00a0%"


def test_a_rounding_error_is_shown_as_no_time():
    """A part of a request's time is a difference of sums: 1.3 fs below zero, of an unit of 1 µs, is none."""
    part = meaning_of("serving.chat.mean_host_ms")
    found = Estimate(-1.3e-12, 0.0, 4.1e-12, 3)
    assert format_value(found.mean, part).replace("\u00a0", " ") == "0 µs"
    assert format_interval(found, part) == "[0, 0]"
    assert format_value(2e-6, part).replace("\u00a0", " ") == "0.002000 µs"


def test_an_interrupted_result_is_shown_but_does_not_count_as_finished():
    run = run_of({"a": [1.0, 2.0], "b": [3.0]}, partial=True)
    run.results["a", 2].notes["partial"] = True
    assert run.num_finished == 2 and run.num_expected == 4
    assert "(one seed: luck not excluded)" in said(run) and "partial: 2 of 4 runs finished" in said(run)


def test_open_loop_traffic_answers_with_its_slowdown_not_with_the_arrival_window():
    """Flows that arrive for 10 ms finish a little after 10 ms under any policy."""
    run = run_of({"ecmp": [10.9e-3], "spray": [10.8e-3]}, key="traffic.web.completion_time_s")
    for name, slowdown in (("ecmp", 12.0), ("spray", 4.0)):
        run.results[name, 1].metrics.update({"traffic.web.fct_s.p99": 1e-3, "traffic.web.slowdown.p99": slowdown})
    assert main_metric(run) == "traffic.web.slowdown.p99"
    assert said(run).startswith("Spray has the lowest p99 slowdown of web: 4.00 ×, 3.0 times smaller than under ecmp")
    for result in run.results.values():
        result.metrics["traffic.shift.completion_time_s"] = 1.0
    assert main_metric(run) == "traffic.shift.completion_time_s"


def test_titles_say_which_time_of_what():
    percent = run_of({"ecmp": [1.0], "spray": [0.9]})
    assert headline_of(percent).short == "Spray finishes shift in 10.0\u00a0% less time than ecmp"
    factor = run_of({"ecmp": [2.0], "spray": [1.0], "ethereal": [1.0]})
    assert headline_of(factor).short == "Spray and ethereal finish shift 2.0 times as fast as ecmp"
    itl = run_of({"a": [40.0], "b": [30.0]}, key="serving.chat.p99_itl_ms")
    assert headline_of(itl).short == "B: p99 time between tokens of chat 25.0\u00a0% lower than under a"
    same = headline_of(run_of({"a": [1.0], "b": [1.0]}))
    assert same.short == "No difference: both variants finish shift in 1.000\u00a0s"


def test_a_workload_of_one_letter_is_quoted():
    run = run_of({"ecmp": [2.0], "spray": [1.0]}, key="traffic.a.completion_time_s")
    assert said(run).startswith("Spray finishes 'a' in 1.000 s")


def refusing(variants, num_arrived=16, **metrics) -> RunResults:
    """Runs whose serving workload `s` refused every request."""
    run = run_of({name: [0] for name in variants}, key="serving.s.completed")
    for result in run.results.values():
        result.metrics.update({"serving.s.arrived": num_arrived, "serving.s.p99_itl_ms": None, **metrics})
        result.notes["warnings"] = ["s: 16 requests refused: larger than the KV cache"]
    return run


def test_when_no_request_was_served_the_headline_says_so_and_why():
    assert said(refusing(["a", "b"])) == "No request of 's' was served: 16 requests refused: larger than the KV cache."
    beside = refusing(["a", "b"], **{KEY: 2.0})
    assert said(beside).startswith("No request of 's' was served")
    beside.answer = KEY
    assert said(beside).startswith("No difference: both variants finish shift in")
    assert "; no request of 's' was served: 16 requests refused" in said(beside)


def test_a_variant_that_served_nothing_is_named():
    run = refusing(["a", "b", "c"])
    for name in ("a", "b"):
        run.results[name, 1].metrics.update({"serving.s.completed": 16, "serving.s.p99_itl_ms": 20.0})
    assert said(run).endswith("; c served no request.")


def test_runs_cut_at_different_times_are_not_compared():
    run = run_of({"a": [1.0], "b": [3.0]}, partial=True)
    for result in run.results.values():
        result.notes["partial"] = True
    headline = headline_of(run)
    assert headline.sentence == "No comparison: 0 of 2 runs finished." and headline.key is None
    del run.results["a", 1].notes["partial"]
    assert said(run) == (
        "No comparison: 1 of 2 runs finished; shift finishes in 1.000 s under a (one seed: luck not excluded)."
    )
    assert headline_of(run).best is None


def test_an_interrupted_single_variant_shows_what_there_is():
    run = run_of({"run": [1.0]}, partial=True)
    run.results["run", 1].notes["partial"] = True
    assert said(run) == (
        "Shift finishes in 1.000 s (one seed: luck not excluded); partial: 0 of 1 runs finished."
    )


@pytest.mark.parametrize("name", ["payload_bytes", "wire_bytes"])
def test_bytes_of_links_are_those_that_hosts_sent(name):
    assert meaning_of(f"links.{name}").label.endswith("sent by hosts")


# --- fidelities, and what was not measured ----------------------------------------------------------------------------


def in_fidelities(run: RunResults, fluid: dict[str, float], packets: tuple[str, ...]) -> RunResults:
    """As `fidelity: auto` leaves it: fluid figures for all, packets of these."""
    for (name, _), result in run.results.items():
        is_packet = name in packets
        result.notes["fidelity"] = "packet" if is_packet else "fluid"
        result.notes["escalation"] = {"because": [], "stays": None, "fluid": {KEY: fluid[name]} if is_packet else None}
    return run


def test_ranked_puts_the_best_first_and_leaves_out_what_has_no_mean():
    means = {"a": 2.0, "b": None, "c": 1.0, "d": 1.0}
    assert ranked(means, "lower") == ["c", "d", "a"] and ranked(means, "higher") == ["a", "c", "d"]


def test_the_slowest_is_one_whose_figures_compare_with_the_best_ones():
    """Both of packets: 1.0 and 9.0 s; far is 5.0 s in fluid and ranks last there, where slow took 3.0 s."""
    run = run_of({"first": [2.0], "best": [1.0], "slow": [9.0], "far": [5.0]})
    in_fidelities(run, {"first": 2.0, "best": 1.0, "slow": 3.0, "far": 5.0}, ("first", "best", "slow"))
    assert "; the slowest in packets is slow with 9.000 s; far is compared with it in fluid" in said(run)
    run = run_of({"first": [2.0], "best": [1.0], "far": [5.0]})
    in_fidelities(run, {"first": 2.0, "best": 1.0, "far": 5.0}, ("first", "best"))
    assert "slowest" not in said(run)


def test_an_answer_that_was_not_measured_is_named():
    run = run_of({"a": [2.0], "b": [1.0]}, answer="links.queue_wait_p99_s")
    assert said(run).endswith("; links.queue_wait_p99_s was not measured.")
    for result in run.results.values():
        result.notes["fidelity"] = "fluid"
    assert said(run).startswith("B finishes shift in 1.000 s")
    assert said(run).endswith("; links.queue_wait_p99_s was not measured (fluid has no queues).")
    run.answer = "traffic.shift.retransmitted_share"
    assert said(run).endswith("; traffic.shift.retransmitted_share was not measured (fluid has no packets).")


def test_what_stayed_fluid_is_named_where_packets_answer():
    run = run_of({"a": [2.0], "b": [1.0], "c": [3.0]}, answer="links.queue_wait_p99_s")
    in_fidelities(run, {"a": 2.0, "b": 1.0, "c": 3.0}, ("a", "b"))
    run.results["a", 1].metrics["links.queue_wait_p99_s"] = 4e-6
    run.results["b", 1].metrics["links.queue_wait_p99_s"] = 1e-6
    assert "; c ran in fluid, which does not measure it" in said(run)


def over_axes(values: dict[str, list[float | None]], **overrides) -> RunResults:
    sizes = tuple(dict.fromkeys(name.partition(", ")[0] for name in values))
    policies = tuple(dict.fromkeys(name.partition(", ")[2] for name in values))
    return run_of(values, axes={"size": sizes, "policy": policies}, **overrides)


def test_a_run_with_axes_says_that_it_is_partial_what_was_not_served_and_what_was_not_measured():
    values = {"1 MB, ecmp": [2.0, 2.0], "1 MB, spray": [1.0, 1.0], "2 MB, ecmp": [4.0, 4.0], "2 MB, spray": [2.0]}
    whole = over_axes(values)
    assert headline_of(whole).sentence == answer_of(findings_of(whole))
    run = over_axes(values, partial=True, answer="links.longest_queue_bytes")
    for result in run.results.values():
        result.notes["fidelity"] = "fluid"
        result.metrics.update({"serving.s.completed": 0, "serving.s.arrived": 16})
    assert said(run).startswith("Of 2 cases spray wins 2")
    assert said(run).endswith(
        "; no request of 's' was served; links.longest_queue_bytes was not measured (fluid has no queues); "
        "partial: 7 of 8 runs finished."
    )
    for result in run.results.values():
        result.notes["partial"] = True
    assert said(run) == "No comparison: 0 of 8 runs finished."


def test_what_other_tenants_pay_is_said_beside_the_gain():
    """Only of the tenants' own metric, and of those who share the workload."""
    key = "serving.chat.people.p99_ttft_ms"
    run = run_of({"arrival": [200.0, 210.0, 220.0], "priority": [100.0, 105.0, 110.0]}, key, answer=key)
    others = {
        "serving.chat.p99_ttft_ms": (150.0, 150.0), "serving.chat.batch.p99_ttft_ms": (100.0, 150.0),
        "serving.chat.cron.p99_ttft_ms": (100.0, 100.0), "serving.chat.bot.p99_ttft_ms": (100.0, 50.0),
        "serving.mail.people.p99_ttft_ms": (100.0, 900.0), "serving.chat.batch.p99_itl_ms": (1.0, 9.0),
    }  # fmt: skip
    for (name, seed), result in run.results.items():
        for other, values in others.items():
            result.metrics[other] = values[name == "priority"] * (1 + 0.001 * seed)
    text = said(run)

    assert "batch pays: 150.3 ms, +50.0 % [50.0, 50.0] against arrival" in text
    assert "; cron has the same (100.2 ms)" in text
    assert "bot gains as well: 50.10 ms, −50.0 % [−50.0, −50.0] against arrival" in text
    assert "mail" not in text and text.count("against arrival") == 2


def test_a_latency_says_what_throughput_it_costs_and_the_other_way_round():
    """Two and four times the throughput at twice the tail; what differs by less than a twentieth is no price."""
    itl, throughput, ttft = (f"serving.chat.{name}" for name in ("p99_itl_ms", "output_throughput", "p99_ttft_ms"))
    run = run_of({"few": [20.0, 20.2, 20.4], "many": [40.0, 40.4, 40.8]}, itl, answer=itl)
    for (name, seed), result in run.results.items():
        result.metrics[throughput] = (1000.0 if name == "few" else 4000.0) * (1 + 0.001 * seed)
        result.metrics[ttft] = 100.0 if name == "few" else 104.0
    assert said(run).endswith(
        "; it costs in output throughput: 1\u202f002 tokens/s, −75.0 % [−75.0, −75.0] against many."
    )
    text = said(replace(run, answer=throughput))
    assert text.endswith("; it costs in p99 time between tokens: 40.40 ms, +100 % [100, 100] against few.")
    assert "first token" not in text
    for result in run.results.values():
        result.metrics[throughput] = 1000.0
    assert "costs" not in said(run)
