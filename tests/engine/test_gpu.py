"""Every method stays on the device of its inputs, and where there is a GPU it computes there what it does on a CPU.

A ``meta`` device has shapes without values: an operation on it and on a tensor that was left on the CPU fails.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pointadapterx import Predictor, build_model, ops
from pointadapterx.adapted_model import AdaptedModel
from pointadapterx.commands.main import main
from pointadapterx.engine.bank import AdapterBank
from pointadapterx.peft import METHODS
from pointadapterx.peft.parts import mixture
from tests.conftest import randomise, small_config
from tests.engine.test_bank import batch, three
from tests.mechanisms import methods_on

GPU = "cuda"
KINDS = ("point_mae", "vit")


def step(model: AdaptedModel, inputs: Tensor) -> Tensor:
    """Logits of a forward pass, and gradients of the trainable parameters."""
    output = model(inputs)
    labels = torch.zeros(len(inputs), dtype=torch.int64, device=inputs.device)
    loss = F.cross_entropy(output.logits, labels)
    (loss if output.auxiliary_loss is None else loss + output.auxiliary_loss).backward()
    return output.logits.detach()


@pytest.mark.parametrize(("name", "kind"), methods_on(KINDS))
def test_every_method_stays_on_its_device(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In training and evaluation, forward and back.

    It looks at no value but the sizes of groups of mixtures, and at no state of random numbers: a CUDA graph cannot.
    """
    real = torch.autocast
    monkeypatch.setattr(
        torch, "autocast", lambda kind, *a, **k: nullcontext() if kind == "meta" else real(kind, *a, **k)
    )
    monkeypatch.setattr(mixture, "group_sizes", lambda chosen, count: [len(chosen), *[0] * (count - 1)])
    model = build_model(small_config(name, kind=kind), restored=True).to("meta")
    inputs = batch(kind).to("meta")
    monkeypatch.setattr(torch, "get_rng_state", lambda: pytest.fail("reads the state of random numbers"))
    with ops.unchecked():
        for training in (True, False):
            assert step(model.train(training), inputs).device.type == "meta"


if torch.cuda.is_available():  # tests for a device that is not there are not collected

    @pytest.mark.cuda
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("name", METHODS)
    def test_every_method_computes_the_same_on_a_gpu(name: str, kind: str) -> None:
        """In float64, in which the order of sums does not matter."""
        model = randomise(build_model(small_config(name, kind=kind), restored=True)).double().eval()
        there = copy.deepcopy(model).to(GPU)
        inputs = batch(kind).double()
        torch.testing.assert_close(step(there, inputs.to(GPU)).cpu(), step(model, inputs))
        moved = dict(there.named_parameters())
        for key, parameter in model.named_parameters():
            if parameter.grad is not None:
                torch.testing.assert_close(
                    moved[key].grad.cpu(), parameter.grad, msg=lambda text, key=key: f"{key}: {text}"
                )

    @pytest.mark.cuda
    @pytest.mark.parametrize("more", ["precision=fp32", "precision=bf16", "precision=fp16", "cached_views=2"])
    @pytest.mark.parametrize("name", ["dapt_x", "e3va_x", "full"])
    def test_training_and_prediction_on_a_gpu(
        name: str, more: str, config_file: Callable[..., Path], tmp_path: Path
    ) -> None:
        if name == "full" and more.startswith("cached"):
            pytest.skip("full fine-tuning has no frozen layers to keep")
        run, inputs = tmp_path / "run", batch("point_mae")
        common = ["--config", str(config_file(name)), "--output", str(run), f"train.device={GPU}", f"train.{more}"]
        assert main(["train", *common]) == 0
        here, there = (Predictor(run, device=device, precision="fp32") for device in ("cpu", GPU))
        torch.testing.assert_close(there.logits(inputs.to(GPU)), here.logits(inputs), atol=1e-3, rtol=1e-3)

    @pytest.mark.cuda
    def test_a_bank_on_a_gpu(tmp_path: Path) -> None:
        made, inputs = three(tmp_path, "point_mae"), batch("point_mae")
        bank = AdapterBank({name: path for name, (path, _) in made.items()}).to(GPU)
        for name in made:
            expected = made[name][1](inputs).logits
            torch.testing.assert_close(bank(inputs.to(GPU), name).cpu(), expected, atol=1e-4, rtol=1e-4)
