"""What samples of clouds of any size hold: whether block and number of points suit the clouds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from pointadapterx.datasets.doubts import Doubt
from pointadapterx.datasets.grid import GROUND
from pointadapterx.datasets.ragged import Ragged
from pointadapterx.datasets.scenes import Scenes, cell_of, points_around

LOOKED_AT = 32  # clouds by which blocks are judged
PLACES = 16  # blocks of each
FEW = 0.5  # of the points of a sample, that blocks hold at least


class Measured(NamedTuple):
    """A cloud, as far as it decides what samples hold.

    Attributes:
        name: in what is printed.
        points: their number.
        side: the larger one of its rectangle on the ground.
        in_block: points that a block holds, the median of some; of clouds that stay whole all of them.
    """

    name: str
    points: int
    side: float
    in_block: float


def measured_cloud(points: np.ndarray, name: str, block: float | None) -> Measured:
    """A cloud (m, 3) with y up.

    Raises:
        DataError: if it is far too large for such blocks.
    """
    clouds = Ragged.flat(points, np.zeros(len(points), np.int8), np.array([len(points)]))
    return _measured(clouds if block is None else clouds.in_cells(cell_of(block), [name]), 0, name, block)


def draw_doubts(data: Scenes) -> Iterator[Doubt]:
    """What is wrong with ``data.block`` and ``data.num_points`` for clouds, of which some are looked at for blocks."""
    numbers = np.unique(data.scene.numpy())
    if data.block is not None:
        numbers = numbers[:: -(-len(numbers) // LOOKED_AT)]
    found = [_measured(data.content, number, data.scene_names[number], data.block) for number in numbers.tolist()]
    yield from doubts_of_draws(found, data.num_points, data.block)


def doubts_of_draws(clouds: Sequence[Measured], num_points: int | None, block: float | None) -> Iterator[Doubt]:
    """The same of clouds that were measured.

    Args:
        clouds: at least one.
        num_points: of a sample, where that is known.
        block: side of the blocks; None: clouds stay whole.
    """
    largest = max(cloud.side for cloud in clouds)
    if block is not None and block >= largest:
        text = f"data.block={block:g} is larger than the clouds, the largest of which measures {largest:.3g}"
        fix = "give it in the unit of the files, or set data.block=whole"
        yield Doubt("blocks larger than clouds", f"{text}: blocks hold whole clouds", fix)
        return
    if num_points is None:
        return
    held = float(np.median([cloud.in_block for cloud in clouds]))
    if block is not None and held < FEW * num_points:
        what = f"{held:,.0f} point{'s' * (round(held) != 1)}"
        text = f"blocks of data.block={block:g} hold about {what} each, and samples have {num_points:,}"
        fix = "give it in the unit of the files, or a larger one, or lower data.num_points"
        yield Doubt("blocks of few points", f"{text}: most of them are copies", fix)
    few = [cloud for cloud in clouds if cloud.points < num_points]
    if few and block is None:
        least = min(few, key=lambda cloud: cloud.points)
        text = f"{len(few)} of {len(clouds)} clouds have fewer points than the {num_points:,} of data.num_points, the "
        text += f"fewest {least.name} ({least.points:,}): samples of them hold points several times"
        yield Doubt("clouds of few points", text, "lower it, or leave these clouds out", note=True)


def _measured(clouds: Ragged, number: int, name: str, block: float | None) -> Measured:
    """A cloud; where there are blocks, ``clouds`` have grids."""
    count = int(clouds.counts[number])
    if block is None:
        return Measured(name, count, 0.0, count)
    ground = clouds.cloud(number)[:, GROUND].astype(np.float64)
    side = float(np.ptp(ground, axis=0).max())
    if block >= side:
        return Measured(name, count, side, count)
    places = np.linspace(0, count - 1, PLACES).astype(np.int64)
    held = [len(points_around(clouds, number, middle, block / 2)[1]) for middle in ground[places]]
    return Measured(name, count, side, float(np.median(held)))
