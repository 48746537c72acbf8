"""Looks at the autoencoder of a pre-training run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from pointadapterx.build import build_splits, build_trained
from pointadapterx.config import read_config
from pointadapterx.datasets import build_inputs
from pointadapterx.datasets.base import PointClouds
from pointadapterx.datasets.inputs import Batch
from pointadapterx.errors import CheckpointError
from pointadapterx.files import read_safetensors
from pointadapterx.models.grouping import Groups
from pointadapterx.models.point_mae import MaskedAutoencoder
from pointadapterx.run_folder import CONFIG_FILE, STATE_FILE
from pointadapterx.tasks import Reconstruction, build_task
from pointadapterx.visualize.drawing import Sheet
from pointadapterx.visualize.reconstruction import reconstruction_sheet

PREFIX = "model/"  # of the model's tensors in a run's state


def is_pretraining(run: str) -> bool:
    """Whether this is the folder of a pre-training run."""
    path = Path(run, CONFIG_FILE)
    return path.is_file() and read_config(path).pretrain is not None


@torch.inference_mode()
def reconstruction(folder: Path, overrides: Sequence[str], count: int) -> Sheet:
    """Held-out clouds of a pre-training run, as its model completes them.

    Args:
        folder: of the run.
        overrides: ``data.root=…`` where the clouds lie elsewhere now.
        count: clouds.

    Raises:
        CheckpointError: if the run's state is missing or of another model.
        DataError: if its clouds are missing.
    """
    config = read_config(folder / CONFIG_FILE, overrides)
    task, model = build_task(config), build_trained(config.replaced(backbone={"weights": None}))
    assert isinstance(task, Reconstruction)
    assert isinstance(model, MaskedAutoencoder)
    tensors, _ = read_safetensors(folder / STATE_FILE)
    state = {name.removeprefix(PREFIX): value for name, value in tensors.items() if name.startswith(PREFIX)}
    try:
        model.load_state_dict(state)
    except RuntimeError:
        raise CheckpointError(f"{folder / STATE_FILE}: is not of the model in {CONFIG_FILE} beside it") from None
    model.eval()
    clouds = build_splits(config).val
    assert isinstance(clouds, PointClouds)
    points = build_inputs(config).for_test(clouds.fetch(torch.arange(min(count, len(clouds)))))
    groups, mask = task.test_masked(model.encoder, Batch(points, task.targets(clouds)))
    predicted = model(Groups(*groups), mask).predicted
    names = clouds.names[:count] if clouds.names else None
    return reconstruction_sheet(groups, mask, predicted, names)
