"""Clouds drawn by Open3D: off screen into images, or in a window."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import lru_cache
from importlib.util import find_spec
from typing import TextIO

import numpy as np

from pointadapterx.errors import PointAdapterXError, reason_of
from pointadapterx.visualize.drawing import MARK, DrawCloud, Sheet, View, projected, reach_of, shaded

PIXELS = 400
PROBE = """
import open3d
renderer = open3d.visualization.rendering.OffscreenRenderer(8, 8)
renderer.render_to_image()
"""
MISSING = "Open3D is not installed; pip install open3d (1 GB)"
NEEDED = (
    "it needs a Vulkan driver and some libraries, on Debian and Ubuntu: apt-get install libvulkan1 mesa-vulkan-drivers "
    "libusb-1.0-0 libgl1 libegl1 libgomp1 libx11-6"
)
NO_DRIVER = f"Open3D cannot draw off screen here; {NEEDED}"
BROKEN = "Open3D is installed but cannot be imported ({reason}); " + NEEDED


@lru_cache(maxsize=1)
def problem() -> str | None:
    """Why Open3D cannot draw off screen here, or None. Tried in another process: without a driver it ends its own."""
    try:
        tried = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=120, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return NO_DRIVER
    if tried.returncode == 0:
        return None
    if find_spec("open3d") is None:
        return MISSING
    broken = re.search(r"^(?:ModuleNotFound|Import|OS)Error: (.*)$", tried.stderr, re.MULTILINE)
    return BROKEN.format(reason=broken[1]) if broken else NO_DRIVER


@contextmanager
def native_lines_hidden() -> Iterator[None]:
    """Hides what libraries write to the process's own streams, past Python's; shows it all if an exception follows."""
    streams, out = (sys.stdout, sys.stderr), (1, 2)
    for stream in streams:
        stream.flush()
    kept = [os.dup(number) for number in out]
    with tempfile.TemporaryFile() as hidden:
        for number in out:
            os.dup2(hidden.fileno(), number)
        try:
            yield
        except BaseException:
            _flush(streams)
            hidden.seek(0)
            os.write(kept[1], hidden.read())
            raise
        finally:
            _flush(streams)
            for copy, number in zip(kept, out, strict=True):
                os.dup2(copy, number)
                os.close(copy)


def _errors_alone() -> AbstractContextManager[object]:
    """Keeps Open3D from logging, which it does through Python where it can."""
    import open3d

    return open3d.utility.VerbosityContextManager(open3d.utility.VerbosityLevel.Error)


def _flush(streams: Iterable[TextIO]) -> None:
    """Python's streams, and the buffers of C's, which would otherwise be written later."""
    for stream in streams:
        stream.flush()
    with suppress(AttributeError, OSError, TypeError):  # on Windows there is no such library
        ctypes.CDLL(None).fflush(None)


@lru_cache(maxsize=1)
def off_screen() -> DrawCloud:
    """Draws clouds into square images; one renderer serves the process.

    Raises:
        PointAdapterXError: if Open3D cannot, see :func:`problem`.
    """
    reason = problem()
    if reason is not None:
        raise PointAdapterXError(f"{reason}, or choose --renderer matplotlib")
    with native_lines_hidden():
        import open3d
        from open3d.visualization import rendering

        with _errors_alone():
            renderer = rendering.OffscreenRenderer(PIXELS, PIXELS)
            renderer.render_to_image()  # the first time it says more
    renderer.scene.set_background([1.0, 1.0, 1.0, 1.0])
    renderer.scene.view.set_post_processing(False)  # colours stay as they are given
    materials = []
    for size in (PIXELS / 80, PIXELS / 40):
        materials.append(rendering.MaterialRecord())
        materials[-1].shader, materials[-1].point_size = "defaultUnlit", size

    def draw(view: View, reach: float) -> np.ndarray:
        scene = renderer.scene
        assert view.points is not None
        assert view.colours is not None
        scene.clear_geometry()
        scene.add_geometry("cloud", _cloud(projected(view.points), shaded(view.points, view.colours)), materials[0])
        if view.marked is not None:
            front = projected(view.marked) + np.array([0.0, 0.0, 2 * reach])  # above the cloud
            scene.add_geometry("marked", _cloud(front, np.tile(MARK, (len(front), 1))), materials[1])
        near, far = 0.1 * reach, 10 * reach
        scene.camera.set_projection(rendering.Camera.Projection.Ortho, -reach, reach, -reach, reach, near, far)
        scene.camera.look_at([0.0, 0.0, 0.0], [0.0, 0.0, 5 * reach], [0.0, 1.0, 0.0])
        return np.asarray(renderer.render_to_image()).astype(float) / 255

    _ = open3d  # its modules must outlive the renderer
    return draw


def require_display() -> None:
    """Makes sure that there can be a window: without a display Open3D draws none, and waits for it to be closed.

    Raises:
        PointAdapterXError: without one.
    """
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise PointAdapterXError("no window can be opened here (no display); leave --window out")


def show(sheet: Sheet) -> None:
    """All clouds of a sheet in one window, in rows and columns; returns when it is closed.

    Raises:
        PointAdapterXError: without Open3D, clouds or a display.
    """
    require_display()
    try:
        import open3d
    except (ImportError, OSError) as error:
        reason = MISSING if find_spec("open3d") is None else BROKEN.format(reason=reason_of(error))
        raise PointAdapterXError(f"{reason}, or leave --window out") from None
    views = [[view for view in row if view.points is not None] for row in sheet.rows]
    reach = reach_of([view for row in views for view in row])
    if not any(views):
        raise PointAdapterXError("--window shows clouds, and this picture has none; leave --window out")
    clouds = []
    for number, row in enumerate(views):
        for place, view in enumerate(row):
            assert view.points is not None
            assert view.colours is not None
            moved = 2.2 * reach * np.array([place, -number, 0.0])
            clouds.append(_cloud(view.points + moved, shaded(view.points, view.colours)))
            if view.marked is not None:
                clouds.append(_cloud(view.marked + moved, np.tile(MARK, (len(view.marked), 1))))
    window = open3d.visualization.Visualizer()
    with native_lines_hidden(), _errors_alone():
        opened = window.create_window(window_name=sheet.title)
    if not opened:
        raise PointAdapterXError("no window can be opened here (no display); leave --window out")
    for cloud in clouds:
        window.add_geometry(cloud)
    window.run()
    window.destroy_window()


def _cloud(points: np.ndarray, colours: np.ndarray):  # type: ignore[no-untyped-def]
    import open3d

    cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(points.astype(float)))
    cloud.colors = open3d.utility.Vector3dVector(colours.astype(float))
    return cloud


def choose_renderer(name: str) -> DrawCloud | None:
    """How clouds are drawn: by Open3D, or None for matplotlib.

    Args:
        name: ``open3d``, ``matplotlib``, or ``auto`` for Open3D where it can.

    Raises:
        PointAdapterXError: if Open3D was requested and cannot draw.
    """
    if name == "matplotlib" or (name == "auto" and problem() is not None):
        return None
    return off_screen()
