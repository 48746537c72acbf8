"""Whatever runs the forward pass, the adapter computes the same, and its losses count once."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

import pointadapterx as pax
from pointadapterx.errors import ConfigError
from tests.adapting.models import FAMILIES, Library, answer, head_of, method_of, randomised

pytest.importorskip("transformers")
VIT = next(one for one in FAMILIES if one.title == "transformers ViT")
SWIN = next(one for one in FAMILIES if one.title == "transformers Swin")
POINTS = FAMILIES[-1]
METHODS = {
    "adaptformer_x": {},
    "dapt": {"dropout": 0.0},
    "lora": {},
    "e3va_x": {},
    "vpt": {},
    "stag": {"width": 8},
}
CASES = [
    *[(VIT, name, options) for name, options in METHODS.items()],
    (SWIN, "adaptformer_x", {"prompts": False}),
    (SWIN, "e3va_x", {}),
    (SWIN, "e3va", {"inject_from": 1}),
]
cases = pytest.mark.parametrize(("library", "name", "options"), CASES)


class Step(NamedTuple):
    """A pass forward and back."""

    output: Tensor
    loss: Tensor
    gradients: dict[str, Tensor]


def adapted(library: Library, name: str, options: dict[str, Any], seed: int = 1) -> nn.Module:
    model = randomised(library.make())
    pax.adapt(model, name, train=[head_of(model)], **options)
    randomised(method_of(model), seed)
    return model.train()


def step(model: nn.Module, inputs: Tensor, run: Callable[..., Any] | None = None) -> Step:
    """The auxiliary loss weighs much, so that losing it or counting it twice shows."""
    model.zero_grad()
    output = answer((model if run is None else run)(inputs))
    loss = pax.auxiliary_loss(model)
    (output.square().mean() + 100 * loss).backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    return Step(output.detach(), loss.detach(), found)


def assert_same(one: Step, other: Step) -> None:
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


@cases
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints(library: Library, name: str, options: dict[str, Any], reentrant: bool) -> None:
    inputs = library.inputs()
    wanted = step(adapted(library, name, options), inputs)
    model = adapted(library, name, options)
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    if library is SWIN and (options.get("inject_from") or (name == "e3va_x" and reentrant)):
        with pytest.raises(ConfigError, match="reentrant checkpoint" if name == "e3va_x" else "blocks in checkpoints"):
            step(model, inputs)
        return
    assert_same(step(model, inputs), wanted)
    with torch.no_grad():
        model(library.inputs(seed=1))  # a pass that nobody goes back through
    answer(model(library.inputs(seed=2)))
    assert_same(step(model, inputs), wanted)


def test_two_passes_before_one_backward_pass() -> None:
    """Each pass gets its own gradients back, though their blocks are computed again in turn."""
    sums = []
    for checkpointing in (False, True):
        model = adapted(VIT, "adaptformer_x", {})
        if checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": True})
        total = torch.zeros(())
        for seed, weight in ((1, 1.0), (2, 10.0)):
            total = total + weight * answer(model(VIT.inputs(seed))).square().mean()
            total = total + 100 * weight * pax.auxiliary_loss(model)
        total.backward()
        sums.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(sums[1], sums[0], atol=1e-3, rtol=1e-3)


@cases
def test_copies_pickles_and_threads(library: Library, name: str, options: dict[str, Any]) -> None:
    inputs = library.inputs()
    model = adapted(library, name, options)
    wanted = step(model, inputs)
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    for parameter in model.parameters():
        parameter.data.zero_()
    for copied in copies:
        assert_same(step(copied, inputs), wanted)
    if method_of(model).remembers:
        return  # one pass at a time
    several = [library.inputs(seed) for seed in range(3)]
    alone = [(answer(copies[0](one)), pax.auxiliary_loss(copies[0])) for one in several]
    found: dict[int, tuple[Tensor, Tensor]] = {}

    def work(place: int) -> None:
        for _ in range(3):
            found[place] = answer(copies[0](several[place])), pax.auxiliary_loss(copies[0])

    threads = [threading.Thread(target=work, args=(place,)) for place in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.testing.assert_close([found[place] for place in range(3)], alone)


def test_a_method_that_remembers_runs_in_one_thread_at_a_time() -> None:
    model = adapted(VIT, "stag", {"width": 8})
    first, second = threading.Event(), threading.Event()
    found: list[str] = []

    def wait(module: nn.Module, inputs: Any) -> None:
        if threading.current_thread() is thread:
            first.set()
            second.wait(10)

    def work() -> None:
        try:
            model(VIT.inputs())
        except ConfigError as error:
            found.append(str(error))

    thread = threading.Thread(target=work)
    model.vit.layers[1].mlp.register_forward_pre_hook(wait)
    thread.start()
    first.wait(10)
    wanted = model(VIT.inputs()).logits
    second.set()
    thread.join()
    assert "give each thread a copy of the model" in found[0]
    assert torch.equal(model(VIT.inputs()).logits, wanted)


def test_a_copy_after_an_interrupted_pass() -> None:
    model = adapted(VIT, "stag", {"width": 8})
    wanted = step(model, VIT.inputs())
    handle = model.vit.layers[2].mlp.register_forward_pre_hook(lambda module, inputs: inputs[0].view(-1, 7))
    with pytest.raises(RuntimeError, match="shape"):
        model(VIT.inputs())
    handle.remove()
    assert_same(step(copy.deepcopy(model), VIT.inputs()), wanted)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adaptformer_x", pytest.param("e3va_x", marks=pytest.mark.exhaustive)])
def test_compiled(name: str) -> None:
    torch._dynamo.reset()
    model, inputs = adapted(VIT, name, {}), VIT.inputs()
    wanted = step(model, inputs)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert_same(step(model, inputs, compiled), wanted)


def test_autocast_and_half_precision() -> None:
    model = adapted(VIT, "adaptformer_x", {})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.isfinite(step(model, VIT.inputs()).output).all()
    half = randomised(VIT.make()).to(torch.bfloat16)
    pax.adapt(half, "lora", train=["classifier"])
    assert answer(half(VIT.inputs().to(torch.bfloat16))).dtype == torch.bfloat16
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}


def _work(rank: int, file: str, queue: Any) -> None:
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    model = adapted(POINTS, "adaptformer_x", {"prompts": False})
    parallel = nn.parallel.DistributedDataParallel(model)
    for _ in range(2):  # a parameter without a gradient would stop the second
        found = step(model, POINTS.inputs()[rank : rank + 1], parallel)
    queue.put((rank, {name: value.numpy() for name, value in found.gradients.items()}))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.distributed
@pytest.mark.slow
def test_two_processes(tmp_path: Any) -> None:
    context = mp.get_context("spawn")
    queue = context.SimpleQueue()
    workers = [context.Process(target=_work, args=(rank, str(tmp_path / "meeting"), queue)) for rank in range(2)]
    for worker in workers:
        worker.start()
    found = dict(queue.get() for _ in workers)
    for worker in workers:
        worker.join()
    single = [step(adapted(POINTS, "adaptformer_x", {"prompts": False}), POINTS.inputs()[n : n + 1]) for n in range(2)]
    for name, value in found[0].items():
        mean = (single[0].gradients[name] + single[1].gradients[name]) / 2
        torch.testing.assert_close(torch.from_numpy(value), mean, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(found[1][name], value)


def test_frozen_statistics_and_ownership() -> None:
    model = randomised(POINTS.make())
    model.encoder = nn.Sequential(model.encoder, nn.Flatten(0, 1), nn.BatchNorm1d(24), nn.Unflatten(0, (2, 16)))
    names = [name for name, _ in model.named_parameters()]
    assert pax.adapt(model, "lora", train=["cls_head_finetune"]) is model
    assert names == [name for name, _ in model.named_parameters()][: len(names)]
    before = copy.deepcopy(model.encoder[2].running_mean)
    model.train()(POINTS.inputs())
    torch.testing.assert_close(model.encoder[2].running_mean, before)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(name.startswith(("pointadapterx.", "cls_head_finetune.")) for name in trained)
    model = randomised(POINTS.make())
    model.encoder = nn.Sequential(model.encoder, nn.Flatten(0, 1), nn.BatchNorm1d(24), nn.Unflatten(0, (2, 16)))
    pax.adapt(model, "lora")
    model.train()(POINTS.inputs())
    pax.adapt(model, "lora", train=["encoder.2"], name="second")
    model(POINTS.inputs())
    assert not torch.equal(model.encoder[2].running_mean, before)


def test_a_highway_keeps_nothing_of_the_blocks() -> None:
    """No activation of a frozen block is saved for the backward pass, but what the adapters read."""
    saved = {}
    for name in ("adapter", "e3va"):
        model, total = adapted(VIT, name, {"rank": 1}), 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            answer(model(VIT.inputs()))
        saved[name] = total
    assert saved["e3va"] < saved["adapter"] / 3
