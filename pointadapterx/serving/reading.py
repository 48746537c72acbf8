"""What a reading process does with an upload: nothing in it is trusted, and no path but the upload's own is opened."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pickle import dumps
from typing import Any, NamedTuple

import numpy as np
import torch

from pointadapterx.datasets.cloud_reader import CloudReader
from pointadapterx.datasets.entries import Entry, entries_of
from pointadapterx.datasets.images import Picture
from pointadapterx.datasets.point_files import Cloud
from pointadapterx.engine.given import points_of
from pointadapterx.engine.input_form import ImageReader
from pointadapterx.text import counted

ARRAY = ".json"
"""What stands for a file's suffix where the body is JSON: ``{"points": [[x, y, z], ...]}``."""


class Upload(NamedTuple):
    """A body that was received.

    Attributes:
        path: of the file that it is in, with a suffix that decides how it is read.
        name: that the client gave it; nothing is opened by it.
    """

    path: str
    name: str


class Content(NamedTuple):
    """One cloud or picture of an upload.

    Attributes:
        name: the upload's; ``all.h5#3`` where it holds several.
        content: what was read, or what is wrong with it.
    """

    name: str
    content: Cloud | Picture | str


class Allowed(NamedTuple):
    """Limits of one upload: points of a cloud, clouds, and points of all that is made of them."""

    points: int
    clouds: int
    together: int


def contents(upload: Upload, reader: CloudReader | ImageReader, allowed: Allowed) -> list[Content]:
    """What an upload holds, as a reader has it.

    The reader brings large clouds to fewer points, which takes long: they are counted first.
    """
    if isinstance(reader, ImageReader):
        return [Content(upload.name, _named(reader(upload.path), upload))]
    if upload.path.endswith(ARRAY):
        return [Content(upload.name, _array(upload, reader, allowed))]
    entries = entries_of(upload.path)
    if entries is None:
        return [Content(upload.name, _cloud(upload.path, upload, reader, allowed))]
    if len(entries) > allowed.clouds:
        many = f"{upload.name}: {counted(len(entries), 'cloud')}, more than the {allowed.clouds:,} that are taken"
        return [Content(upload.name, f"{many} at a time; send them in parts")]
    found, together = list[Content](), 0
    for one in entries:
        cloud = _cloud(one, upload, reader, allowed)
        together += 0 if isinstance(cloud, str) else len(cloud.points)
        if together > allowed.together:
            many = f"{upload.name}: its clouds have more than the {allowed.together:,} points that are taken"
            return [Content(upload.name, f"{many} at a time; send them in parts")]
        found.append(Content(f"{upload.name}#{one.number}", cloud))
    return found


def _cloud(source: str | Entry, upload: Upload, reader: CloudReader, allowed: Allowed) -> Cloud | str:
    whole = replace(reader, whole=True)(source)
    return _named(whole if isinstance(whole, str) else _reduced(whole, upload.path, reader, allowed), upload)


def _reduced(cloud: Cloud, where: str, reader: CloudReader, allowed: Allowed) -> Cloud | str:
    if len(cloud.points) > allowed.points:
        count = counted(len(cloud.points), "point")
        return f"{where}: {count}, more than the {allowed.points:,} that are taken; thin it out"
    return reader.reduce(cloud, where)


def _array(upload: Upload, reader: CloudReader, allowed: Allowed) -> Cloud | str:
    expected = f'{upload.name}: expected JSON such as {{"points": [[0.1, 0.2, 0.3], ...]}}'
    try:
        with open(upload.path, "rb") as file:
            given = json.load(file)
        points = np.array(given["points"], dtype=np.float64)
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError):
        return expected
    whole = points_of(points, upload.name, replace(reader, whole=True))
    return whole if isinstance(whole, str) else _reduced(whole, upload.name, reader, allowed)


def _named(found: Any, upload: Upload) -> Any:
    """With the client's name for the upload in place of the path that it was given here."""
    return found.replace(upload.path, upload.name) if isinstance(found, str) else found


def serve(requests: Connection, memory: int) -> None:
    """Reads what it is asked for until the other end is closed.

    Args:
        requests: gives the arguments of :func:`contents`, and takes the size of its results and then, if these are
            wanted, the results.
        memory: bytes that reading may take.
    """
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches it too, while accepted uploads are still to be read
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    bound_memory(memory)
    while True:
        try:
            arguments = requests.recv()
        except (EOFError, OSError):
            return
        found = dumps(_safely(*arguments))
        requests.send(len(found))
        if requests.recv():  # whoever asked has room for it
            requests.send_bytes(found)


def _safely(upload: Upload, reader: CloudReader | ImageReader, allowed: Allowed) -> Sequence[Content]:
    try:
        return contents(upload, reader, allowed)
    except MemoryError:
        return [Content(upload.name, too_large(upload.name))]
    except Exception as error:  # a fault of a reader is one of this upload, and not of the next
        return [Content(upload.name, f"{upload.name}: cannot be read ({type(error).__name__})")]


def too_large(name: str) -> str:
    """What is wrong with an upload whose reading takes too much memory."""
    return f"{name}: reading it takes more memory than this server allows; send fewer points"


def bound_memory(memory: int) -> None:
    """Lets this process take so many bytes more than it has; only on Linux, where that can be asked for."""
    if sys.platform != "linux":
        return
    import resource

    with open(f"/proc/{os.getpid()}/status", encoding="ascii") as file:
        used = next((int(line.split()[1]) * 1024 for line in file if line.startswith("VmData:")), 0)
    resource.setrlimit(resource.RLIMIT_DATA, (used + memory, used + memory))
