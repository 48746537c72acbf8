"""A server under load: many adapters and clients, every answer compared with ``predict``, rude clients, a signal."""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from statistics import mean, median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import torch

from benchmarks.jobs import about, publish
from benchmarks.predict import write_files
from benchmarks.serve_client import (
    BUSY,
    Client,
    Question,
    Tally,
    hang_up,
    leave_in_the_middle,
    polite,
    send_garbage,
    send_much,
    send_slowly,
)
from pointadapterx import Predictor, build_model
from pointadapterx.build import build_test_split
from pointadapterx.checkpoints.adapter_file import save_adapter
from pointadapterx.config import read_config

METHODS = ("dapt_x", "lora", "adaptformer", "ssf", "bitfit", "linear")
CLASSES = "ldraw20"
PARTS = "ldraw_parts"
POINTS = "parts"
EACH_PARTS = 10  # of so many adapters one labels points
CONDITION = "brick"
MIXED, CLASSIFYING, DISTURBED = "all mixed", "classification mixed", "disturbed"
NOTE = (
    "Every client has one request on its way at a time. *alone* is all clients asking the first adapter of a kind, "
    f"*{CLASSIFYING}* all of them asking all adapters that classify, *{MIXED}* all adapters, and *{DISTURBED}* these "
    "with rude clients. *members* is what a mix would reach if each answer took what it takes alone: the mean of its "
    "kinds, by their shares of the adapters, harmonic for answers per second; *ratio* is how much of it was reached. "
    "CPU time is that of the server without the processes that read files; unlike answers per second it hardly depends "
    "on what else the machine does. Phases take turns, and rates are medians of the turns. An answer is wrong if it is "
    "not that of `predict` but for 1.1e-4 in probabilities."
)


def write_adapters(folder: Path, count: int) -> dict[str, str | None]:
    """Adapters of several methods and two tasks with values of their own, and the condition that each needs."""
    found: dict[str, str | None] = {}
    built: dict[str, tuple[Any, Any, list[str]]] = {}
    for number in range(count):
        parts = number % EACH_PARTS == EACH_PARTS - 1
        kind = POINTS if parts else METHODS[number % len(METHODS)]
        if kind not in built:
            config = _config(PARTS if parts else CLASSES, kind, parts)
            names = config.task.point_classes if parts else build_test_split(config).classes
            built[kind] = config, build_model(config), names
        config, model, names = built[kind]
        generator = torch.Generator().manual_seed(number)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
        name = f"{kind}-{number}"
        save_adapter(model, folder / f"{name}.safetensors", config=config, classes=names)
        found[name] = CONDITION if parts else None
    return found


def _config(name: str, method: str, parts: bool) -> Any:
    """A shipped config with another method."""
    config = read_config(name, ["train.precision=fp32"])
    if parts or method == "dapt_x":
        return config
    content = config.dump()
    content["method"] = {"name": method}
    content["head"]["pools"] = [pool for pool in content["head"]["pools"] if not pool.startswith("prompt")]
    return type(config).of(content, name)


def questions_of(folder: Path, adapters: dict[str, str | None], files: int) -> list[Question]:
    """Every adapter about every file, with what ``predict`` says."""
    clouds = build_test_split(read_config(CLASSES)).points.numpy()
    paths = [*write_files(folder, clouds, files - files // 2, "npy"), *write_files(folder, clouds, files // 2, "ply")]
    found = []
    for name, condition in adapters.items():
        predictor = Predictor[Any](folder.parent / "adapters" / f"{name}.safetensors", condition=condition)
        for path, answer in zip(paths, predictor(paths), strict=True):
            wanted = {"file": path.name, **answer.content()}
            found.append(Question.about(name, path.name, path.read_bytes(), wanted, condition))
    return found


class Server:
    """``pointadapterx serve`` as a process of its own."""

    def __init__(self, adapters: Path, options: Sequence[str]) -> None:
        command = [sys.executable, "-m", "pointadapterx", "serve", "--adapters", str(adapters), "--port", "0", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/", line)
        assert found is not None, line
        self.port = int(found[1])

    def memory(self) -> float:
        """MiB of the process, without those that read files."""
        with suppress(OSError):
            text = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
            return int(re.findall(r"VmRSS:\s+(\d+)", text)[0]) / 1024
        return float("nan")

    def cpu_seconds(self) -> float:
        """That the process has computed, without those that read files."""
        with suppress(OSError):
            fields = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return float("nan")

    def stop(self) -> int:
        """Its exit status after SIGTERM."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


async def load(port: int, questions: Sequence[Question], clients: int, seconds: float) -> tuple[Tally, float]:
    """What polite clients got, and the seconds that it took."""
    tally, started = Tally(), perf_counter()
    tasks = [polite(port, questions, started + seconds, seed, tally) for seed in range(clients)]
    await asyncio.gather(*tasks)
    return tally, perf_counter() - started


async def disturb(port: int, questions: Sequence[Question], folder: Path, until: float) -> Counter[str]:
    """Rude clients, files that are swapped and broken, one after the other until the time is over."""
    random, done, client = Random(0), Counter[str](), Client(port)
    names = sorted({question.adapter for question in questions})
    slow: list[asyncio.Task[None]] = []

    async def swap() -> str:
        path = folder / f"{random.choice(names)}.safetensors"
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        broken, _ = await client.ask("POST", f"/adapters/{path.stem}")
        path.write_bytes(whole)
        mended, _ = await client.ask("POST", f"/adapters/{path.stem}")
        return f"swap: {broken} broken, {mended} mended"

    async def slowly() -> str:
        slow.append(asyncio.create_task(send_slowly(port, random.choice(questions))))
        return "slow sender"

    async def of(kind: Callable[..., Awaitable[Any]], *more: Any) -> str:
        status = await kind(port, random.choice(questions), *more)
        return kind.__name__ if status is None else f"{kind.__name__}: {status}"

    while perf_counter() < until:
        for act in (swap(), slowly(), of(hang_up), of(leave_in_the_middle), of(send_much), of(send_garbage, random)):
            try:
                done[await act] += 1
            except (OSError, asyncio.IncompleteReadError) as error:
                done[f"connection ended: {type(error).__name__}"] += 1
        await asyncio.sleep(0.5)
    await asyncio.gather(*slow, return_exceptions=True)
    client.close()
    return done


def kind_of(adapter: str) -> str:
    """Its method, or what else it is called by, without its number."""
    return adapter.rpartition("-")[0]


def phases_of(adapters: Sequence[str]) -> dict[str, list[str]]:
    """The adapters that are asked in each phase: the first of each kind, those that classify, and all."""
    first = {kind: [name for name in adapters if kind_of(name) == kind][:1] for kind in map(kind_of, adapters)}
    found = {f"{kind} alone": names for kind, names in first.items()}
    classifying = [name for name in adapters if kind_of(name) != POINTS]
    if len(classifying) not in (0, len(adapters)):
        found[CLASSIFYING] = classifying
    return {**found, MIXED: list(adapters)}


def mean_of_members(costs: Mapping[str, float], adapters: Sequence[str]) -> float:
    """What an answer of a mix of adapters takes, if each takes what its kind takes alone.

    Args:
        costs: of an answer by phase.
        adapters: of the mix, each asked as often as the others.
    """
    return mean(costs[f"{kind_of(name)} alone"] for name in adapters)


async def measure(
    server: Server, questions: Sequence[Question], folder: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """Adapters alone and mixed, in turns; all of them among rude clients."""
    phases = phases_of(list(dict.fromkeys(question.adapter for question in questions)))
    asked = {name: [one for one in questions if one.adapter in own] for name, own in phases.items()}
    await load(server.port, questions, options.clients, min(3.0, options.seconds))  # loads all of them
    memory, tallies = [server.memory()], {name: Tally() for name in phases}
    seconds, cpu = ({name: list[float]() for name in phases} for _ in range(2))  # an answer took, by turn
    for _ in range(options.rounds):
        for name, own in asked.items():
            before = server.cpu_seconds()
            tally, passed = await load(server.port, own, options.clients, options.seconds / options.rounds)
            answers = max(1, len(tally.seconds))
            tallies[name].add(tally)
            seconds[name].append(passed / answers)
            cpu[name].append((server.cpu_seconds() - before) / answers)
        memory.append(server.memory())
    found = {name: _summary(tally, median(seconds[name])) for name, tally in tallies.items()}
    for name, one in found.items():
        one["cpu"] = median(cpu[name])
    for name in (CLASSIFYING, MIXED):
        if name in found:
            for key, costs in (("members_seconds", seconds), ("members_cpu", cpu)):
                of_phases = {phase: median(values) for phase, values in costs.items()}
                found[name][key] = mean_of_members(of_phases, phases[name])
    until = perf_counter() + options.disturbed
    (tally, passed), done = await asyncio.gather(
        load(server.port, questions, options.clients, options.disturbed),
        disturb(server.port, questions, folder, until),
    )
    found[DISTURBED] = _summary(tally, passed / max(1, len(tally.seconds)))
    client = Client(server.port)
    text = (await client.ask("GET", "/metrics"))[1].decode()
    client.close()
    metrics = {
        key: float(value)
        for key, value in re.findall(r"^pointadapterx_(\w+_(?:sum|count)|\w+_evictions_total) (\S+)$", text, re.M)
    }
    return {"phases": found, "done": dict(done), "memory": [*memory, server.memory()], "metrics": metrics}


def _summary(tally: Tally, seconds: float) -> dict[str, Any]:
    """What came back.

    Args:
        tally: of all turns.
        seconds: that an answer took, with those beside it.
    """
    return {
        "seconds": seconds,
        "p50": tally.quantile(0.5),
        "p99": tally.quantile(0.99),
        "answers": len(tally.seconds),
        "statuses": {str(status): count for status, count in sorted(tally.statuses.items())},
        "wrong": tally.wrong[:5],
        "lost": [one.text for one in tally.lost[:5]],
    }


async def stopped_under_load(server: Server, questions: Sequence[Question], clients: int) -> dict[str, Any]:
    """SIGTERM while clients ask: see :func:`stopped_summary`."""
    tally = Tally()
    tasks = [asyncio.create_task(polite(server.port, questions, perf_counter() + 1, k, tally)) for k in range(clients)]
    await asyncio.sleep(0.5)
    signalled = perf_counter()
    status = await asyncio.to_thread(server.stop)
    await asyncio.gather(*tasks)
    return stopped_summary(tally, signalled, status)


def stopped_summary(tally: Tally, signalled: float, status: int) -> dict[str, Any]:
    """Responses around a signal; requests that were accepted before it and cut or lost; those that came too late."""
    cut = [one.text for one in tally.lost if one.owed(signalled)]
    return {
        "exit_status": status,
        "answers": len(tally.seconds),
        "statuses": {str(status): count for status, count in sorted(tally.statuses.items())},
        "wrong": tally.wrong[:5],
        "lost": cut[:5],
        "cut_short": len(cut),
        "too_late": len(tally.lost) - len(cut),
    }


def failures(result: dict[str, Any]) -> list[str]:
    """What a server must not do under load, a line each."""
    stop, found = result["stopped"], []
    for name, one in {**result["phases"], "stopped": stop}.items():
        found += [f"{name}: wrong or lost: {text}" for text in (*one["wrong"], *one["lost"])]
        odd = {status: count for status, count in one["statuses"].items() if status not in ("200", str(BUSY))}
        if name != DISTURBED:  # where adapters are broken on purpose
            found += [f"{name}: {count} responses with status {status}" for status, count in odd.items()]
        if not one["answers"]:
            found.append(f"{name}: not one answer")
    if stop["exit_status"]:
        found.append(f"stopped: exit status {stop['exit_status']}")
    return found


def beside_one(phases: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Answers per second of each mix, over those of each adapter that was asked alone; a sentence each."""
    mixes = [name for name in (CLASSIFYING, MIXED, DISTURBED) if name in phases]
    alone = {name: one["seconds"] for name, one in phases.items() if name not in mixes}
    ratios = {mix: [f"{one / phases[mix]['seconds']:.2f} of {name}" for name, one in alone.items()] for mix in mixes}
    return [f"- {mix}, answers per second: {', '.join(parts)}" for mix, parts in ratios.items()]


def markdown(result: dict[str, Any], command: str) -> str:
    """The measurement as a Markdown table."""
    rows = []
    for name, one in result["phases"].items():
        statuses = ", ".join(f"{status}: {count:,}" for status, count in one["statuses"].items())
        speed = [f"{1 / one['seconds']:.0f}", "", "", f"{1000 * one['cpu']:.1f}" if "cpu" in one else "", "", ""]
        if "members_cpu" in one:
            speed[1:3] = f"{1 / one['members_seconds']:.0f}", f"{one['members_seconds'] / one['seconds']:.2f}"
            speed[4:6] = f"{1000 * one['members_cpu']:.1f}", f"{one['members_cpu'] / one['cpu']:.2f}"
        times = f"{' | '.join(speed)} | {1000 * one['p50']:.0f} | {1000 * one['p99']:.0f}"
        bad = f"{len(one['wrong'])} | {len(one['lost'])}"
        rows.append(f"| {name} | {times} | {one['answers']:,} | {bad} | {statuses} |")
    metrics, stop = result["metrics"], result["stopped"]
    size = metrics["batch_samples_sum"] / max(1.0, metrics["batch_samples_count"])
    done = ", ".join(f"{what} ({count})" for what, count in sorted(result["done"].items()))
    memory = ", ".join(f"{value:.0f}" for value in result["memory"])
    lines = [
        "# A server under load",
        "",
        f"`{command}`",
        "",
        NOTE,
        "",
        f"{result['adapters']} adapters, {result['clients']} clients, {result['seconds']:g} s each, the disturbed "
        f"one {result['disturbed']:g} s. {result['hardware']}, torch {result['versions']['torch']}, point ops "
        f"{result['ops']}; the clients are on the "
        "same machine.",
        "",
        "| | answers/s | members | ratio | CPU ms an answer | members | ratio "
        "| p50 ms | p99 ms | answers | wrong | lost | by status |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|",
        *rows,
        "",
        *beside_one(result["phases"]),
        "",
        f"Samples in a batch: {size:.1f} on average. Memory of the server once all adapters were loaded, after each "
        f"turn of the phases and at the end: {memory} MiB. Disturbed by: {done}.",
        "",
        f"SIGTERM under load: exit status {stop['exit_status']}, {stop['answers']} requests answered before, "
        f"{len(stop['wrong'])} wrong, {stop['cut_short']} cut short.",
        *(f"- {text}" for one in (*result["phases"].values(), stop) for text in (*one["wrong"], *one["lost"])),
    ]
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> int:
    """Runs this module from the command line.

    Returns:
        0, or 1 if an answer was wrong, a request lost or cut short, or a status neither 200 nor 429.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks serve", description=__doc__)
    parser.add_argument("--adapters", type=int, default=50)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each phase")
    parser.add_argument("--disturbed", type=float, metavar="SECONDS", help="of the disturbed one (default: the same)")
    parser.add_argument("--rounds", type=int, default=3, help="turns that each phase is cut into")
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--output", type=Path, metavar="STEM", help="writes STEM.json and STEM.md")
    parser.add_argument("--serve", nargs="*", default=[], metavar="OPTION", help="of pointadapterx serve, without --")
    options = parser.parse_args(argv)
    if options.disturbed is None:
        options.disturbed = options.seconds
    few = min(options.adapters, options.clients, options.files, options.rounds) < 1
    if few or min(options.seconds, options.disturbed) <= 0:
        parser.error("--adapters, --clients, --files and --rounds are at least 1, seconds more than 0")
    machine = about(torch.device("cuda" if torch.cuda.is_available() else "cpu"), 0, [])
    torch.set_num_threads(1)  # the cores are the server's
    with TemporaryDirectory() as place:
        adapters, files = Path(place, "adapters"), Path(place, "files")
        adapters.mkdir()
        files.mkdir()
        questions = questions_of(files, write_adapters(adapters, options.adapters), options.files)
        server = Server(adapters, [f"--{text}" if index % 2 == 0 else text for index, text in enumerate(options.serve)])
        try:
            result = asyncio.run(measure(server, questions, adapters, options))
            result["stopped"] = asyncio.run(stopped_under_load(server, questions, options.clients))
        finally:
            server.process.kill()
    result |= {**machine, **{key: getattr(options, key) for key in ("adapters", "clients", "seconds", "disturbed")}}
    publish(result, markdown(result, " ".join(["python -m benchmarks serve", *argv])), options.output)
    bad = failures(result)
    print("\n".join(bad), end="\n" if bad else "", file=sys.stderr)
    return int(bool(bad))
