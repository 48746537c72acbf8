"""A Ray cluster of two nodes on this machine, one of which is killed in the middle of a prediction and of a study."""

from __future__ import annotations

import argparse
import csv
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter, sleep
from typing import Any

import psutil
import torch
import yaml

from benchmarks.jobs import about, publish
from benchmarks.predict import write_files
from pointadapterx.build import build_test_split
from pointadapterx.cluster.connection import ray
from pointadapterx.commands.main import main as command
from pointadapterx.config import read_config
from pointadapterx.datasets import PointClouds
from pointadapterx.run_folder import METRICS_FILE

STORE = 2**27  # bytes of a node's object store
SETTLED = 0.4  # of the work, that is done when a node is killed
NOTE = (
    "Two nodes on one machine. *killed*: one of them is killed when "
    f"{100 * SETTLED:.0f} % is done, so that the other does the rest alone. *once*: whether every file has one line, "
    "in the order of the listing, or every run one result."
)


class Nodes:
    """Two nodes, beside a head node where nothing runs.

    Args:
        cores: of each.
        head: more of what Ray takes for a head node.
    """

    def __init__(self, cores: int, **head: Any) -> None:
        ray()
        from ray.cluster_utils import Cluster

        given = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE, **head}
        self._cluster = Cluster(initialize_head=True, head_node_args=given)
        self._cores = cores
        self._nodes = [self._added(), self._added()]
        self.address: str = self._cluster.address

    def _added(self) -> Any:
        return self._cluster.add_node(num_cpus=self._cores, object_store_memory=STORE)

    @contextmanager
    def losing_one(self, when: Callable[[], bool]) -> Iterator[None]:
        """Within it, a node is killed as soon as ``when`` holds; behind it, it is there again."""
        over = threading.Event()

        def kill() -> None:
            while not over.is_set():
                if when():
                    self._kill(self._nodes.pop())
                    return
                sleep(0.05)

        thread = threading.Thread(target=kill)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
        if len(self._nodes) == 2:
            raise RuntimeError("it was over before a node could be killed; take more files or runs")
        self._nodes.append(self._added())

    def _kill(self, node: Any) -> None:
        """As if the machine went off: whatever runs there is gone at once."""
        (raylet,) = node.all_processes["raylet"]
        running = psutil.Process(raylet.process.pid).children(recursive=True)
        self._cluster.remove_node(node, allow_graceful=False)
        for process in running:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def stop(self) -> None:
        """Ends all processes."""
        self._cluster.shutdown()


def measure(files: int, runs: int, cores: int, chunk: int) -> dict[str, Any]:
    """Seconds and completeness of both."""
    nodes = Nodes(cores)
    try:
        with TemporaryDirectory() as folder:
            rows = [*_predictions(Path(folder), files, chunk, nodes), _study(Path(folder), runs, nodes)]
    finally:
        nodes.stop()
    return {**about(torch.device("cpu"), chunk, []), "files": files, "runs": runs, "cores": cores, "rows": rows}


def _predictions(folder: Path, count: int, chunk: int, nodes: Nodes) -> Iterator[dict[str, Any]]:
    """The plain command, two nodes, and two nodes of which one is killed."""
    clouds = build_test_split(read_config("demo", []))
    assert isinstance(clouds, PointClouds)
    scans = folder / "scans"
    scans.mkdir()
    names = list(map(str, write_files(scans, clouds.points.numpy(), count, "npy")))
    cluster = ["--engine", "ray", "--address", nodes.address, "--chunk", str(chunk)]
    for kind in ("plain", "two nodes", "one killed"):
        output = folder / f"{kind.replace(' ', '_')}.csv"
        chunks = output.with_name(f"{output.name}.chunks")
        arguments = ["predict", str(scans), "--output", str(output), *(cluster if kind != "plain" else [])]

        def settled(chunks: Path = chunks) -> bool:
            return len(list(chunks.glob("*.json"))) >= SETTLED * count / chunk

        started = perf_counter()
        if kind == "one killed":
            with nodes.losing_one(settled):
                status = command(arguments)
        else:
            status = command(arguments)
        seconds = perf_counter() - started
        with output.open(encoding="utf-8", newline="") as file:
            found = [row["file"] for row in csv.DictReader(file)]
        yield {"what": f"{count:,} files, {kind}", "seconds": seconds, "status": status, "once": found == names}


def _study(folder: Path, runs: int, nodes: Nodes) -> dict[str, Any]:
    """A study of that many runs, two at a time, one node of which is killed."""
    study = {
        "title": "Two nodes",
        "config": "demo_linear",
        "overrides": {"train.epochs": 2, "train.warmup_epochs": 0},
        "runs": str(folder / "runs"),
        "results": str(folder / "results"),
        "processes": 2,
        "replicate": {"values": list(range(runs))},
        "tables": {"main": {"columns": {"demo": None}, "rows": {"linear": None}}},
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study))

    def done() -> list[Path]:
        return list((folder / "runs").glob(f"*/run/{METRICS_FILE}"))

    started = perf_counter()
    with nodes.losing_one(lambda: len(done()) >= SETTLED * runs):
        status = command(["compare", "--config", str(path), "--engine", "ray", "--address", nodes.address])
    seconds = perf_counter() - started
    with (folder / "results" / "results.csv").open(encoding="utf-8", newline="") as file:
        finished = [row for row in csv.DictReader(file) if row["status"] == "finished"]
    once = len(finished) == len(done()) == runs
    return {"what": f"a study of {runs} runs, one killed", "seconds": seconds, "status": status, "once": once}


def markdown(result: dict[str, Any], line: str) -> str:
    """The measurement as a Markdown table."""
    lines = [
        "# A cluster of two nodes",
        "",
        f"`{line}`",
        "",
        NOTE,
        "",
        f"{result['cores']} core(s) a node, {result['batch_size']} files a task. {result['hardware']}, torch "
        f"{result['versions']['torch']}.",
        "",
        "| | s | exit status | once |",
        "|---|---:|---:|---|",
    ]
    for row in result["rows"]:
        lines.append(f"| {row['what']} | {row['seconds']:.0f} | {row['status']} | {'yes' if row['once'] else 'NO'} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str]) -> int:
    """Runs this module from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks ray", description=__doc__)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=12)
    parser.add_argument("--cores", type=int, default=1, help="of each node")
    parser.add_argument("--chunk", type=int, default=128)
    parser.add_argument("--output", type=Path, metavar="STEM", help="writes STEM.json and STEM.md")
    options = parser.parse_args(argv)
    if min(options.files, options.runs, options.cores, options.chunk) < 1:
        parser.error("all numbers are at least 1")
    result = measure(options.files, options.runs, options.cores, options.chunk)
    publish(result, markdown(result, " ".join(["python -m benchmarks ray", *argv])), options.output)
    return 0 if all(row["once"] and row["status"] == 0 for row in result["rows"]) else 1
