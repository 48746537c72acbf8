"""Signals that ask a job to stop are collected; those that are ignored stay so."""

from __future__ import annotations

import os
import signal

import pytest

from pointadapterx.engine.signals import stop_requests


def test_signals_are_collected_and_handlers_restored() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    with stop_requests("saving") as requests:
        for number in before:
            os.kill(os.getpid(), number)
        assert requests == list(before)
    assert {number: signal.getsignal(number) for number in before} == before


def test_a_second_interrupt_is_not_waited_for() -> None:
    with stop_requests("saving"):
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with stop_requests("saving") as requests:
            os.kill(os.getpid(), signal.SIGHUP)
            assert requests == []
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
