"""Backbones and adapters in memory: one bank a backbone, and what was not asked for longest leaves first."""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import dataclass

import torch

from pointadapterx.adapted_model import AdaptedModel
from pointadapterx.build import require_shapes, restore_model
from pointadapterx.engine.bank import AdapterBank
from pointadapterx.models.packing import expect, pack_frozen, packed_bytes, tensor_bytes
from pointadapterx.serving.limits import MEBI, RefusedError
from pointadapterx.serving.metrics import Metrics
from pointadapterx.serving.served import Served

log = logging.getLogger(__name__)


@dataclass
class Resident:
    """An adapter in memory.

    Attributes:
        served: which.
        bank: that it is in; None for full fine-tuning, which is a backbone of its own.
        alone: the model of the latter.
        size: bytes, without a bank's backbone.
    """

    served: Served
    bank: AdapterBank | None
    alone: AdaptedModel | None
    size: int


class Residents:
    """The models; to be used by one thread.

    Args:
        bound: bytes that they may take.
        metrics: are told of loads and evictions.

    Attributes:
        sizes: bytes by key of each adapter in memory; replaced as a whole, so that others may read it.
    """

    def __init__(self, bound: int, metrics: Metrics) -> None:
        self._bound, self._metrics = bound, metrics
        self._residents = OrderedDict[str, Resident]()  # the one asked for longest ago is the first
        self._banks: dict[str, AdapterBank] = {}
        self.sizes: dict[str, int] = {}

    def model(self, served: Served) -> AdaptedModel:
        """The model of an adapter, which computes until another is asked for.

        Raises:
            CheckpointError: if it cannot be loaded.
            RefusedError: if it is larger than the bound.
        """
        resident = self.resident(served)
        if resident.bank is not None:
            return resident.bank.model(served.key)
        assert resident.alone is not None
        return resident.alone

    def resident(self, served: Served) -> Resident:
        """An adapter in memory, loaded where it is not yet; its model is not taken into use.

        Raises:
            CheckpointError, RefusedError: as :meth:`model`.
        """
        found = self._residents.get(served.key)
        if found is None:
            found = self._residents[served.key] = self._loaded(served)
            self._require_bound(found)
            if found.bank is not None:
                self._expect(found.bank)
            self._make_room()
        self._residents.move_to_end(served.key)
        return found

    def drop(self, served: Served) -> None:
        """Frees the memory of an adapter."""
        resident = self._residents.pop(served.key, None)
        if resident is None:
            return
        if resident.bank is not None and len(resident.bank.names) > 1:
            resident.bank.remove(served.key)
            self._expect(resident.bank)
        elif served.group is not None:
            self._banks.pop(served.group)
        resident.bank = resident.alone = None  # the traceback of a refusal still has the resident
        self._tell()

    def _expect(self, bank: AdapterBank) -> None:
        """Packs of a backbone are those for its adapters' precisions."""
        expect(bank.backbone, {one.served.precision for one in self._residents.values() if one.bank is bank})

    @torch.inference_mode(False)  # whoever asks: what such a mode makes cannot be changed outside of it
    def _loaded(self, served: Served) -> Resident:
        info = served.whole_info()
        if served.group is None:
            alone = restore_model(info, served.weights).to(served.device).eval().requires_grad_(False)
            pack_frozen(alone)
            expect(alone, [served.precision])
            return Resident(served, None, alone, tensor_bytes(alone))
        bank = self._banks.get(served.group)
        if bank is None:
            require_shapes(info, info.config)
            bank = AdapterBank({served.key: info}, served.weights).to(served.device)
            self._banks[served.group] = bank
        else:
            bank.add(served.key, info)
        pack_frozen(bank.backbone)
        kind = bank.kind(served.key)
        served.shares = served.key if kind is None else (served.group, kind, served.precision)
        return Resident(served, bank, None, bank.nbytes(served.key))

    @property
    def total(self) -> int:
        """Bytes of all."""
        return sum(bank.nbytes() for bank in self._banks.values()) + sum(one.size for one in self._residents.values())

    def _require_bound(self, wanted: Resident) -> None:
        """Drops an adapter that would not fit even if its backbone had no other, before any other makes room for it."""
        needed = wanted.size
        if wanted.bank is not None:
            packs = packed_bytes(wanted.bank.backbone, wanted.served.precision)
            needed += wanted.bank.nbytes(packed=False) + packs
        if needed <= self._bound:
            return
        self.drop(wanted.served)
        raise RefusedError(
            503,
            f"the adapter {wanted.served.name} takes {needed / MEBI:,.1f} MiB with its backbone, more than the "
            f"{self._bound / MEBI:,.1f} MiB of --memory",
        )

    def _make_room(self) -> None:
        while self.total > self._bound and len(self._residents) > 1:
            oldest = next(one.served for one in self._residents.values())
            self.drop(oldest)
            self._metrics.evictions.inc()
            log.info("evicted the adapter %s", oldest.name)
        self._tell()

    def _tell(self) -> None:
        self.sizes = {key: one.size for key, one in self._residents.items()}
        self._metrics.residents.set(len(self.sizes))
        self._metrics.resident_bytes.set(self.total)
