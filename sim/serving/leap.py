"""Steps of a steady batch, without asking the policy in between, and what ends the stages of its requests."""

from __future__ import annotations

from models.compiled import inner_borrowing
from models.cost.step import AttentionTable, StepTable, decode_seconds, step_parts, tail_seconds
from sim.devices.kv_cache import hold, note_contents
from sim.serving.adapter_experts import tally_experts, touched_experts
from sim.serving.adapter_pool import next_ready_s
from sim.serving.attention import tally
from sim.serving.offload import store_leapt
from sim.serving.state import MAX_LEAP, EngineState
from sim.serving.step import graph_tokens, record_step
from sim.serving.time_split import DECODING, PREFILLING, RECOMPUTING, enter
from sim.serving.verbs import next_arrival_s


@inner_borrowing
def _decodes_from(
    state: EngineState, attention: AttentionTable, num_steps: int
) -> tuple[float, float, int, bool, int]:
    """Attention of the steady batch in flight, `num_steps` on: (seconds, what each further step adds, the step at which
    that changes because a context has come to a node of the table, whether any lies beyond the table, the longest
    context)."""
    size = state.flight[0].batch_size
    decode_s = 0.0
    slope_s = 0.0
    steps_on = MAX_LEAP
    longest = 0
    in_flight = state.in_flight
    for i in range(size):
        context = in_flight[i].prefix + 1 + num_steps
        segment = attention.segment[context]
        decode_s += decode_seconds(attention, size, context)
        slope_s += attention.decode_slope[size, segment]
        steps_on = min(steps_on, max(int(attention.context[segment + 1]) - context, 1))
        longest = max(longest, context)
    return decode_s, slope_s, num_steps + steps_on, longest > attention.decode_limit[size], longest - num_steps


@inner_borrowing
def end_recomputing(state: EngineState) -> None:
    """The step in flight has finished: who has computed again in it all that was lost goes on."""
    counts, flight = state.counts[0], state.flight[0]
    in_flight, requests, splits = state.in_flight, state.requests, state.splits
    for i in range(flight.batch_size):
        entry = in_flight[i]
        split = splits[entry.request]
        if split.stage == RECOMPUTING and entry.prefix + entry.num_tokens >= split.num_lost:
            enter(counts, requests, splits, entry.request, PREFILLING, flight.finish_s)


@inner_borrowing
def _end_first_stages(state: EngineState) -> None:
    """After the first step of a leap: a prompt of one token, or the last token computed again."""
    counts, flight = state.counts[0], state.flight[0]
    if counts.num_recomputing > 0:
        end_recomputing(state)
    in_flight, requests, splits = state.in_flight, state.requests, state.splits
    for i in range(flight.batch_size):
        if requests[in_flight[i].request].num_generated == 0:
            enter(counts, requests, splits, in_flight[i].request, DECODING, flight.finish_s)


@inner_borrowing
def next_change_s(state: EngineState) -> float:
    """When somebody comes, or an adapter that is being loaded is there."""
    arrival_s = next_arrival_s(state)
    return min(arrival_s, next_ready_s(state)) if state.counts[0].is_overlapped else arrival_s


@inner_borrowing
def leap(state: EngineState, table: StepTable, until_s: float, is_trial: bool = False) -> int:
    """Run the steady batch in flight again and again, until something may change; returns the steps finished.

    Of a trial the state keeps nothing but when the last one ends, at that place of leap_finish_s.

    That is: until a request is to compute its last token, somebody arrives, an adapter has been loaded, blocks run out,
    or a step would end after until_s. The steps differ only in their contexts, each one longer than before, so they are
    priced one by one here, and the requests are brought up to date once at the end. The last one is then in flight.
    """
    counts, flight = state.counts[0], state.flight[0]
    kv = state.kv.counts[0]
    size = flight.batch_size
    limit = MAX_LEAP - 1
    is_stage_over = counts.num_recomputing > 0
    # A request needs a new block in the step that finds its last one full: count those by distance.
    fill = state.block_fill
    fill[:] = 0
    in_flight, requests, token_time_s = state.in_flight, state.requests, state.token_time_s
    for i in range(size):
        row = requests[in_flight[i].request]
        limit = min(limit, row.num_output_tokens - row.num_generated - 1)
        is_stage_over |= row.num_generated == 0
        fill[row.num_computed % kv.block_size] += 1
    if limit <= 0:
        return 0
    arrival_s = next_change_s(state)
    num_free = kv.num_free
    residue = 0
    context = flight.decode_context
    num_steps = 0
    is_measured = table.attention.chunk.size > 0
    tokens = graph_tokens(size, counts.max_graph_tokens)
    has_adapters = table.mix.log_miss.size > 0
    touched = touched_experts(state, table, in_flight, size, tokens - size) if has_adapters else 0.0
    decode_s = 0.0
    slope_s = 0.0
    is_outside = False
    next_node = 1
    longest = 0
    started_s, finish_s = flight.started_s, flight.finish_s
    flight_compute_s, flight_communication_s = flight.compute_s, flight.communication_s
    flight_prompt = flight.prefill_tokens
    while num_steps < limit:
        formed_s = flight.started_s if counts.is_async else flight.finish_s
        # In step j a request with c tokens computed needs a block if (c + j) is a multiple of the size.
        if fill[residue] > num_free or formed_s >= arrival_s or formed_s >= until_s or flight.finish_s > until_s:
            break
        held = kv.num_blocks - num_free
        num_free -= fill[residue]
        if counts.is_async:
            held = kv.num_blocks - num_free
        residue = kv.block_size - 1 if residue == 0 else residue - 1
        if not is_trial:
            record_step(state, held)
        state.leap_finish_s[num_steps] = flight.finish_s
        if is_stage_over and num_steps == 0 and not is_trial:
            _end_first_stages(state)
        num_steps += 1
        context += size
        tail_s = 0.0
        if is_measured:
            if num_steps == next_node:
                decode_s, slope_s, next_node, is_outside, longest = _decodes_from(state, table.attention, num_steps)
            else:
                decode_s += slope_s
            if table.attention.tail.size > 0:
                tail_s = tail_seconds(table.attention, 0, size, context / size, longest + num_steps)
        compute_s, communication_s = step_parts(
            table, tokens, size, size, 0, 0, context, 0.0, decode_s + tail_s, touched
        )
        if not is_trial:
            tally(state, tokens, size, 0.0, decode_s + tail_s, is_outside)
            counts.total_s += compute_s + communication_s
        flight.prefill_tokens = 0
        flight.compute_s = compute_s
        flight.communication_s = communication_s
        flight.started_s = flight.finish_s
        flight.finish_s = flight.started_s + max(compute_s + communication_s, counts.host_s)
    if is_trial:
        state.leap_finish_s[num_steps] = flight.finish_s
        flight.started_s, flight.finish_s = started_s, finish_s
        flight.compute_s, flight.communication_s = flight_compute_s, flight_communication_s
        flight.prefill_tokens = flight_prompt
    if num_steps == 0 or is_trial:
        return num_steps
    if has_adapters:
        tally_experts(state, table, tokens, touched, num_steps)
    flight.decode_context = context
    counts.now_s = flight.started_s
    leap_finish_s = state.leap_finish_s
    if counts.num_tiers > 0:
        store_leapt(state, num_steps)
    for i in range(size):
        request = in_flight[i].request
        row = requests[request]
        first = row.first_token + row.num_generated
        for j in range(num_steps):
            token_time_s[first + j] = leap_finish_s[j]
        if row.num_generated == 0:  # a prompt of one token
            row.first_token_s = leap_finish_s[0]
        row.num_generated += num_steps
        row.num_computed += num_steps
        in_flight[i].prefix += num_steps
        hold(state.kv, request, row.num_computed)
        # As of when the last step was formed: then the one before was still to bring its token.
        known = row.num_prompt_tokens + row.num_generated - counts.is_async
        note_contents(state.kv, request, min(row.num_computed, known))
    return num_steps
