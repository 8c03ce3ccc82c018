"""Ctrl-C that waits for a good moment; the signals are sent to this very process."""

import os
import signal

import pytest

from sim.engine.interruption import Interruption


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM])
def number(request):
    """A signal whose handler is Python's own, as under `spindle run`."""
    before = signal.signal(request.param, signal.default_int_handler)
    yield request.param
    signal.signal(request.param, before)


def test_the_first_is_noted_and_the_second_raises(number):
    with pytest.raises(KeyboardInterrupt), Interruption() as interruption:
        interruption.check()
        os.kill(os.getpid(), number)
        assert interruption.is_requested
        os.kill(os.getpid(), number)


def test_it_is_raised_where_it_is_asked_for(number):
    with Interruption() as interruption:
        os.kill(os.getpid(), number)
        with pytest.raises(KeyboardInterrupt):
            interruption.check()


def test_handlers_are_put_back(number):
    with Interruption():
        assert signal.getsignal(number) is not signal.default_int_handler
    assert signal.getsignal(number) is signal.default_int_handler


def test_a_handler_of_somebody_else_stays(number):
    seen = []
    signal.signal(number, lambda *_: seen.append(number))
    with Interruption() as interruption:
        os.kill(os.getpid(), number)
    assert seen == [number] and not interruption.is_requested
