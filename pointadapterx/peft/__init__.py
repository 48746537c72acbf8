"""Adaptation methods. Adding one: a file with a :class:`~pointadapterx.peft.base.Method`, and a line here."""

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
    "vpt",
]
