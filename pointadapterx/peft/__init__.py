"""Adaptation methods. Adding one: a file with a :class:`~pointadapterx.peft.base.Method`, and a line here."""

from pointadapterx.peft import dapt, dapt_x, full, linear
from pointadapterx.peft.base import METHODS, Method

__all__ = ["METHODS", "Method", "dapt", "dapt_x", "full", "linear"]
