"""The machine that a run is on: devices and processes, their name and memory."""

from __future__ import annotations

import gc
import logging
import os
import platform
import re
import shlex
import shutil
import sys
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, is_initialized
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, broadcast_object_list

from pointadapterx import ops
from pointadapterx.engine.precision import multiplies_bf16, precision_of
from pointadapterx.errors import ConfigError

log = logging.getLogger(__name__)


def make_accelerator(precision: str, device: str | None = None) -> Accelerator:
    """Device, processes and precision: one process, ``torchrun`` or ``accelerate launch``, GPU or CPU (gloo).

    One at a time: a process that makes another with another precision or device no longer uses the first.

    Args:
        precision: ``train.precision``; ``auto`` is bf16 where the hardware multiplies it, else fp32.
        device: ``train.device``; null and ``auto`` mean the first GPU, or the CPU without one.

    Raises:
        ConfigError: for a device that is not here, or fp16 without a CUDA device.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    on_cpu = _chosen(device, several=several).type == "cpu"
    if precision == "fp16" and on_cpu:
        raise ConfigError("train.precision=fp16 needs a CUDA device; use bf16 or fp32 on this machine")
    if precision == "auto":
        precision = "bf16" if multiplies_bf16(torch.device("cpu") if on_cpu else None) else "fp32"
    # A head that pools no prompts leaves the last prompt generator without a gradient.
    ddp = DistributedDataParallelKwargs(find_unused_parameters=True)
    # accelerate ignores torchrun's processes where there is no CUDA device, unless it is told to use the CPU.
    if several:
        # DistributedDataParallel imports it indirectly (torch 2.13). Its functions have the default group, as it is
        # then, as default arguments: imported later, it would keep the group and its threads to the end of the process.
        with suppress(ImportError):
            from torch.distributed.nn import functional  # noqa: F401
    # Building a data set's cache in the main process may take longer than the default ten minutes.
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=2))
    mixed_precision = "no" if precision == "fp32" else precision
    # There is one state a process, which refuses another precision; a notebook's next run may have one.
    if is_initialized() and AcceleratorState().mixed_precision != mixed_precision:
        AcceleratorState._reset_state()
    if is_initialized() and (AcceleratorState().device.type == "cpu") != on_cpu:
        AcceleratorState._reset_state(reset_partial_state=True)
    return Accelerator(
        cpu=on_cpu and (several or torch.cuda.is_available()),
        mixed_precision=mixed_precision,
        kwargs_handlers=[ddp, patience],
    )


def _chosen(name: str | None, *, several: bool) -> torch.device:
    """The device that ``train.device`` means; of several GPUs it becomes the current one.

    Raises:
        ConfigError: if it is not here, or several processes cannot share it.
    """
    here = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name is None or name == "auto":
        return torch.device("cuda" if here else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not here:
        raise ConfigError(f"train.device={name}: there is no CUDA device here; use cpu, or auto for what is there")
    if device.index is None:
        return device
    if several:
        raise ConfigError(f"train.device={name}: several processes take a GPU each; use cuda, and CUDA_VISIBLE_DEVICES")
    if device.index >= here:
        raise ConfigError(f"train.device={name}: the last of {here} CUDA devices here is cuda:{here - 1}; use that")
    torch.cuda.set_device(device)
    return device


def leave_process_group() -> None:
    """Ends the process group of :func:`make_accelerator`, if any, whose threads can make a process abort at exit.

    They run as long as an accelerator or a trainer refers to the group, so delete these first.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        gc.collect()
        torch.distributed.destroy_process_group()


def agreed_folder(folder: Path) -> Path:
    """The main process's folder, on every process (their clocks may differ by a second)."""
    holder = [str(folder)]
    broadcast_object_list(holder)
    return Path(holder[0])


def log_device(accelerator: Accelerator) -> None:
    """Logs where the run computes, and in what precision."""
    log.info(
        "device %s, %d process(es), precision %s, point ops: %s",
        accelerator.device,
        accelerator.num_processes,
        precision_of(accelerator),
        ops.implementation(accelerator.device),
    )


def peak_memory_mib(device: torch.device) -> float | None:
    """Peak memory of this process in MiB: allocated on a CUDA device, resident otherwise (not known on Windows)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    # A process inherits the peak that getrusage tells from the one that started it, but not this one.
    own = re.search(r"VmHWM:\s+(\d+) kB", _read_or_empty("/proc/self/status"))
    if own is not None:
        return int(own[1]) / 2**10
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # bytes there, KiB elsewhere


def hardware(device: torch.device) -> str:
    """The device's name and, for a CPU, the number of threads: figures of time belong to it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = re.search(r"model name\s*:\s*(.+)", _read_or_empty("/proc/cpuinfo"))
    name = model[1].strip() if model is not None else platform.processor() or platform.machine()
    threads = torch.get_num_threads()
    return f"{name}, {threads} thread{'s' if threads > 1 else ''}"


def _read_or_empty(path: str) -> str:
    """Content of a file under Linux's /proc, or an empty string on other systems."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def require_compiler(device: torch.device) -> None:
    """torch.compile writes C++ for a CPU, and needs a compiler from the first step on.

    Raises:
        ConfigError: if no compiler is found.
    """
    candidates = shlex.split(os.environ.get("CXX", ""))[:1] or ["g++", "clang++", "cl"]
    if device.type == "cpu" and not any(map(shutil.which, candidates)):
        raise ConfigError(
            f"train.compile needs a C++ compiler on a CPU ({', '.join(candidates)} not found); install one, or remove "
            "the key"
        )
