"""Choice of precision: bf16 if the hardware supports it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from accelerate import Accelerator


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
