"""Signals that ask a job to stop are collected; those that are ignored stay so."""

from __future__ import annotations

import faulthandler
import os
import signal

import pytest

from pointadapterx.engine.signals import stop_requests
from tests import conftest


def test_signals_are_collected_and_handlers_restored() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    with stop_requests("saving") as requests:
        for number in before:
            os.kill(os.getpid(), number)
        assert requests == list(before)
    assert {number: signal.getsignal(number) for number in before} == before


def test_a_signal_that_nobody_waits_for_fails_the_test_instead_of_ending_its_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        conftest._heed_signals.__wrapped__()
        for number in before:
            with pytest.raises(pytest.fail.Exception, match=f"{number.name} came when nobody waited"):
                os.kill(os.getpid(), number)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert faulthandler.is_enabled()  # what ends a worker by SIGSEGV or SIGABRT is shown


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
