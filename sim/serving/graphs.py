"""Sizes of recorded CUDA graphs, as vLLM 0.19 chooses them (vllm/config/vllm.py): 1, 2, 4, multiples of 8 below 256, of
16 from there on."""

from __future__ import annotations

MOST_TOKENS = 512


def largest_graph(max_num_seqs: int, max_num_batched_tokens: int) -> int:
    """The largest size that is at most 2 max_num_seqs, 512 and the tokens of a step."""
    limit = min(2 * max_num_seqs, MOST_TOKENS, max_num_batched_tokens)
    if limit < 8:
        return 4 if limit >= 4 else min(limit, 2)
    return limit // 8 * 8 if limit < 256 else limit // 16 * 16
