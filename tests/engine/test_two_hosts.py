"""Two hosts train one adapter: network namespaces with a cable between them, joined by torchrun."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pointadapterx.config import dump_config
from tests.conftest import ROOT, small_config
from tests.synthetic import write_ldraw20

HOSTS = (f"pax{os.getpid()}a", f"pax{os.getpid()}b")
ADDRESSES = ("10.231.77.1", "10.231.77.2")

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.exhaustive,
    pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no distributed package"),
]


def ip(*words: str) -> subprocess.CompletedProcess[str]:
    """Runs ``ip``, which configures networks."""
    return subprocess.run(["ip", *words], check=False, capture_output=True, text=True)


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    """Names of two network namespaces, each of which reaches the other by its cable alone."""
    if shutil.which("ip") is None:
        pytest.skip("needs the command ip")
    made = [ip("netns", "add", host) for host in HOSTS]
    try:
        if any(done.returncode for done in made):
            pytest.skip(f"this user cannot make network namespaces: {made[0].stderr.strip() or made[1].stderr.strip()}")
        cable = [f"v{host}" for host in HOSTS]
        assert ip("link", "add", cable[0], "type", "veth", "peer", "name", cable[1]).returncode == 0
        for host, end, address in zip(HOSTS, cable, ADDRESSES, strict=True):
            ip("link", "set", end, "netns", host)
            ip("-n", host, "link", "set", end, "name", "eth0")
            ip("-n", host, "addr", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                assert ip("-n", host, "link", "set", device, "up").returncode == 0
        yield HOSTS
    finally:
        for host in HOSTS:
            ip("netns", "del", host)


def run(hosts: tuple[str, str], tmp_path: Path, outputs: tuple[str, str]) -> tuple[list[int], str]:
    """Exit statuses of a training on both hosts, each in a folder of its own, and what they printed."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "eth0"}
    started = []
    for rank, host in enumerate(hosts):
        command = ["ip", "netns", "exec", host, sys.executable, "-m", "torch.distributed.run", "--nnodes", "2"]
        command += ["--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "first"]
        command += ["--rdzv-endpoint", f"{ADDRESSES[0]}:29500", "--local-addr", ADDRESSES[rank]]
        command += ["--rdzv-conf", f"is_host={int(rank == 0)}"]  # without names of hosts it cannot know that
        command += [str(ROOT / "tools" / "main.py")]
        command += ["--config", "small.yaml", "--output", outputs[rank]]
        with (tmp_path / f"{host}.log").open("w") as log:
            started.append(subprocess.Popen(command, cwd=tmp_path / host, env=environment, stdout=log, stderr=log))
    try:
        ended = [process.wait(timeout=300) for process in started]
    finally:
        for process in started:
            process.kill()
    return ended, "".join((tmp_path / f"{host}.log").read_text() for host in hosts)


def test_two_hosts_train_one_adapter(hosts: tuple[str, str], tmp_path: Path) -> None:
    """With data of their own in one order, and a folder that both see; a folder that one sees is refused at once."""
    config = small_config(data={"root": "data"}, eval={"val_fraction": 0.5}, train={"epochs": 1, "batch_size": 8})
    for host in hosts:
        write_ldraw20(tmp_path / host / "data", train_per_class=4, test_per_class=1, num_points=128)
        (tmp_path / host / "small.yaml").write_text(dump_config(config))
    ended, printed = run(hosts, tmp_path, ("run", "run"))
    assert ended == [1, 1]
    assert "process 1 of 2 does not see this folder of process 0; choose one that all hosts share" in printed
    shared = str(tmp_path / "shared")
    ended, printed = run(hosts, tmp_path, (shared, shared))
    assert ended == [0, 0], printed
    assert "2 process(es)" in printed
    assert json.loads((tmp_path / "shared" / "metrics.json").read_text())["test"]["count"] == 20
