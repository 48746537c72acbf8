"""Adaptation methods. To add one, write a file with a :class:`~pointadapterx.peft.base.Method`, and import it here."""

from pointadapterx.peft import (
    adapter,
    adapter_x,
    adaptformer,
    adaptformer_x,
    bitfit,
    dapt,
    dapt_x,
    e3va,
    e3va_x,
    full,
    idpt,
    linear,
    lora,
    noah,
    ssf,
    stag,
    vpt,
)
from pointadapterx.peft.base import METHODS, Method

__all__ = [
    "METHODS",
    "Method",
    "adapter",
    "adapter_x",
    "adaptformer",
    "adaptformer_x",
    "bitfit",
    "dapt",
    "dapt_x",
    "e3va",
    "e3va_x",
    "full",
    "idpt",
    "linear",
    "lora",
    "noah",
    "ssf",
    "stag",
    "vpt",
]
