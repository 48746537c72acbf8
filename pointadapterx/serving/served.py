"""An adapter as the server knows it: how its inputs are prepared and its answers read; its model is with others'."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pointadapterx.adapted_model import AdaptedModel
from pointadapterx.checkpoints.adapter_file import AdapterInfo, read_adapter
from pointadapterx.datasets.cloud_reader import CloudReader
from pointadapterx.datasets.images import SUFFIXES
from pointadapterx.datasets.point_files import KINDS
from pointadapterx.engine.bank import shape_keys
from pointadapterx.engine.input_form import ImageReader
from pointadapterx.engine.predictor import Predictor
from pointadapterx.peft import METHODS
from pointadapterx.serving.limits import RefusedError
from pointadapterx.tasks import Task
from pointadapterx.tasks.exchange import Answer


@dataclass(frozen=True)
class Answering:
    """How all adapters answer.

    Attributes:
        device: of the models.
        precision: as ``train.precision``; None: that of each adapter.
        weights: where the backbones' weights lie, if not where the adapters' configs say.
        top: classes that an answer lists.
    """

    device: str | torch.device | None = None
    precision: str | None = None
    weights: str | Path | None = None
    top: int = 3


class Served(Predictor[Answer]):
    """One version of an adapter.

    Args:
        name: that clients know it by.
        version: number of the loaded file, unique in the server.
        info: of the file.
        copy: of the file, which nobody replaces.
        answering: see there.
        models: gives the model, in the thread that computes.

    Attributes:
        users: requests that are being answered by it.
        retired: whether another version has taken its place, so that it goes with the last of them.
        shares: equal for adapters that can share a pass; known once it has been in memory.
    """

    def __init__(
        self,
        name: str,
        version: int,
        info: AdapterInfo,
        copy: Path,
        answering: Answering,
        models: Callable[[Served], AdaptedModel],
    ) -> None:
        self.name, self.version, self.copy = name, version, copy
        self._source, self._shared, self.weights = info.path, models, answering.weights
        self.users, self.retired = 0, False
        self.shares: Hashable = self.key
        self.group = None
        if not METHODS[info.method.name].trains_backbone:
            self.group = f"{info.backbone_hash} {json.dumps(shape_keys(info), default=str)}"
        light = {name: info._replace(tensors={})}
        super().__init__(light, device=answering.device, precision=answering.precision, top=answering.top)

    def build_models(self, first: AdapterInfo, weights: object) -> Callable[[str], AdaptedModel]:
        """Those that the server shares."""
        return lambda name: self._shared(self)

    @property
    def key(self) -> str:
        """Its name among models."""
        return f"{self.name} {self.version}"

    @property
    def info(self) -> AdapterInfo:
        """Of the file, without tensors."""
        return self.infos[self.name]

    @property
    def task(self) -> Task:
        """What it answers."""
        return self.tasks[self.name]

    @property
    def kinds(self) -> Sequence[str]:
        """Kinds of files that it reads, without the dot."""
        return KINDS if self.takes_points else [suffix.removeprefix(".") for suffix in SUFFIXES]

    @property
    def takes_points(self) -> bool:
        """Whether its inputs are clouds, and not pictures."""
        return self._form.points

    @property
    def up(self) -> str:
        """Axis of files that points up."""
        return self._form.up

    @property
    def model(self) -> AdaptedModel:
        """Of the thread that computes, and until another adapter computes."""
        return self._shared(self)

    @property
    def reader(self) -> CloudReader | ImageReader:
        """Reads a file as the adapter wants it, in another process."""
        return self._form.reader(whole=self.task.whole)

    @property
    def precision(self) -> torch.dtype:
        """In which its model computes."""
        return torch.bfloat16 if self._bf16 else torch.float32

    def read(self, logits: Tensor) -> Tensor:
        """Logits (..., classes) -> probabilities, calibrated where the adapter stores a temperature."""
        calibration = self.info.facts.calibration
        return logits.softmax(dim=-1) if calibration is None else calibration.probabilities(logits)

    def whole_info(self) -> AdapterInfo:
        """The content of its file, with tensors, as it was when it was loaded.

        Raises:
            CheckpointError: if the copy is gone.
        """
        return read_adapter(self.copy)._replace(path=self._source)

    def require_kind(self, suffix: str) -> None:
        """Refuses an upload by its suffix, before it is read.

        Raises:
            RefusedError: naming the kinds that are read.
        """
        if suffix.removeprefix(".") not in self.kinds:
            known = " ".join(self.kinds)
            if not suffix:
                raise RefusedError(415, f"the file's name has no suffix; the adapter {self.name} reads {known}")
            raise RefusedError(415, f"'{suffix}' is no kind of file that the adapter {self.name} reads ({known})")
