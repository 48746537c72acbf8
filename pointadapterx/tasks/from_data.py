"""What a config leaves to the data: read from their files, or one line that says why not."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from pointadapterx.datasets.options import DataConfig
from pointadapterx.errors import ConfigError, DataError, reason_of

T = TypeVar("T")


def read_of(data: DataConfig, read: Callable[[], T], key: str, form: str) -> tuple[T | None, list[tuple[str, str]]]:
    """What the files say, and (dotted key, message) if they cannot be read.

    Args:
        data: the section.
        read: returns what the files say.
        key: of the config, dotted, which has it where the data need not be read.
        form: of its value, for the message.
    """
    try:
        return read(), []
    except (ConfigError, DataError) as error:
        said = str(error)
    except OSError as error:
        said = f"{data.root}: {reason_of(error)}"
    return None, [("data.root", f"{said}; where there are no data, as for count, give {key}={form}")]
