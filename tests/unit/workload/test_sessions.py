"""Conversations: lengths and contents of their prompts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.workload import sessions
from sim.workload.sessions import session_contents, session_prompts

TURNS = st.lists(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=5), min_size=1,
                 max_size=5)  # fmt: skip


def arrays(turns):
    num_turns = np.array([len(session) for session in turns])
    new, output = np.array([turn for session in turns for turn in session]).T
    return num_turns, new, output


@given(TURNS, st.sampled_from([1, 4, 16]))
def test_a_prompt_is_all_that_was_said(turns, block_size):
    """Tokens as pairs (session, position): the text so far is the prompt, and blocks are equal where their text is."""
    num_turns, new, output = arrays(turns)
    prompt = session_prompts(num_turns, new, output)
    contents = session_contents(num_turns, prompt, output, block_size)

    row, of_number, of_text = 0, {}, {}
    for number, session in enumerate(turns):
        text = []
        for added, answered in session:
            text += [(number, len(text) + i) for i in range(added)]
            assert prompt[row] == len(text)
            text += [(number, len(text) + i) for i in range(answered)]
            numbers = contents.number[contents.start[row] : contents.start[row + 1]].tolist()
            assert len(numbers) == len(text) // block_size
            for i, found in enumerate(numbers):
                block = tuple(text[: (i + 1) * block_size])
                assert of_number.setdefault(found, block) == block and of_text.setdefault(block, found) == found
            row += 1
    assert sorted(of_number) == list(range(len(of_number)))


def test_too_many_blocks_are_refused(monkeypatch):
    monkeypatch.setattr(sessions, "MOST_BLOCKS", 10)
    with pytest.raises(ValueError, match=r"have 25 blocks, more than the 10 .* larger blocks"):
        session_contents(np.array([1]), np.array([50]), np.array([50]), 4)
