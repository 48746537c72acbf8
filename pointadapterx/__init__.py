"""PointAdapterX: adapt pre-trained point-cloud and image transformers by training a small part of them."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pointadapterx.version import __version__ as __version__

_HERE = Path(__file__).parent
if not (_HERE / "extensions").is_dir() and (_HERE.parent / "extensions" / "csrc").is_dir():
    # A Python that was started in the folder of a checkout finds this folder before what is installed; `datasets`,
    # `extensions` and `cfgs`, which are inside the installed package, lie beside it there.
    __path__.append(str(_HERE.parent))

if TYPE_CHECKING:
    from pointadapterx.adapted_model import AdaptedModel, count_parameters
    from pointadapterx.adapting import adapt, auxiliary_loss, disable_adapter, merge, set_adapter, unload
    from pointadapterx.adapting.peft_files import load_peft_adapter, save_peft_adapter
    from pointadapterx.build import build_model
    from pointadapterx.checkpoints.adapter_file import load_adapter, read_adapter, save_adapter
    from pointadapterx.checkpoints.published import load_pretrained
    from pointadapterx.config import load_config
    from pointadapterx.counting import count_costs, count_model
    from pointadapterx.engine.bank import AdapterBank
    from pointadapterx.engine.input_form import Failure
    from pointadapterx.engine.predictor import Predictor
    from pointadapterx.export import export_adapter
    from pointadapterx.models.foreign import Sites
    from pointadapterx.ops import farthest_point_sample, knn
    from pointadapterx.peft import METHODS
    from pointadapterx.quickstart.model import PretrainedModel, create_model, from_pretrained
    from pointadapterx.quickstart.training import train
    from pointadapterx.sharing import pull_adapter, push_adapter
    from pointadapterx.tasks.classification import Prediction

# Imported on first use, so that `pointadapterx --help` and `pointadapterx.ops` do not wait for everything.
_HOME = {
    "AdaptedModel": "pointadapterx.adapted_model",
    "AdapterBank": "pointadapterx.engine.bank",
    "Failure": "pointadapterx.engine.input_form",
    "METHODS": "pointadapterx.peft",
    "Prediction": "pointadapterx.tasks.classification",
    "Predictor": "pointadapterx.engine.predictor",
    "PretrainedModel": "pointadapterx.quickstart.model",
    "Sites": "pointadapterx.models.foreign",
    "adapt": "pointadapterx.adapting",
    "auxiliary_loss": "pointadapterx.adapting",
    "build_model": "pointadapterx.build",
    "count_costs": "pointadapterx.counting",
    "count_model": "pointadapterx.counting",
    "count_parameters": "pointadapterx.adapted_model",
    "create_model": "pointadapterx.quickstart.model",
    "disable_adapter": "pointadapterx.adapting",
    "export_adapter": "pointadapterx.export",
    "farthest_point_sample": "pointadapterx.ops",
    "from_pretrained": "pointadapterx.quickstart.model",
    "knn": "pointadapterx.ops",
    "load_adapter": "pointadapterx.checkpoints.adapter_file",
    "load_config": "pointadapterx.config",
    "load_peft_adapter": "pointadapterx.adapting.peft_files",
    "load_pretrained": "pointadapterx.checkpoints.published",
    "merge": "pointadapterx.adapting",
    "pull_adapter": "pointadapterx.sharing",
    "push_adapter": "pointadapterx.sharing",
    "read_adapter": "pointadapterx.checkpoints.adapter_file",
    "save_adapter": "pointadapterx.checkpoints.adapter_file",
    "save_peft_adapter": "pointadapterx.adapting.peft_files",
    "set_adapter": "pointadapterx.adapting",
    "train": "pointadapterx.quickstart.training",
    "unload": "pointadapterx.adapting",
}

__all__ = [
    "METHODS",
    "AdaptedModel",
    "AdapterBank",
    "Failure",
    "Prediction",
    "Predictor",
    "PretrainedModel",
    "Sites",
    "adapt",
    "auxiliary_loss",
    "build_model",
    "count_costs",
    "count_model",
    "count_parameters",
    "create_model",
    "disable_adapter",
    "export_adapter",
    "farthest_point_sample",
    "from_pretrained",
    "knn",
    "load_adapter",
    "load_config",
    "load_peft_adapter",
    "load_pretrained",
    "merge",
    "pull_adapter",
    "push_adapter",
    "read_adapter",
    "save_adapter",
    "save_peft_adapter",
    "set_adapter",
    "train",
    "unload",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'pointadapterx' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    """The public names, imported or not yet, and nothing else that tab completion would offer."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
