"""Looks at the autoencoder of a pre-training run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from pointadapterx.build import build_autoencoder, build_pretraining_data
from pointadapterx.config import read_config
from pointadapterx.datasets import build_inputs, derive_seed
from pointadapterx.errors import CheckpointError
from pointadapterx.files import read_safetensors
from pointadapterx.models.grouping import Groups
from pointadapterx.models.masking import MASKINGS, hidden_groups
from pointadapterx.run_folder import CONFIG_FILE, STATE_FILE
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
    options = config.pretrain
    assert options is not None
    model = build_autoencoder(config.replaced(backbone={"weights": None}))
    tensors, _ = read_safetensors(folder / STATE_FILE)
    state = {name.removeprefix(PREFIX): value for name, value in tensors.items() if name.startswith(PREFIX)}
    try:
        model.load_state_dict(state)
    except RuntimeError:
        raise CheckpointError(f"{folder / STATE_FILE}: is not of the model in {CONFIG_FILE} beside it") from None
    model.eval()
    clouds = build_pretraining_data(config).val
    points = build_inputs(config).for_test(clouds.points[:count])
    groups = model.encoder.grouping(points)
    generator = torch.Generator().manual_seed(derive_seed(config.eval.split_seed, "mask", 0))
    hidden = hidden_groups(options.mask_ratio, model.encoder.num_patches)
    mask = MASKINGS[options.mask](groups.centers, hidden, generator)
    predicted = model(Groups(*groups), mask).predicted
    names = clouds.names[:count] if clouds.names else None
    return reconstruction_sheet(groups, mask, predicted, names)
