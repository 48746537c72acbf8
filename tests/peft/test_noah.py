"""NOAH: what a step trains, what an architecture costs, and the search for the best."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml

from pointadapterx.adapted_model import AdaptedModel
from pointadapterx.build import build_model, build_splits
from pointadapterx.checkpoints.adapter_file import load_adapter
from pointadapterx.commands.main import main
from pointadapterx.config import dump_config, read_config
from pointadapterx.datasets import build_inputs
from pointadapterx.engine.devices import make_accelerator
from pointadapterx.engine.evaluator import predict
from pointadapterx.errors import ConfigError
from pointadapterx.jobs import noah_search as search
from pointadapterx.jobs.noah_search import evolve
from pointadapterx.peft.noah import COMPONENTS, Architecture, Noah, SearchConfig, SearchSpace
from pointadapterx.run_folder import ARCHITECTURE_FILE, SEARCH_FILE
from tests.conftest import randomise, small_config

SMALL: Architecture = {"prompts": [2, 0], "lora": [0, 3], "adapter": [4, 1]}
SPACE = SearchSpace(dims=[8] * 4, widths=[1, 2, 4], depths=[1, 2, 4])


def method_of(model: AdaptedModel) -> Noah:
    assert isinstance(model.method, Noah)
    return model.method


@pytest.mark.parametrize("kind", ["point_mae", "vit"])
def test_an_architecture_of_the_supernet_computes_what_one_alone_does(kind: str) -> None:
    shape = (6, 128, 3) if kind == "point_mae" else (6, 3, 16, 16)
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    supernet = randomise(build_model(small_config("noah", kind, method={"widths": [4]}))).eval()
    alone = build_model(small_config("noah", kind, method={"architecture": SMALL})).eval()
    whole, state = supernet.state_dict(), alone.state_dict()
    for name, tensor in state.items():  # the first rows and columns of the shared weights
        state[name] = whole[name][tuple(slice(size) for size in tensor.shape)] if tensor.ndim else whole[name]
    alone.load_state_dict(state)
    method_of(supernet).use(SMALL)
    torch.testing.assert_close(supernet(inputs).logits, alone(inputs).logits)


def test_a_step_trains_the_drawn_slices_and_no_others(points: torch.Tensor) -> None:
    model = randomise(build_model(small_config("noah", method={"widths": [1, 3]})))
    method = method_of(model)
    seen = set()
    for seed in range(6):
        torch.manual_seed(seed)
        model.zero_grad()
        F.cross_entropy(model.train()(points).logits, torch.arange(6)).backward()
        for index in range(2):
            adapter, prompts = method.adapters[str(index)], method.prompts[str(index)]
            rank, count = adapter.active, method.active_prompts[index]
            seen.add((index, rank, count))
            assert adapter.down.weight.grad[:rank].abs().sum(dim=1).gt(0).all()
            assert adapter.down.weight.grad[rank:].eq(0).all()
            assert adapter.up.bias.grad.abs().sum().gt(0) == (rank > 0)
            assert prompts.grad[:, :count].abs().sum(dim=-1).gt(0).all()
            assert prompts.grad[:, count:].eq(0).all()
    assert len(seen) > 4
    model.eval()
    assert method.active_prompts == [3, 3]  # in evaluation the largest


def test_parameters_of_an_architecture() -> None:
    model = build_model(small_config("noah", method={"architecture": SMALL}))
    space = method_of(model).space
    assert sum(p.numel() for p in model.method.parameters()) == space.cost(SMALL)
    assert space.cost(SMALL) == 2 * 48 + 3 * 4 * 48 + (2 * 4 * 48 + 4 + 48) + (2 * 48 + 1 + 48)


def test_vit_b_published_size_is_within_the_space() -> None:
    space = SearchSpace.of(Noah.Options(), [768] * 12)
    assert space.depths == [3, 6, 9, 12]
    assert space.cost(space.smallest) < 360_000 < space.cost(space.largest)


def is_of_the_space(architecture: Architecture) -> bool:
    for kind in COMPONENTS:
        widths = [width for width in architecture[kind] if width]
        if architecture[kind] != widths + [0] * (4 - len(widths)):
            return False
        if len(widths) not in SPACE.depths or not set(widths) <= set(SPACE.widths):
            return False
    return True


def test_draws_mutations_and_crossings_stay_in_the_space() -> None:
    source = random.Random(0)
    drawn = [SPACE.draw(source) for _ in range(50)]
    options = SearchConfig(mutation=0.5, depth_mutation=0.5)
    mutated = [SPACE.mutate(one, source, options) for one in drawn]
    crossed = [SPACE.cross(*source.sample(drawn, 2), source) for _ in range(50)]
    assert all(map(is_of_the_space, [*drawn, *mutated, *crossed, SPACE.largest, SPACE.smallest]))
    assert sum(a != b for a, b in zip(drawn, mutated, strict=True)) > 25
    assert [SPACE.mutate(one, source, SearchConfig(mutation=0, depth_mutation=0)) for one in drawn] == drawn


def test_evolution_beats_as_many_random_draws() -> None:
    """On a made-up score with many local choices; and it keeps to the budget, asks once, and is repeatable."""
    target = SPACE.draw(random.Random(9))

    def score(architecture: Architecture) -> float:
        return -float(
            sum(abs(a - b) for kind in COMPONENTS for a, b in zip(architecture[kind], target[kind], strict=True))
        )

    asked: list[Architecture] = []

    def judge(architecture: Architecture) -> float:
        asked.append(architecture)
        return score(architecture)

    budget = SPACE.cost(target)
    options = SearchConfig(budget=budget, population=20, generations=8, parents=5)
    generations = list(evolve(SPACE, options, judge, seed=0))
    best = generations[-1][0]
    assert len(generations) == 8
    assert len({str(one) for one in asked}) == len(asked) == len(generations[-1])
    assert all(SPACE.cost(one) <= budget for one in asked)
    source = random.Random(0)
    random_best = max(score(one) for one in (SPACE.draw(source) for _ in range(8 * 20)) if SPACE.cost(one) <= budget)
    assert best.score > random_best
    assert list(evolve(SPACE, options, score, seed=0))[-1] == generations[-1]


def test_a_tight_budget_leaves_whole_generations() -> None:
    budget = SPACE.cost(SPACE.smallest) + 60
    options = SearchConfig(budget=budget, population=12, generations=1)
    ((*found,),) = evolve(SPACE, options, lambda _: 0.0, seed=0)
    assert len(found) == 12
    assert all(one.parameters <= budget for one in found)


def test_of_equal_scores_the_smallest_wins() -> None:
    generations = list(evolve(SPACE, SearchConfig(population=5, generations=2), lambda _: 50.0, seed=0))
    assert generations[-1][0].architecture == SPACE.smallest


@pytest.fixture(scope="module")
def supernet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a trained supernet on digits."""
    folder = tmp_path_factory.mktemp("noah")
    search = {"budget": 3000, "population": 4, "generations": 2, "parents": 2}
    config = small_config("noah", "vit", method={"search": search}, train={"epochs": 3, "batch_size": 32, "lr": 5e-3})
    (folder / "noah.yaml").write_text(dump_config(config), encoding="utf-8")
    assert main(["--config", str(folder / "noah.yaml"), "--output", str(folder / "run")]) == 0
    return folder / "run"


def test_search_and_train_what_it_found(supernet: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["search", str(supernet)]) == 0
    first = (supernet / ARCHITECTURE_FILE).read_text(encoding="utf-8")
    config = read_config(supernet / ARCHITECTURE_FILE)
    model = build_model(config)
    assert sum(p.numel() for p in model.method.parameters()) <= 3000
    assert yaml.safe_load(first)["method"]["architecture"] == config.method.architecture.model_dump()
    arguments = ["--config", str(supernet / ARCHITECTURE_FILE), "--output", str(supernet / "found")]
    assert main([*arguments, "eval.protocol=last"]) == 0

    scores = (supernet / SEARCH_FILE).read_bytes()
    known = json.loads(scores)["scores"]
    assert len(set(known.values())) > 1
    train, validation, _ = build_splits(read_config(supernet / "config.yaml"))
    assert validation is not None
    inputs = build_inputs(config)
    images = inputs.for_test(inputs.source(validation)(torch.arange(len(validation))))
    for text, score in known.items():  # each is that of the architecture, and not of the largest
        whole = build_model(read_config(supernet / "config.yaml"))
        load_adapter(whole, supernet / "adapter.safetensors")
        whole.eval()
        method_of(whole).use(json.loads(text))
        search.settle_head(whole, train, config, make_accelerator("fp32"))
        with torch.no_grad():
            logits = whole(images).logits
        assert 100 * (logits.argmax(dim=1) == validation.labels).float().mean().item() == pytest.approx(score)
    (supernet / ARCHITECTURE_FILE).unlink()
    dropped, *kept = known.items()  # a search that was stopped goes on, and evaluates what is missing alone
    content = {**json.loads(scores), "scores": dict(kept)}
    (supernet / SEARCH_FILE).write_text(json.dumps(content), encoding="utf-8")
    evaluated = []
    monkeypatch.setattr(search, "predict", lambda *given: evaluated.append(1) or predict(*given))
    assert main(["search", str(supernet)]) == 0
    assert len(evaluated) == 1
    assert (supernet / ARCHITECTURE_FILE).read_text(encoding="utf-8") == first
    assert json.loads((supernet / SEARCH_FILE).read_text())["scores"] == dict([*kept, dropped])

    assert main(["search", str(supernet / "found")]) == 2


def test_search_within_another_budget(supernet: Path) -> None:
    assert main(["search", str(supernet), "method.search.budget=1500", "method.search.generations=1"]) == 0
    config = read_config(supernet / ARCHITECTURE_FILE)
    assert sum(p.numel() for p in build_model(config).method.parameters()) <= 1500


def test_a_run_that_is_not_finished_is_not_searched(supernet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (supernet / "metrics.json").rename(supernet / "moved.json")
    assert main(["search", str(supernet)]) == 2
    (supernet / "moved.json").rename(supernet / "metrics.json")
    assert "holds no metrics.json; give the folder of a finished run" in capsys.readouterr().err


def test_the_heads_statistics_are_those_of_the_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever architectures were drawn in training."""
    monkeypatch.setattr(search, "SETTLING", 29)  # one more than four batches
    config = small_config("noah")
    train = build_splits(config).train
    model = randomise(build_model(config)).eval()
    accelerator = make_accelerator("fp32")
    found = []
    for mean in (0.0, 5.0):
        norm = next(module for module in model.head.modules() if isinstance(module, torch.nn.BatchNorm1d))
        norm.running_mean.fill_(mean)
        method_of(model).use({"prompts": [1, 0], "lora": [1, 3], "adapter": [3, 0]})
        search.settle_head(model, train, config, accelerator)
        found.append(norm.running_mean.clone())
    method_of(model).use(method_of(model).space.largest)
    search.settle_head(model, train, config, accelerator)
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], norm.running_mean)
    assert not model.training


def test_the_supernet_compiles_in_training(points: torch.Tensor) -> None:
    model = build_model(small_config("noah", method={"widths": [1, 3]})).train()
    compiled = torch.compile(model, backend="eager")
    torch.manual_seed(0)
    wanted = model(points).logits
    torch.manual_seed(0)
    torch.testing.assert_close(compiled(points).logits, wanted)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.lr=1", "a search keeps the run's config"),
        ("method.search.budget=10", "is less than the"),
    ],
)
def test_search_refuses(supernet: Path, override: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", str(supernet), override]) == 2
    assert message in capsys.readouterr().err


def test_search_needs_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", str(tmp_path)]) == 2
    assert "holds no config.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["{", "[]", '{"of": "", "scores": {"x": "y"}}'])
def test_search_of_damaged_scores(content: str, supernet: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (supernet / SEARCH_FILE).write_text(content, encoding="utf-8")
    assert main(["search", str(supernet)]) == 2
    assert "delete it to search from the start" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"depths": [3]}, r"method.depths: \[3\] exceed the 2 blocks"),
        ({"search": {"budget": 5}}, "method.search.budget: 5 is less than"),
        ({"architecture": {**SMALL, "lora": [1]}}, "method.architecture.lora: 1 numbers for 2 blocks"),
        ({"architecture": {kind: [0, 0] for kind in COMPONENTS}}, "method.architecture: has nothing"),
        ({"search": {"populatoin": 5}}, "method.search.populatoin: unknown key"),
    ],
)
def test_impossible_options(method: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        small_config("noah", method=method)
