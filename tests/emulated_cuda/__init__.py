"""The CUDA kernels on a CPU: built with a C++ compiler around ``cuda.h``, called with tensors.

``emulator.cpp`` says what is checked. Not shown by it: the weak order of memory between blocks, nvcc's code, registers
and occupancy, capture in graphs, torch's binding, speed.
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tests.conftest import ROOT

HERE = Path(__file__).parent
SOURCES = ROOT / "extensions" / "csrc" / "cuda"
COMPILER = os.environ.get("CXX", "g++")
HEADERS = ("cuda_runtime_api.h", "cooperative_groups.h")  # which cuda.h takes the place of
ASSERT = '#include "cuda.h"\n#undef assert\n#define assert(x) ((x) ? void() : emu::fail(#x, __LINE__))\n'
FLAGS = ["-std=c++20", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-U_FORTIFY_SOURCE", "-Wall"]
OF_KERNELS = ["-O1", "-fsanitize=thread", "-Wno-unknown-pragmas", "-x", "c++"]
GUARD = 4096  # bytes around a buffer that belong to no other

Patch = tuple[str, str, str]
"""A file of :data:`SOURCES`, what it says, and what it is to say."""


class EmulationError(AssertionError):
    """What the emulator found wrong."""


def as_cpp(source: str) -> str:
    """Launches and shared variables in standard C++; lines keep their numbers."""
    source = re.sub(r"__shared__ (.+?) (\w+)((?:\[[^]]+])*);", r"auto& \2 = emu::shared<\1\3>(__LINE__);", source)
    source = re.sub(
        r"([;{}]\s*)([^;{}]*?)(\s*)<<<([^;]*?)>>>\(([^;]*)\);", r"\1\3emu::launch({\4}, [=] { \2(\5); });", source
    )
    left = re.search(r".*(__shared__|<<<).*", source)
    assert left is None, f"not understood: {left and left[0].strip()}"
    return source


def build(folder: Path, patch: Patch | None = None, whole: Path | None = None) -> Path:
    """Compiles the kernels and the emulator into a library.

    Args:
        folder: for all that is written.
        patch: applied to one of the sources.
        whole: the folder of a build without a patch, whose objects serve for what the patch leaves alone.

    Raises:
        AssertionError: if the patch does not fit its source, or something does not compile.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in HEADERS:
        (folder / name).write_text('#include "cuda.h"\n')
    (folder / "cassert").write_text(ASSERT)
    texts = {path.name: path.read_text() for path in SOURCES.iterdir()}
    if patch is not None:
        name, old, new = patch
        assert texts[name].count(old) == 1, f"{name} has {texts[name].count(old)} times: {old}"
        texts[name] = texts[name].replace(old, new)
    for name, text in texts.items():
        (folder / name).write_text(as_cpp(text) if name.endswith(".cu") else text)
    parts = [(folder / name, OF_KERNELS) for name in sorted(texts) if name.endswith(".cu")]
    parts += [(HERE / "emulator.cpp", ["-O2"]), (HERE / "calls.cpp", ["-O1"])]
    changed = [part for part in parts if whole is None or (patch is not None and part[0].name == patch[0])]
    _compile([[*flags, "-c", path, "-o", folder / f"{path.stem}.o"] for path, flags in changed], folder)
    objects = [(folder if part in changed else whole or folder) / f"{part[0].stem}.o" for part in parts]
    library = folder / "kernels.so"
    _compile([["-shared", "-Wl,-z,defs", *objects, "-o", library]], folder)
    return library


def _compile(commands: list[list[object]], folder: Path) -> None:
    start = [COMPILER, *FLAGS, "-I", str(folder), "-I", str(HERE)]
    running = [subprocess.Popen([*start, *map(str, rest)], stderr=subprocess.PIPE, text=True) for rest in commands]
    errors = [process.communicate()[1] for process in running]
    assert not any(process.returncode for process in running), "\n".join(errors)


@dataclass
class Schedule:
    """How the threads of a call take turns, and on which device.

    Attributes:
        seed: of the order.
        shuffled: any thread that can go on may; else the one that has waited longest.
        processors: multiprocessors of the device.
        blocks: that one of them takes at a time.
        most_blocks: of a kernel that strides over the rest of its work; 0 for as many as it asks for.
    """

    seed: int = 0
    shuffled: bool = False
    processors: int = 2
    blocks: int = 1
    most_blocks: int = 0


class _Search(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("query", "points")),
        *((name, ctypes.c_int64) for name in ("batch", "queries", "count", "dims")),
        *((name, ctypes.c_void_p) for name in ("query_lengths", "lengths")),
    )


class Emulator:
    """The ops of ``torch.ops.pointadapterx`` by the emulated kernels; ``schedule`` says how.

    Raises:
        EmulationError: from each op, for whatever the emulator finds.
    """

    def __init__(self, library: Path) -> None:
        self.schedule = Schedule()
        self.folder = library.parent
        self._library = ctypes.CDLL(str(library))
        self._library.emu_accesses.restype = ctypes.c_uint64
        for name in ("fps_in_registers", "fps_partial_bytes"):
            getattr(self._library, name).restype = ctypes.c_int64
        self._alive: list[Tensor] = []

    @property
    def accesses(self) -> int:
        """Loads and stores that were checked so far."""
        return self._library.emu_accesses()

    def farthest_point_sample(
        self, points: Tensor, num_samples: int, start: int, skip_origin: bool, lengths: Tensor | None = None
    ) -> Tensor:
        self._begin()
        batch, count, _ = points.shape
        large = count > self._library.fps_in_registers()
        chosen = self._result("chosen", (batch, num_samples), torch.int64)
        nearest = self._result("nearest", (batch if large else 0, count), points.dtype)
        partial = self._result("partial", (self._library.fps_partial_bytes() if large else 0,), torch.uint8, 16)
        inputs = self._input("points", points), self._input("lengths", lengths)
        sizes = (batch, count, num_samples, start, int(skip_origin))
        self._call("farthest_point_sample", points.dtype, *inputs, *sizes, nearest, partial, chosen)
        return chosen

    def knn(
        self, query: Tensor, points: Tensor, k: int, query_lengths: Tensor | None = None, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        search = self._search(query, points, query_lengths, lengths)
        squared = self._result("squared", (*query.shape[:2], k), query.dtype)
        indices = self._result("indices", (*query.shape[:2], k), torch.int64)
        self._call("knn", query.dtype, search, k, squared, indices)
        return squared, indices

    def nearest(self, query: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        search = self._search(query, points, None, None)
        squared = self._result("squared", query.shape[:2], query.dtype)
        indices = self._result("indices", query.shape[:2], torch.int64)
        self._call("nearest", query.dtype, search, squared, indices)
        return squared, indices

    def ball_query(
        self,
        query: Tensor,
        points: Tensor,
        radius: float,
        num_samples: int,
        query_lengths: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        search = self._search(query, points, query_lengths, lengths)
        indices = self._result("indices", (*query.shape[:2], num_samples), torch.int64)
        counts = self._result("counts", query.shape[:2], torch.int64)
        self._call("ball_query", query.dtype, search, ctypes.c_double(radius), num_samples, indices, counts)
        return indices, counts

    def gather_points(self, points: Tensor, indices: Tensor) -> Tensor:
        self._begin()
        (batch, count, channels), queries = points.shape, indices.shape[1]
        out = self._result("out", (batch, queries, channels), points.dtype)
        inputs = self._input("points", points), self._input("indices", indices)
        self._call("gather_points", None, *inputs, batch, count, queries, channels, points.element_size(), out)
        return out

    def interpolate(self, points: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
        self._begin()
        (batch, count, channels), (_, queries, k) = points.shape, indices.shape
        out = self._result("out", (batch, queries, channels), points.dtype)
        inputs = [
            self._input(name, of)
            for name, of in zip(("points", "indices", "weights"), (points, indices, weights), strict=True)
        ]
        self._call("interpolate", points.dtype, *inputs, batch, count, queries, channels, k, out)
        return out

    def _begin(self) -> None:
        self._alive.clear()
        at = self.schedule
        self._library.emu_begin(ctypes.c_uint64(at.seed), at.shuffled, at.processors, at.blocks, at.most_blocks)

    def _search(
        self, query: Tensor, points: Tensor, query_lengths: Tensor | None, lengths: Tensor | None
    ) -> ctypes.c_void_p:
        self._begin()
        names = ("query", "points", "query_lengths", "lengths")
        at = dict(zip(names, map(self._input, names, (query, points, query_lengths, lengths)), strict=True))
        (batch, queries, dims), count = query.shape, points.shape[1]
        self._last = _Search(**at, batch=batch, queries=queries, count=count, dims=dims)
        return ctypes.c_void_p(ctypes.addressof(self._last))

    def _input(self, name: str, values: Tensor | None) -> ctypes.c_void_p:
        if values is None:
            return ctypes.c_void_p(None)
        copy = self._memory(values.shape, values.dtype, values.element_size())
        copy.copy_(values)
        return self._register(name, copy, 0)

    def _result(self, name: str, shape: Sequence[int], dtype: torch.dtype, alignment: int = 0) -> Tensor:
        found = self._memory(shape, dtype, alignment or dtype.itemsize)
        self._register(name, found, min(4, dtype.itemsize))
        return found

    def _memory(self, shape: Sequence[int], dtype: torch.dtype, alignment: int) -> Tensor:
        """Filled with nonsense, between guards, aligned as little as torch promises."""
        size = torch.Size(shape).numel() * dtype.itemsize
        raw = torch.full((GUARD + alignment + size + GUARD,), 0xA5, dtype=torch.uint8)
        self._alive.append(raw)
        return raw[GUARD + alignment :][:size].view(dtype).view(shape)

    def _register(self, name: str, memory: Tensor, granule: int) -> ctypes.c_void_p:
        at = ctypes.c_void_p(memory.data_ptr())
        self._library.emu_buffer(name.encode(), at, ctypes.c_size_t(memory.nbytes), granule)
        return at

    def _call(self, name: str, dtype: torch.dtype | None, *arguments: object) -> None:
        suffix = {None: "", torch.float32: "_float", torch.float64: "_double"}[dtype]
        code = getattr(self._library, name + suffix)(
            *(
                ctypes.c_int64(value)
                if isinstance(value, int)
                else ctypes.c_void_p(value.data_ptr())
                if isinstance(value, Tensor)
                else value
                for value in arguments
            )
        )
        text = ctypes.create_string_buffer(4096)
        self._library.emu_errors(text, ctypes.c_size_t(len(text)))
        if code or text.value:
            raise EmulationError(f"{name}: error {code}\n{text.value.decode()}{self.schedule}")
