"""Adapters in repositories of the Hugging Face hub.

A repository holds the model card ``README.md``, ``adapter.safetensors``, ``config.yaml``, and ``metrics.json`` where
there is one.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from pointadapterx.checkpoints.adapter_file import AdapterInfo, read_adapter
from pointadapterx.checkpoints.shipped import without_locations
from pointadapterx.config import dump_config
from pointadapterx.errors import CheckpointError, HubError
from pointadapterx.files import new_folder, write_text
from pointadapterx.hub import Address, NotFound, Unreachable, commit_of, fetch, is_cached, upload
from pointadapterx.model_card import write_card
from pointadapterx.run_folder import ADAPTER_FILE, CONFIG_FILE, METRICS_FILE

log = logging.getLogger(__name__)

CARD_FILE = "README.md"
LICENSE = re.compile(r"[a-z0-9.-]+")


def push_adapter(
    adapter: str | Path,
    repository: str,
    *,
    folder: str | Path | None = None,
    private: bool = False,
    license: str | None = None,
) -> str:
    """Sends an adapter with its model card to the hub.

    Args:
        adapter: what :func:`~pointadapterx.checkpoints.adapter_file.read_adapter` takes. In the folder of a run its
            metrics go along.
        repository: ``owner/repository``, optionally ``@branch``; made where it does not exist.
        folder: writes the files there instead, and sends nothing; must not exist, or be empty.
        private: whether a new repository is.
        license: identifier of the hub for the card, such as ``cc-by-4.0``.

    Returns:
        Where it is: the commit's address on the web, or the folder.

    Raises:
        CheckpointError: if the adapter cannot be read, or the folder not be written.
        HubError: for a licence that is no identifier, without a token, or if the hub refuses it.
    """
    address = Address.parse(repository, file=False)
    if license is not None and LICENSE.fullmatch(license) is None:
        raise HubError(
            f"license {license!r}: is not an identifier of the hub; choose one such as cc-by-4.0 or apache-2.0"
        )
    info = read_adapter(adapter)
    if folder is not None:
        with new_folder(Path(folder)) as part:
            _write(info, address, license, part)
        return str(folder)
    with tempfile.TemporaryDirectory() as part:
        _write(info, address, license, Path(part))
        # Otherwise a file of the adapter that was pushed before would remain next to this one.
        without = [name for name in (METRICS_FILE,) if not (Path(part) / name).exists()]
        message = f"Adapter of {info.method.name}"
        return upload(Path(part), address, private=private, message=message, without=without)


def _write(info: AdapterInfo, address: Address, license: str | None, folder: Path) -> None:
    report = _read_report(info)
    shutil.copyfile(info.path, folder / ADAPTER_FILE)
    write_text(folder / CONFIG_FILE, dump_config(without_locations(info.config)))
    if report is not None:
        shutil.copyfile(info.path.with_name(METRICS_FILE), folder / METRICS_FILE)
    try:
        card = write_card(info, report, address, license)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if report is None:
            raise
        path = info.path.with_name(METRICS_FILE)
        raise CheckpointError(f"{path}: is damaged ({error!r}); restore it, or move the adapter elsewhere") from error
    write_text(folder / CARD_FILE, card)


def _read_report(info: AdapterInfo) -> dict[str, Any] | None:
    """``metrics.json`` of the run that left an adapter, if it lies beside."""
    path = info.path.with_name(METRICS_FILE)
    if info.path.name != ADAPTER_FILE or not path.is_file():
        return None
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        missing = {"method", "protocol", "regime", "data", "test", "parameters", "seed", "hardware"} - set(dict(report))
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); restore it, or move the adapter elsewhere") from None
    if missing:
        raise CheckpointError(
            f"{path}: has no {', '.join(sorted(missing))}, so it is not of an adapter's run; move the adapter elsewhere"
        )
    stored = info.config.data.model_dump()
    data = report["data"] if isinstance(report["data"], dict) else {}
    own: dict[str, Any] = {"method": info.method.name, "seed": info.config.train.seed}
    own |= {key: info.metrics[key] for key in ("protocol", "regime") if key in info.metrics}
    for name, theirs, mine in (
        *((key, report[key], value) for key, value in own.items()),
        *((f"data.{key}", data.get(key), stored[key]) for key in ("name", "variant", "few_shot", "train_size")),
    ):
        if theirs != mine:
            raise CheckpointError(
                f"{path}: is of another run, its {name} is {theirs!r} and the adapter's {mine!r}; move the adapter "
                "elsewhere"
            )
    return report


def pull_adapter(repository: str, folder: str | Path | None = None) -> AdapterInfo:
    """Fetches an adapter with what lies beside it, all of one commit.

    Without the hub, an adapter that is in its cache is taken from there, with what else is.

    Args:
        repository: ``owner/repository``, optionally ``@revision``.
        folder: for its files, by default named like the repository; must not exist, or be empty.

    Raises:
        HubError: if the repository cannot be read.
        CheckpointError: if its adapter is damaged, or the folder cannot be written.
    """
    address = Address.parse(repository, file=False)
    folder = Path(folder or address.name)
    with new_folder(folder) as part:
        place = address._replace(file=ADAPTER_FILE)
        cached = is_cached(place)
        path = fetch(place)
        shutil.copyfile(path, part / ADAPTER_FILE)
        commit = commit_of(path) or address.revision
        for name in (CARD_FILE, CONFIG_FILE, METRICS_FILE):
            try:
                shutil.copyfile(fetch(address._replace(file=name, revision=commit)), part / name)
            except NotFound:
                pass
            except Unreachable:
                if not cached:
                    raise
                log.warning("%s: %s is not in the cache, and the hub does not answer; left out", address, name)
        try:
            read_adapter(part)
        except CheckpointError as error:
            raise CheckpointError(str(error).replace(str(part / ADAPTER_FILE), str(place))) from None
    return read_adapter(folder)
