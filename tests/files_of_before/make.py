"""Writes these files with the commands of version 0.1.0 (commit 4a93324): ``python make.py`` in an empty folder."""

from __future__ import annotations

import importlib
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

CLASSES = ("ball", "cone", "rod")
POINTS = 48
WIDTH = {"dim": 12, "depth": 2, "num_heads": 3}
WEIGHTS = "runs/pretraining/weights.safetensors"
ON_CLOUDS: dict[str, Any] = {
    "backbone": {
        **{"name": "point_mae", "weights": WEIGHTS, **WIDTH},
        **{"encoder_dim": 12, "encoder_width": 4, "num_groups": 8, "group_size": 8},
    },
    "data": {
        **{"name": "folder", "root": "data", "num_points": POINTS, "stored_points": POINTS},
        **{"cache_dir": "cache", "augment": "rotation"},
    },
}
ON_IMAGES: dict[str, Any] = {
    "backbone": {"name": "vit", **WIDTH, "patch_size": 4, "image_size": 8, "channels": 1},
    "data": {"name": "digits", "train_size": 100},
}
RANK: dict[str, Any] = {"rank": 2}
NOTHING: dict[str, Any] = {}
METHODS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("adapter", "adapter_x", "adaptformer", "adaptformer_x", "dapt", "dapt_x"), RANK),
    **dict.fromkeys(("e3va", "e3va_x", "lora"), RANK),
    **dict.fromkeys(("bitfit", "full", "idpt", "linear", "ssf", "vpt"), NOTHING),
    "noah": {"widths": [1, 3], "architecture": {"prompts": [2, 0], "lora": [0, 3], "adapter": [3, 1]}},
}
WITHOUT_PROMPTS = ("adapter", "adaptformer", "bitfit", "e3va", "e3va_x", "full", "linear", "lora", "noah", "ssf")
SHORT = {"epochs": 1, "warmup_epochs": 0, "batch_size": 6, "lr": 1e-2, "precision": "fp32"}
LONG = SHORT | {"epochs": 20}


def write_data() -> None:
    """4 clouds of each class to train on, 2 to test, and 1 without a label."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 2), ("new", 1)):
        for label, name in enumerate(CLASSES):
            folder = Path("data", split, name) if split != "new" else Path("new")
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                angle, t = rng.uniform(0, 2 * np.pi, POINTS), rng.uniform(-1, 1, POINTS)
                radius = (np.sqrt(1 - t**2), (1 - t) / 2, np.full_like(t, 0.2))[label]
                points = np.stack([radius * np.cos(angle), t, radius * np.sin(angle)], axis=1)
                np.savetxt(folder / f"{name}{i}.xyz", points, fmt="%.2f")


def command(*arguments: str) -> None:
    """Runs one in this process."""
    assert importlib.import_module("pointadapterx.cli").main(list(arguments)) in (0, None)


def write_config(path: str, base: dict[str, Any], train: dict[str, Any], **sections: Any) -> str:
    """A config file below ``configs``."""
    content = {**base, "train": train, "eval": {"val_fraction": 0.3, "batch_size": 6}, **sections}
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).write_text(yaml.safe_dump(json.loads(json.dumps(content)), sort_keys=False))
    return path


def sections(name: str, classes: int) -> dict[str, Any]:
    """``method`` and ``head`` of one of :data:`METHODS`."""
    pools = ["cls", "patch_max"] if name in WITHOUT_PROMPTS else ["cls", "prompt_mean", "patch_max"]
    head = {"pools": pools, "num_classes": classes, "hidden": [8]}
    return {"method": {"name": name, **METHODS[name]}, "head": head}


def stop(config: str, run: str) -> None:
    """Starts a training that is asked to stop after some of its epochs."""
    process = subprocess.Popen([sys.executable, "-m", "pointadapterx", "--config", config, "--output", run])
    log = Path(run, "log.txt")
    while not log.exists() or "epoch 5/" not in log.read_text():
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM)
    process.wait()
    assert not (Path(run) / "metrics.json").exists()


def main() -> None:
    """Everything."""
    write_data()
    autoencoder: dict[str, Any] = {
        "backbone": {**ON_CLOUDS["backbone"], "weights": None},
        "data": {**ON_CLOUDS["data"], "root": "data/train"},
    }
    pretrain = {"decoder_depth": 1, "decoder_heads": 3, "draw": 0}
    pretraining = write_config("configs/pretraining.yaml", autoencoder, SHORT, pretrain=pretrain)
    command("--config", pretraining, "--output", "runs/pretraining")
    stop(
        write_config("configs/pretraining_stopped.yaml", autoencoder, LONG, pretrain=pretrain),
        "runs/pretraining_stopped",
    )

    Path("adapters").mkdir()
    for name in METHODS:
        config = write_config(f"configs/{name}.yaml", ON_CLOUDS, SHORT, **sections(name, len(CLASSES)))
        command("--config", config, "--output", f"all/{name}")
        command("predict", f"all/{name}", "new", "--workers", "1", "--output", f"adapters/{name}.csv")
    for name in ("dapt_x", "lora"):
        config = write_config(f"configs/{name}_on_images.yaml", ON_IMAGES, SHORT, **sections(name, 10))
        command("--config", config, "--output", f"all/{name}_on_images")
    for folder in Path("all").iterdir():
        shutil.copy(folder / "adapter.safetensors", f"adapters/{folder.name}.safetensors")
        shutil.copy(folder / "metrics.json", f"adapters/{folder.name}.json")
    Path("all/dapt_x").rename("runs/finished")

    stop(write_config("configs/stopped.yaml", ON_CLOUDS, LONG, **sections("dapt_x", 3)), "runs/stopped")
    shutil.copytree("runs/stopped", "all/resumed")
    command("--resume", "all/resumed")
    shutil.copy("all/resumed/history.json", "runs/stopped_when_resumed.json")
    search = {"widths": [1, 3], "search": {"population": 4, "parents": 2, "generations": 1, "budget": 10**6}}
    supernet = {**sections("noah", 3), "method": {"name": "noah", **search}}
    command(
        *("--config", write_config("configs/supernet.yaml", ON_CLOUDS, SHORT, **supernet)),
        *("--output", "runs/supernet"),
    )
    command("--search", "runs/supernet")

    study = {
        **{"title": "Small", "config": "configs/dapt_x.yaml", "runs": "study/runs", "results": "study/results"},
        "replicate": {"values": [0, 1]},
        "tables": {
            "main": {
                "baseline": "linear",
                "columns": {"rotation": None},
                "rows": {
                    "linear": {"overrides": {"method.name": "linear", "head.pools": ["cls", "patch_max"]}},
                    "dapt_x": {"tune": {"train.lr": [1e-3, 1e-2]}},
                },
            }
        },
    }
    Path("study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    command("compare", "--config", "study.yaml")
    shutil.rmtree("all")
    shutil.rmtree("cache")


if __name__ == "__main__":
    main()
