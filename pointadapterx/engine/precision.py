"""Choice of device and precision: bf16 if the hardware supports it."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from accelerate import Accelerator

from pointadapterx.errors import ConfigError

log = logging.getLogger(__name__)


def multiplies_bf16(device: torch.device | None = None) -> bool:
    """Whether a device has instructions for products of bf16.

    Args:
        device: by default the first CUDA device, or without one the CPU.
    """
    if device is None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    capabilities: Mapping[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.10
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))


def precision_of(accelerator: Accelerator) -> str:
    """The ``train.precision`` that an accelerator has."""
    return "fp32" if accelerator.mixed_precision == "no" else accelerator.mixed_precision


def usable_device(name: str | torch.device) -> torch.device:
    """A device by its name.

    Raises:
        ConfigError: if nothing can be computed on it here.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises the latter without CUDA
        reason = (str(error).splitlines() or [""])[0]
        raise ConfigError(f"device {name}: cannot be used here ({reason}); choose another, such as cpu") from None
    return device


def computes_bf16(wanted: str | None, trained: str, device: torch.device) -> bool:
    """Whether to predict in bf16: if it was requested or used in training, and the hardware supports it.

    Args:
        wanted: ``"auto"``, ``"fp32"``, ``"bf16"``, or None for the precision of the training.
        trained: precision of the training.
        device: of the model.

    Raises:
        ConfigError: for another word.
    """
    if wanted not in (None, "auto", "fp32", "bf16"):
        raise ConfigError(f"precision={wanted}: choose auto, fp32 or bf16")
    possible = multiplies_bf16(device)
    if wanted == "bf16" and not possible:
        log.warning("%s has no bf16: predicting in fp32, in which nothing is lost", device)
    return possible and (wanted or trained) != "fp32"
