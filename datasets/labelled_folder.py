"""The user's own files of points with a label for each point."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pointadapterx.datasets.base import AXES, DATASETS, Unchecked, check_choice, check_split
from pointadapterx.datasets.doubts import Doubt
from pointadapterx.datasets.folder import doubts_said
from pointadapterx.datasets.labelled_clouds import LabelledCloud
from pointadapterx.datasets.labelled_source import Source, Vocabulary, numbered, vocabulary_of_sound_files
from pointadapterx.datasets.ragged import Ragged, settled
from pointadapterx.datasets.scenes import WHOLE, Scenes
from pointadapterx.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

CATEGORY = "object"  # the only one, for tasks that ask for one


@DATASETS.register("labelled_folder")
class LabelledFolder(Scenes):
    """Files with a label for each point: shapes with parts, or scenes.

    ``root`` has folders ``train`` and ``test``, perhaps ``val`` (the validation part of training; without ``test`` it
    is the test split), or files alone, of which 20 % are then held out for the test. Names of splits are those of
    :func:`~pointadapterx.datasets.layouts.part_of`; folders below them have no meaning.

    Labels are a property of PLY, a field of LAS, LAZ or PCD, a column of text or of an array, or an entry of npz or
    HDF5, named by ``label_field``; by default the one with a usual name, such as ``label``, ``classification``,
    ``class`` or ``segment``. They may be any whole numbers: predictions are written with the same ones.

    Names of labels come from ``label_names``, else from the files (comments ``label 0 floor`` of PLY, the table of
    classes of LAS), else they are ``class_0`` and so on. Without ``label_names`` the classes are the labels of the
    training files.

    Args:
        split: ``"train"`` or ``"test"``.
        root: see above.
        variant: not supported here; a name is an error.
        num_points: of a sample.
        block: ``"whole"``, which is the default and for shapes: a sample is points of a whole file. For scenes the side
            of blocks in units of the files.
        normalize: centre each cloud and scale it into the unit sphere; by default so for whole clouds.
        up: axis of the files that points up. Samples have y up, and blocks are columns along it.
        suffixes: kinds of files to read; by default all that can have labels.
        columns: of x, y and z in text files, by name or by number from 0.
        nan: ``"error"`` refuses files with NaN or infinite coordinates; by default such points are dropped.
        label_field: name, or number of a column from 0.
        label_names: a file, see :func:`~pointadapterx.datasets.labelled_source.read_label_names`; a path below
            ``root``, or an absolute one.
        ignored_labels: labels of points that have no class, which neither training nor metrics count; -1 by default.
        workers: processes that read files; all CPU cores by default.

    Raises:
        ConfigError: for a missing root, an unknown split, or a variant.
        DataError: if files are missing or damaged, or labels are missing or none of the classes.
    """

    default_block = WHOLE
    settles = True

    def __init__(
        self,
        split: str,
        *,
        root: str | Path | None = None,
        variant: str | None = None,
        num_points: int = 2048,
        block: float | str | None = None,
        normalize: bool | None = None,
        up: str = "y",
        suffixes: Sequence[str] | None = None,
        columns: Sequence[str | int] | None = None,
        nan: str | None = None,
        label_field: str | int | None = None,
        label_names: str | None = None,
        ignored_labels: Sequence[int] | None = None,
        workers: int | None = None,
    ) -> None:
        check_split(split)
        if variant is not None:
            raise ConfigError(f"data.variant '{variant}': labelled_folder has no variants; remove data.variant")
        check_choice(up, AXES, "data.up")
        source = Source.of(
            root=root,
            label_field=label_field,
            label_names=label_names,
            ignored_labels=ignored_labels,
            suffixes=suffixes,
            columns=columns,
            nan=nan,
            workers=workers,
        )
        names, validation, said = source.split(split)
        classes = source.classes()
        block = block or self.default_block
        super().__init__(
            Ragged.of(_clouds(source, names, classes, up)),
            list(classes.values()),
            split,
            num_points=num_points,
            block=block,
            normalize=block == WHOLE if normalize is None else normalize,
            names=names,
            validation=torch.tensor(validation) if any(validation) else None,
            condition=torch.zeros(len(names), dtype=torch.int64),
            classes=[CATEGORY],
            source=[source.root],
        )
        self.point_values = list(classes)
        if said:
            logger.warning("%s", said)

    @classmethod
    def point_classes_in(cls, **options: Any) -> list[str]:
        """Those of ``label_names`` or of the training files."""
        return list(Source.of(**options).classes().values())

    @classmethod
    def parts_in(cls, **options: Any) -> dict[str, list[str]]:
        """The same, as parts of the only category there is."""
        return {CATEGORY: cls.point_classes_in(**options)}

    @classmethod
    def each_cloud(cls, split: str, **options: Any) -> Iterator[Unchecked]:
        """Each file, with labels as it has them."""
        source = Source.of(**options)
        vocabulary = vocabulary_of_sound_files(source)
        found = source.classes() if vocabulary is None else vocabulary.classes()
        classes = {value: text for value, text in found.items() if value not in source.ignored_labels}
        names, validation, said = source.split(check_split(split))
        if said:
            logger.warning("%s", said)
        hint = list(_one_class(source, vocabulary) if split == "train" else ())
        for name, of_validation, cloud in zip(names, validation, source.read(names), strict=True):
            wrong = cloud if isinstance(cloud, str) else _refused(vocabulary, name, cloud)
            if wrong or isinstance(cloud, str):
                yield Unchecked(name, wrong, None, of_validation)
                continue
            yield Unchecked(
                name,
                cloud.points,
                None,
                of_validation,
                cloud.labels,
                list(classes.values()),
                source.ignored_labels,
                values=list(classes),
                doubts=(*cloud.doubts, *hint),
            )
            hint = []  # of the first one


def _one_class(source: Source, vocabulary: Vocabulary | None) -> Iterator[Doubt]:
    """Which fields may hold the labels instead, where files have one label only."""
    if vocabulary is not None and len(vocabulary.values) == 1 and (others := source.other_fields()):
        text = f"all labels are {min(vocabulary.values)}, as in a field that nobody has filled"
        yield Doubt("a single label", text, f"choose another data.label_field{others}", note=True)


def _refused(vocabulary: Vocabulary | None, name: str, cloud: LabelledCloud) -> str:
    """Why a file's labels do not go with those before it, or ``""``."""
    try:
        if vocabulary is not None:
            vocabulary.add(name, cloud)
    except DataError as error:
        return str(error)
    return ""


def _clouds(
    source: Source, names: Sequence[str], classes: Mapping[int, str], up: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Points (m, 3) float32 with y up, and the classes of each file's points (m,).

    Raises:
        DataError: for the first file that is wrong, and how many cannot be read.
    """
    doubts: list[tuple[str, Sequence[Doubt]]] = []
    vocabulary = source.vocabulary()
    for name, cloud in source.read_sound(names):
        if vocabulary is not None:
            vocabulary.add(name, cloud)
        doubts.append((name, cloud.doubts))
        points = np.roll(cloud.points, 1 - AXES.index(up), axis=1)  # cyclic, so it is a rotation and mirrors nothing
        yield settled(points), numbered(cloud.labels, classes, source.ignored_labels, str(source.root / name))
    for text in doubts_said(source.root, doubts):
        logger.warning("%s", text)
