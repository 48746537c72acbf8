"""The examples of docs/adapt.md are executed as they are written, with small models in the place of published ones."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pointadapterx import Sites
from tests.adapting.models import need
from tests.conftest import ROOT
from tests.docs.pages import blocks

PAGE = ROOT / "docs" / "adapt.md"
TRAIN_DINOV2, LOAD_DINOV2, TRAINER, RESUME, TRAIN_SWIN, LOAD_SWIN, OWN = (block.text for block in blocks(PAGE))
SWIN = '"swin_tiny_patch4_window7_224", pretrained=True'
SMALL_SWIN = '"swin_tiny_patch4_window7_224", img_size=32, embed_dim=12, depths=(2, 2), num_heads=(2, 4), window_size=4'
SEED = "import torch\ntorch.manual_seed(0)\n"  # in the place of pre-trained weights


def run(code: str, folder: Path) -> str:
    """Runs a script in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ACCELERATE_USE_CPU": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def answer(inputs: str, file: str) -> str:
    """What both processes compute of the same inputs."""
    return (
        f"\nimport torch\nwith torch.no_grad():\n    found = model.eval()({inputs})\n"
        f"torch.save(getattr(found, 'logits', found), '{file}')\n"
    )


def assert_same_answers(folder: Path) -> None:
    run("import torch\none, other = torch.load('first'), torch.load('second')\nassert torch.equal(one, other)", folder)


@pytest.mark.slow
def test_transformers_and_its_trainer(tmp_path: Path) -> None:
    need("transformers")
    import torch
    from transformers import Dinov2Config, Dinov2ForImageClassification, Dinov2Model

    import pointadapterx as pax

    torch.manual_seed(0)
    small = Dinov2Config(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=28, patch_size=14)
    Dinov2Model(small).save_pretrained(tmp_path / "facebook" / "dinov2-small")
    shorter = TRAIN_DINOV2.replace("num_train_epochs=3", "max_steps=5")
    resumed = RESUME.replace("num_train_epochs=3", "max_steps=6")
    assert (shorter != TRAIN_DINOV2, resumed != RESUME) == (True, True)
    shown = "pixel_values=torch.linspace(-1, 1, 2 * 3 * 28 * 28).view(2, 3, 28, 28)"
    run(f"{shorter}\n{TRAINER}\nBalancedTrainer\n{answer(shown, 'first')}\n{resumed}", tmp_path)
    run(LOAD_DINOV2 + answer(shown, "second"), tmp_path)
    assert_same_answers(tmp_path)
    with torch.device("meta"):
        published = Dinov2ForImageClassification(Dinov2Config(hidden_size=384, num_attention_heads=6, num_labels=10))
        pax.adapt(published, "adaptformer", train=["classifier"], rank=16)
    assert 4 * pax.count_parameters(published).trainable < 0.7e6  # bytes
    assert len([line for line in TRAIN_DINOV2.splitlines() if line]) <= 13


@pytest.mark.slow
@pytest.mark.timm
def test_timm_and_a_loop(tmp_path: Path) -> None:
    need("timm")
    train, load = (code.replace(SWIN, SMALL_SWIN).replace("size=224", "size=32") for code in (TRAIN_SWIN, LOAD_SWIN))
    assert SMALL_SWIN in train
    shown = "torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)"
    run(SEED + train + answer(shown, "first"), tmp_path)
    run(SEED + load + answer(shown, "second"), tmp_path)
    assert_same_answers(tmp_path)


@pytest.mark.slow
def test_a_module_of_your_own(tmp_path: Path) -> None:
    shown = "torch.linspace(0, 1, 2 * 8 * 3).view(2, 8, 3)"
    run(OWN + answer(shown, "first"), tmp_path)
    loaded = OWN[: OWN.index("sites = Sites(")] + "pax.load_adapter(model, 'cloud.safetensors')\n"
    run(loaded + answer(shown, "second"), tmp_path)
    assert_same_answers(tmp_path)


def test_every_field_of_sites_is_explained() -> None:
    page = PAGE.read_text(encoding="utf-8")
    section = page[page.index("| `Sites` |") : page.index("## What else")]
    tables = "".join(re.findall(r"^\|.*$", section, re.MULTILINE))
    assert {*re.findall(r"`(\w+)(?:=\w+)?`", tables)} >= {*Sites.model_fields}
