"""The folder of a run belongs to one training at a time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from pointadapterx.errors import InUseError, PointAdapterXError
from pointadapterx.locks import alone, holder, is_held
from pointadapterx.run_folder import LOCK_FILE

PATIENCE = 10.0  # seconds for a shared file system to show what another host has written


@contextmanager
def claimed(
    folder: Path, accelerator: Accelerator, way_out: str, check: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Has a run's folder, which is made, alone; the main process locks it for all of them.

    Args:
        folder: of the run.
        accelerator: says which process is the main one.
        way_out: for the message, where another process has it.
        check: what else the main process makes sure of once it has the folder.

    Raises:
        InUseError: on every process, if another training has it.
        PointAdapterXError: if it cannot be written, a process does not see it, or of ``check``.
    """
    problem: list[PointAdapterXError | None] = [None]
    with ExitStack() as stack:
        if accelerator.is_main_process:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(alone(folder / LOCK_FILE, folder, way_out))
                check()
            except OSError as error:
                problem[0] = PointAdapterXError(f"{folder}: cannot be created ({error.strerror}); {way_out}")
            except PointAdapterXError as error:
                problem[0] = error
        broadcast_object_list(problem)
        if problem[0] is not None:
            raise problem[0]
        _require_shared(folder, accelerator)
        yield


def _require_shared(folder: Path, accelerator: Accelerator) -> None:
    """Makes sure that all processes see the folder: what one has written, all read at the end.

    Raises:
        PointAdapterXError: on every process, if one does not.
    """
    if accelerator.num_processes == 1:
        return
    end = time.monotonic() + PATIENCE
    while not (seen := (folder / LOCK_FILE).exists()) and time.monotonic() < end:
        time.sleep(0.1)
        with suppress(OSError):
            os.listdir(folder.parent)  # makes NFS look again for a folder that it did not find
    blind = [rank for rank, one in enumerate(gather_object([seen])) if not one]
    if blind:
        raise PointAdapterXError(
            f"{folder}: process {blind[0]} of {accelerator.num_processes} does not see this folder of process 0; "
            "choose one that all hosts share"
        )


def refuse_if_claimed(folder: Path, way_out: str) -> None:
    """Says at once that a folder is in use, before anything is read or built for it.

    Raises:
        InUseError: if it is.
    """
    if is_held(folder / LOCK_FILE):
        raise InUseError(f"{folder}: is in use by {holder(folder / LOCK_FILE)}; {way_out}")
