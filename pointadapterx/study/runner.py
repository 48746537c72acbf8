"""Trains the runs of a study, several at a time and each only once, even if processes are killed in between.

Every run is a process of its own, and is locked twice: its folder by the study that waits for it, and its output by its
own process. So a run of another study, or of one that was killed, is waited for, not trained twice.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path

from pointadapterx.config import LOCATIONS, dump_config, read_config
from pointadapterx.engine.console import progress_bar
from pointadapterx.engine.signals import stop_requests
from pointadapterx.errors import ConfigError
from pointadapterx.files import write_text
from pointadapterx.locks import Hold, holder, is_held, try_hold
from pointadapterx.run_folder import CONFIG_FILE, LOCK_FILE, STATE_FILE, can_resume
from pointadapterx.study.outcomes import (
    DIVERGED,
    OUTPUT,
    describe_result,
    divergence,
    goodness,
    is_finished,
    validation_score,
)
from pointadapterx.study.plan import Plan, Run, Use
from pointadapterx.study.processes import LOST, LocalProcesses, Process, Processes
from pointadapterx.study.records import Known

log = logging.getLogger(__name__)

CONFIG = "study.yaml"
LOG = "log.txt"
LOCK = "lock"
POLL_SECONDS = 0.2
TAIL_BYTES = 65536
MOST_LOST = 10  # times that a run is started again because its machine was lost
NOT_FINITE = "not finite"  # says the TrainingError of a loss, a gradient or logits


@dataclass
class Outcome:
    """What is known of the runs.

    Attributes:
        finished: names of the finished runs.
        scores: validation scores of those that selected by one, higher for the better; ``-inf`` of the diverged.
        diverged: errors of the runs whose training diverged, which is not tried again.
        failures: errors of the runs that failed otherwise in this session.
        signal: the one that stopped the study, or 0.
    """

    finished: set[str] = field(default_factory=set)
    scores: dict[str, float] = field(default_factory=dict)
    diverged: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    signal: int = 0


@dataclass
class _Job:
    """A run in progress; without ``process`` and ``hold`` where another study, maybe a killed one, started it."""

    use: Use
    slot: int
    process: Process | None = None
    hold: Hold | None = None
    log_start: int = 0
    started: float = field(default_factory=time.monotonic)


class Runner:
    """Trains what a plan needs.

    Args:
        plan: the study.
        command: arguments after ``python`` for a run and its folder; for tests.
        after_run: called with what is known each time runs have ended.
        known: lines of earlier studies, for runs that have not ended in the folder of the runs.
        engine: makes what starts runs, from how many there are at a time.
    """

    def __init__(
        self,
        plan: Plan,
        command: Callable[[Run, Path], list[str]] | None = None,
        after_run: Callable[[Outcome], object] = lambda outcome: None,
        known: Known | None = None,
        engine: Callable[[int], Processes] = LocalProcesses,
    ) -> None:
        self.plan = plan
        self.folder = Path(plan.study.runs)
        self.at_a_time = plan.study.processes
        self.engine = engine(self.at_a_time)
        self.command = command or training_command
        self.after_run = after_run
        self.known = known or {}
        self.outcome = Outcome()
        self._jobs: dict[str, _Job] = {}
        self._durations: list[float] = []
        self._lost = Counter[str]()

    def run(self) -> Outcome:
        """Trains until every run has ended, or a signal asks to stop."""
        self._find_finished()
        total, left = self._count()
        log.info("%d runs, %d of them finished already, %d at a time", total, total - left, self.at_a_time)
        with (
            stop_requests("the runs in progress are saving their state") as requests,
            progress_bar("runs", total, total - left, visible=True) as advance,
        ):
            try:
                while not requests:
                    self._start_due()
                    if not self._jobs:
                        break
                    time.sleep(POLL_SECONDS)
                    for _ in range(self._collect()):
                        advance()
            finally:
                self._stop()
            self.outcome.signal = requests[0] if requests else 0
        return self.outcome

    def _find_finished(self) -> None:
        """Also finds final runs whose choice becomes known by the tuning runs that are finished."""
        known = -1
        while len(self.outcome.scores) + len(self.outcome.finished) > known:
            known = len(self.outcome.scores) + len(self.outcome.finished)
            for use in self.plan.due(self.outcome.scores)[0].values():
                self._remember(use.run) or self._take_over(use)

    def _remember(self, run: Run) -> bool:
        """Takes in what the folder of a run holds; returns whether it is final."""
        folder = self.folder / run.name
        error = divergence(folder)
        if error is not None:
            self.outcome.diverged[run.name] = error
            self.outcome.scores[run.name] = -math.inf
        elif is_finished(folder):
            _require_schedule(folder)
            self.outcome.finished.add(run.name)
            score = validation_score(folder, run)
            if score is not None:
                self.outcome.scores[run.name] = goodness(run, score)
        else:
            return False
        (folder / OUTPUT / STATE_FILE).unlink(missing_ok=True)  # large, and there is nothing to continue
        return True

    def _take_over(self, use: Use) -> bool:
        """Takes in what an earlier study tells of the run, and returns whether it is enough for this use."""
        line = self.known.get((use.run.name, use.final))
        if line is None:
            return False
        if line.status == "diverged":
            self.outcome.diverged[use.run.name] = line.error or ""
            self.outcome.scores[use.run.name] = -math.inf
            return True
        if use.final:
            self.outcome.finished.add(use.run.name)
        if line.best_val is not None:
            self.outcome.scores[use.run.name] = goodness(use.run, line.best_val)
        return True

    def _has_no_more_to_do(self, use: Use) -> bool:
        name, outcome = use.run.name, self.outcome
        ended = any(name in runs for runs in (outcome.finished, outcome.diverged, outcome.failures))
        return ended or (not use.final and name in outcome.scores)

    def _count(self) -> tuple[int, int]:
        """Runs in all, and those that have not ended."""
        due, undecided = self.plan.due(self.outcome.scores)
        ended = sum(self._has_no_more_to_do(use) for use in due.values())
        return len(due) + undecided, len(due) + undecided - ended

    def _start_due(self) -> None:
        if len(self._jobs) >= self.at_a_time:
            return
        due, _ = self.plan.due(self.outcome.scores)
        for name, use in due.items():
            if len(self._jobs) >= self.at_a_time:
                return
            if not self._has_no_more_to_do(use) and name not in self._jobs and not self._take_over(use):
                self._start(use)

    def _start(self, use: Use) -> None:
        """Starts a run, or waits for the process that is at it."""
        run, folder = use.run, self.folder / use.run.name
        folder.mkdir(parents=True, exist_ok=True)
        slot = min(set(range(self.at_a_time)) - {job.slot for job in self._jobs.values()})
        hold = None if is_held(folder / OUTPUT / LOCK_FILE) else try_hold(folder / LOCK)
        if hold is None:
            self._wait_for_another(use, slot)
            return
        if self._remember(run):  # finished by a process that ended a moment ago
            hold.release()
            return
        write_text(folder / CONFIG, dump_config(run.config))
        output = folder / OUTPUT
        if output.exists() and not can_resume(output):
            shutil.rmtree(output)  # killed before its first state; a run starts in a folder of its own
        arguments = self.command(run, folder)
        log_file = folder / LOG
        with log_file.open("ab") as text:
            text.write(f"$ {' '.join(arguments)}\n".encode())
            start = text.tell()
        self._jobs[run.name] = _Job(use, slot, self.engine.start(arguments, log_file, slot), hold, start)

    def _wait_for_another(self, use: Use, slot: int) -> None:
        folder = self.folder / use.run.name
        locks = (folder / OUTPUT / LOCK_FILE, folder / LOCK)
        log.info("%s: %s is still at it, waiting for it", folder, holder(next(filter(is_held, locks), locks[0])))
        self._jobs[use.run.name] = _Job(use, slot)

    def _collect(self) -> int:
        """Takes in the runs that have ended and returns how many have no more to do."""
        ended = [job for job in self._jobs.values() if self._has_ended(job)]
        for job in ended:
            del self._jobs[job.use.run.name]
            if job.hold is not None:
                job.hold.release()
            if self._remember(job.use.run):
                self._report(job)
            elif is_held(self.folder / job.use.run.name / OUTPUT / LOCK_FILE):  # it was refused, being a second one
                self._wait_for_another(job.use, job.slot)
            elif job.process is not None:
                self._take_in_failure(job, job.process.wait())
        if ended:
            self.after_run(self.outcome)
        return sum(self._has_no_more_to_do(job.use) for job in ended)

    def _take_in_failure(self, job: _Job, returncode: int) -> None:
        name = job.use.run.name
        folder = self.folder / name
        if returncode == LOST and self._lost[name] < MOST_LOST:
            self._lost[name] += 1
            log.warning("lost: %s: its machine is gone; it is started again (%s)", job.use, folder / LOG)
            return
        lines = _last_lines(folder / LOG, job.log_start)
        error = next((line.removeprefix("error: ") for line in reversed(lines) if line.startswith("error: ")), None)
        if error is not None and NOT_FINITE in error and returncode > 0:
            write_text(folder / DIVERGED, f"{error}\n")
            self._remember(job.use.run)
            log.warning("diverged: %s: %s (%s)", job.use, error, folder / LOG)
            return
        if error is None or returncode < 0 or returncode == LOST:
            error = _exit_words(returncode, lines)
        self.outcome.failures[name] = error
        log.error("failed: %s: %s (%s)", job.use, error, folder / LOG)

    def _has_ended(self, job: _Job) -> bool:
        if job.process is not None:
            return job.process.poll() is not None
        folder = self.folder / job.use.run.name
        return not is_held(folder / LOCK) and not is_held(folder / OUTPUT / LOCK_FILE)

    def _report(self, job: _Job) -> None:
        """Logs the result of a finished run."""
        if job.use.run.name not in self.outcome.finished:  # diverged under another study
            return
        seconds = time.monotonic() - job.started
        self._durations.append(seconds)
        total, left = self._count()
        expected = sum(self._durations) / len(self._durations) * left / self.at_a_time
        result = describe_result(self.folder / job.use.run.name, job.use.run, tested=job.use.final)
        position = f"[{total - left}/{total}]"
        log.info("%s %s · %s · %.0f s · about %s left", position, job.use, result, seconds, _duration(expected))

    def _stop(self) -> None:
        """Asks the processes of this session to save their state, and waits for them."""
        own = [job.process for job in self._jobs.values() if job.process is not None]
        for process in own:
            process.terminate()
        for process in own:
            process.wait()
        for job in self._jobs.values():
            if job.hold is not None:
                job.hold.release()
            self._remember(job.use.run)


def training_command(run: Run, folder: Path) -> list[str]:
    """Arguments that train the run, or continue it from its state."""
    output = folder / OUTPUT
    module = ["-m", "pointadapterx"]
    if can_resume(output):
        values = {key: attrgetter(key)(run.config) for key in LOCATIONS}
        return [*module, "resume", str(output), *(f"{key}={json.dumps(value)}" for key, value in values.items())]
    return [*module, "train", "--config", str(folder / CONFIG), "--output", str(output)]


def _last_lines(path: Path, start: int) -> list[str]:
    """Lines that are not empty from the end of a file, written after byte ``start``."""
    with path.open("rb") as file:
        file.seek(max(start, path.stat().st_size - TAIL_BYTES))
        return [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]


def _exit_words(returncode: int, lines: Sequence[str]) -> str:
    """How a process ended that did not say why."""
    if returncode == LOST:
        return f"its machine was lost {MOST_LOST + 1} times (out of memory?)"
    if returncode < 0:
        hint = " (out of memory?)" if returncode == -signal.SIGKILL else ""
        return f"killed by {signal.Signals(-returncode).name}{hint}"
    return ": ".join([f"exit status {returncode}", *lines[-1:]])


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _require_schedule(folder: Path) -> None:
    """Raises a ConfigError if a run was resumed with another schedule than the study's, so that it is another run."""
    files = (folder / CONFIG, folder / OUTPUT / CONFIG_FILE)
    if not all(file.is_file() for file in files):
        return
    planned, done = (read_config(file).train for file in files)
    if planned.epochs != done.epochs or planned.cooldown_epochs != done.cooldown_epochs:
        raise ConfigError(
            f"{folder}: was resumed with train.epochs={done.epochs}, where the study has {planned.epochs}, so it is no "
            "run of the study any more; remove the folder"
        )
