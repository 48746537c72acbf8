"""A class for every pixel: training, tests, votes, predictions, pictures and files of the task, on our own ViT."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pointadapterx import jobs
from pointadapterx.adapted_model import AdaptedModel, ModelOutput
from pointadapterx.build import build_model, build_splits
from pointadapterx.checkpoints.adapter_file import load_adapter, read_adapter, save_adapter
from pointadapterx.commands.main import main
from pointadapterx.config import Config
from pointadapterx.counting import count_model
from pointadapterx.datasets import MaskedImages
from pointadapterx.datasets.base import Targets
from pointadapterx.datasets.inputs import Batch
from pointadapterx.engine.devices import make_accelerator
from pointadapterx.engine.evaluator import evaluate, vote
from pointadapterx.errors import CheckpointError, ConfigError
from pointadapterx.export import export_adapter
from pointadapterx.models.features import FeatureInfo, StageInfo
from pointadapterx.palette import label_colours
from pointadapterx.peft import METHODS
from pointadapterx.report.document import write_report
from pointadapterx.run_folder import SAMPLE_RECORDS_FILE
from pointadapterx.study.samples import read_samples
from pointadapterx.tasks import ImageSegmentation, build_task
from pointadapterx.tasks.pixel_answers import PixelLabels, likeliest
from pointadapterx.tasks.pixel_losses import Pixels
from pointadapterx.tasks.upernet import UPerNet, levels_of
from tests.conftest import randomise, small_config
from tests.masks import CLASSES, save, scene, segmentation_config, write_mask_folder
from tests.mechanisms import exhaustive
from tests.resuming import assert_resumes_bit_identical

UPERNET = {"head": "upernet", "channels": 8, "auxiliary": 0.4}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mask_folder(tmp_path_factory.mktemp("masks"), {"train": 24, "test": 4})


@pytest.fixture(scope="module")
def config(root: Path) -> Config:
    """The light head, which learns within seconds."""
    return segmentation_config(
        root,
        data={"augment": ["flip", {"scale_crop": {"low": 0.8, "high": 1.2}}], "resize": "letterbox"},
        train={"epochs": 12, "batch_size": 4, "lr": 2e-2},
    )


@pytest.fixture(scope="module")
def run(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return jobs.train(config, "masks", tmp_path_factory.mktemp("run") / "run", make_accelerator("fp32"))


def test_it_learns_and_is_stored(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    pixels = [entry["pixels"] for entry in metrics["test"]["per_class"].values()]
    assert metrics["test"]["miou"] > 1.2 * 100 * pixels[0] / sum(pixels) / 3  # of taking all for the ground
    assert set(metrics["test"]["per_class"]) == set(CLASSES)
    assert read_adapter(run).classes == list(CLASSES)
    assert read_adapter(run).config.task.num_classes == 3


def test_scores_are_those_of_the_records(run: Path) -> None:
    rows, _ = read_samples(run / SAMPLE_RECORDS_FILE, None)
    test = json.loads((run / "metrics.json").read_text())["test"]
    scores = ImageSegmentation.scores_of(torch.tensor(rows).sum(dim=0))
    assert {key: float(value) for key, value in scores.items()} == pytest.approx({k: test[k] for k in scores})


def test_the_table_of_a_test_has_classes_and_a_header(config: Config, run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())["test"]
    table = build_task(config, read_adapter(run).facts).metrics_table(metrics, "test")
    assert [column.header for column in table.columns] == ["class", "labelled pixels", "IoU %", "accuracy %"]
    assert list(table.columns[0].cells)[: len(CLASSES)] == list(CLASSES)
    assert table.row_count == len(CLASSES) + len(ImageSegmentation.scores)
    with (run / "predictions.csv").open(newline="") as file:
        assert {row["protocol"].partition(":")[0] for row in csv.DictReader(file)} == {config.eval.protocol}


def test_scores_by_hand(config: Config) -> None:
    """Unlabelled pixels count nowhere, and a class that is neither there nor found is left out."""
    task = build_task(config)
    truth = torch.tensor([[[0, 0], [1, 255]]])
    found = torch.tensor([[[0, 1], [1, 2]]])
    outputs = nn.functional.one_hot(found, 3).permute(0, 3, 1, 2).float()
    rows = task.rows(outputs, Batch(None, Targets(pixels=truth)))
    assert rows.tolist() == [[1, 1, 0, 2, 1, 0, 1, 2, 0]]
    scores = {key: float(value) for key, value in task.scores_of(rows.sum(dim=0)).items()}
    assert scores == pytest.approx({"miou": 50.0, "macc": 75.0, "aacc": 200 / 3})
    broken = task.rows(outputs.masked_fill(outputs > 0, torch.nan), Batch(None, Targets(pixels=truth)))
    assert broken.isnan().all()
    batch = Batch(None, Targets(pixels=torch.cat([truth, torch.full_like(truth, 255)])))

    def model(_: None, pixels: Pixels) -> ModelOutput:
        return ModelOutput(pixels.losses([outputs.repeat(2, 1, 1, 1)]), None)

    _, sums = task.loss(model, batch, torch.Generator())  # type: ignore[arg-type]
    means = {key: value.double() for key, value in sums.items()}
    assert task.progress(means)["train_accuracy"] == pytest.approx(200 / 3)


def test_a_vote_is_told_where_its_copies_lie(config: Config, run: Path) -> None:
    """A vote of one copy is the test itself; copies of other frames agree with it more or less."""
    info = read_adapter(run)
    task, model, accelerator = build_task(config, info.facts), build_model(config), make_accelerator("fp32")
    load_adapter(model, info)
    test = build_splits(config).test
    assert test is not None
    plain = evaluate(model, test, task, accelerator).rows
    assert torch.equal(vote(model, test, task, accelerator, copies=1, seed=0).rows, plain)
    several = vote(model, test, task, accelerator, copies=4, seed=0).rows
    assert not torch.equal(several, plain)
    assert float(task.scores_of(several.sum(dim=0))["miou"]) > 0.8 * float(task.scores_of(plain.sum(dim=0))["miou"])
    report = jobs.test(run, [], 2, False, run / "tested")
    assert len(report["vote"]["miou"]["votes"]) == 3


def test_parts_of_a_step_add_up(config: Config) -> None:
    """Whatever is unlabelled where."""
    task = build_task(config)
    assert isinstance(task, ImageSegmentation)
    logits, truth = torch.randn(4, 3, 8, 8), torch.randint(0, 3, (4, 8, 8))
    truth[1, :7] = 255
    whole = task.criterion(logits, truth)
    assert torch.allclose(whole, (task.criterion(logits[:2], truth[:2]) + task.criterion(logits[2:], truth[2:])) / 2)


def test_a_loss_is_that_of_enlarged_logits(config: Config) -> None:
    """Picture by picture, with weights of classes, and with an auxiliary head of another size."""
    task = build_task(config)
    assert isinstance(task, ImageSegmentation)
    task._weights = torch.tensor([0.5, 1.0, 2.0])
    parts = [torch.randn(3, 3, side, side, requires_grad=True) for side in (4, 2)]
    truth = torch.randint(0, 3, (3, 16, 16))
    truth[0, :9] = 255
    large = [nn.functional.interpolate(one, (16, 16), mode="bilinear") for one in parts]
    expected = [task.criterion(one, truth) for one in large]
    *losses, right = Pixels(truth, task.criterion).losses(parts)
    assert torch.allclose(torch.stack(losses), torch.stack(expected))
    assert int(right) == int((large[0].argmax(dim=1) == truth).sum())
    grads = [torch.autograd.grad(sum(found), parts) for found in (losses, expected)]
    assert all(torch.allclose(one, other, atol=1e-7) for one, other in zip(*grads, strict=True))


def test_classes_weigh_as_often_as_they_are_rare(root: Path) -> None:
    config = segmentation_config(root, train={"class_weights": "balanced"})
    task, train = build_task(config), build_splits(config).train
    assert isinstance(task, ImageSegmentation)
    assert isinstance(train, MaskedImages)
    task.learn(train)
    counts = train.count_pixels().double()
    assert task._weights is not None
    assert torch.allclose(task._weights.double() * counts, (counts.sum() / 3).expand(3))


def test_predictions_are_as_large_as_the_pictures(run: Path, tmp_path: Path) -> None:
    rng, files = np.random.default_rng(5), []
    for number, size in enumerate([(20, 28), (33, 17)]):
        files.append(save(scene(rng, size)[0], tmp_path / f"{number}.png"))
    files.append(tmp_path / "broken.jpg")
    files[-1].write_bytes(b"no")
    for kind in ("png", "npz"):
        command = ["predict", str(run), *map(str, files), "--each", str(tmp_path / "each"), "--kind", kind]
        assert main([*command, "--output", str(tmp_path / "found.csv")]) == 3
    with Image.open(tmp_path / "each" / "1.png") as image:
        assert (image.mode, image.size) == ("P", (17, 33))
        assert json.loads(image.info["classes"]) == list(CLASSES)
        assert image.getpalette()[:9] == label_colours(3).ravel().tolist()
        labels = np.array(image)
    both = np.load(tmp_path / "each" / "1.npz")
    assert np.array_equal(both["labels"], labels)
    assert (both["confidence"] >= 1 / 3 - 1e-3).all()
    first, _, third = csv.DictReader((tmp_path / "found.csv").open())
    assert (first["class_1"], first["error"]) == ("ground", "")
    assert float(first["share_1"]) == pytest.approx(
        (np.array(Image.open(tmp_path / "each" / "0.png")) == 0).mean(), abs=1e-5
    )
    assert "not a readable image" in third["error"]


@pytest.mark.parametrize("kind", [".png", ".npz"])
def test_a_mask_is_written_whole_or_not_at_all(kind: str, tmp_path: Path) -> None:
    """And its own name is in the message."""
    answer = PixelLabels("a", "b", [], np.zeros((4, 4), np.uint8), np.ones((4, 4), np.float16), ["x", "y"])
    (tmp_path / "a").mkdir()
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(tmp_path / 'a'))}: could not be written"):
        answer.write(tmp_path / "a", kind)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_large_pictures_are_enlarged_a_few_classes_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(7, 4, 4, generator=torch.Generator().manual_seed(0))
    at_once = likeliest(logits, (9, 5))
    monkeypatch.setattr("pointadapterx.tasks.pixel_answers.MOST_VALUES", 2 * 45)
    labels, confidence = likeliest(logits, (9, 5))
    assert np.array_equal(labels, at_once[0])
    assert np.allclose(confidence, at_once[1], atol=1e-3)


@pytest.mark.filterwarnings("error:constrained_layout")  # long names of rows leave no place for pictures
def test_report_pictures_card_and_doctor(run: Path, tmp_path: Path) -> None:
    page = write_report([run], output=tmp_path / "report.html").read_text()
    for words in ("mean IoU of the classes", "labelled pixels", "Worst samples", "of the pixels shown"):
        assert words in page
    assert main(["visualize", str(run), "--picture", "pixel_labels", "--samples", "1", "--output", str(tmp_path)]) == 0
    assert (tmp_path / "pixel_labels.png").is_file()


@exhaustive
def test_it_is_exported(root: Path, tmp_path: Path) -> None:
    """UPerNet, whose pooling has windows of different sizes; of the backbone other tests export more."""
    config = segmentation_config(root, "linear", task=UPERNET, backbone={"depth": 1})
    model, path = build_model(config), tmp_path / "adapter.safetensors"
    randomise(model, 0)
    save_adapter(model, path, config=config, facts=ImageSegmentation.stores(list(CLASSES)))
    found = export_adapter(path, tmp_path / "model.pt2")
    assert found.metadata["output"]["shape"] == ["batch", 3, 16, 16]
    assert (found.metadata["classes"], found.metadata["resize"]) == (list(CLASSES), "stretch")


def test_costs_are_counted(root: Path) -> None:
    config = segmentation_config(root, task=UPERNET)
    found = count_model(config)
    assert found.costs.forward > 0
    assert found.parameters.components["head"].trainable > 0.2 * found.parameters.full


@pytest.mark.parametrize("head", [UPERNET, {}], ids=["upernet", "light"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method(name: str, head: dict[str, object], root: Path, tmp_path: Path) -> None:
    """Starts as the plain backbone; frozen tensors stay; what is trained gets a gradient; its file is complete."""
    config = segmentation_config(root, name, task=head)
    model, task = build_model(config), build_task(config)
    images, truth = torch.randn(2, 3, 16, 16), torch.randint(0, 3, (2, 16, 16))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    loss, sums = task.loss(model, Batch(images, Targets(pixels=truth)), torch.Generator())
    loss.backward()
    assert sums.keys() == {"loss", "right", "known"}
    trained = {key for key, value in model.named_parameters() if value.requires_grad}
    without = [key for key, value in model.named_parameters() if value.requires_grad and value.grad is None]
    assert not without
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    own = set(model.adapter_state())
    for key, value in model.state_dict().items():
        if key not in trained and key not in own:
            assert torch.equal(value, before[key]), key
    model.eval()
    path = tmp_path / "adapter.safetensors"
    save_adapter(model, path, config=config, facts=ImageSegmentation.stores(list(CLASSES)))
    again = build_model(config).eval()
    load_adapter(again, path)
    with torch.no_grad():
        assert torch.equal(again(images).logits, model(images).logits)
        assert model(images).logits.shape == (2, 3, 16, 16)


def test_stopped_and_resumed_is_bit_identical(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = segmentation_config(
        root, task=UPERNET, data={"augment": ["scale_crop", "shift"]}, train={"epochs": 2}, eval={"protocol": "last"}
    )
    assert_resumes_bit_identical(config, tmp_path, monkeypatch)


def test_batchnorm_needs_two_pictures(root: Path) -> None:
    model = build_model(segmentation_config(root, task=UPERNET))
    with pytest.raises(ValueError, match=r"cannot train on a single picture, .* or set task\.norm=group"):
        model(torch.randn(1, 3, 16, 16))
    assert model.eval()(torch.randn(1, 3, 16, 16)).logits.shape == (1, 3, 16, 16)
    grouped: AdaptedModel = build_model(segmentation_config(root, task={**UPERNET, "norm": "group"}))
    assert grouped(torch.randn(1, 3, 16, 16)).logits.shape == (1, 6, 16, 16)


def test_pooling_is_adaptive_average_pooling() -> None:
    info = FeatureInfo((StageInfo(4, 49, range(1), 7), StageInfo(6, 25, range(1, 2), 5)), False, 0)
    head, maps = UPerNet(levels_of(info), 3, 8), torch.randn(2, 6, 5, 5)
    for pool in (1, 2, 3, 6):
        matrix = head.get_buffer(f"pool{pool}")
        expected = nn.functional.adaptive_avg_pool2d(maps, pool)
        assert torch.allclose(matrix @ maps @ matrix.T, expected, atol=1e-6)


def test_levels_of_plain_and_staged_backbones() -> None:
    plain = FeatureInfo((StageInfo(8, 64, range(12), 8),), True, 0)
    assert [(level.block, level.rescale) for level in levels_of(plain)] == [(3, 4), (5, 2), (7, 1), (11, 0.5)]
    stages = (StageInfo(4, 64, range(2), None), StageInfo(8, 16, range(2, 4), None))
    assert [(level.block, level.side) for level in levels_of(FeatureInfo(stages, False, 0))] == [(1, 8), (3, 4)]
    with pytest.raises(ConfigError, match=r"task\.blocks=\[2, 3\]: give a block of each stage \(0 to 1, 2 to 3\)"):
        levels_of(FeatureInfo(stages, False, 0), [2, 3])
    with pytest.raises(ConfigError, match=r"task\.blocks=\[1, 2\]: give 4 of the blocks 0 to 11"):
        levels_of(plain, [1, 2])
    with pytest.raises(ConfigError, match="12 patches lie on no square grid"):
        levels_of(FeatureInfo((StageInfo(4, 12, range(2), None),), False, 0))


def test_what_does_not_fit_is_refused(root: Path, run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.name: digits has no classes of pixels; choose from ade20k, "):
        segmentation_config(root, data={"name": "digits", "root": None})
    with pytest.raises(ConfigError, match=r"which have no class as a whole; use task\.name=image_segmentation"):
        small_config("linear", kind="vit", data={"name": "digit_scenes"}, head={"num_classes": None})
    with pytest.raises(ConfigError, match=r"task\.num_classes=4, but mask_folder has 3 classes; set it to that"):
        build_splits(segmentation_config(root, task={"num_classes": 4}))
    with pytest.raises(ConfigError, match=r"task\.auxiliary: belongs to task\.head=upernet; remove it"):
        segmentation_config(root, task={"auxiliary": 0.4})
    with pytest.raises(ConfigError, match=r"task\.num_classes: cannot be read from the data \(.*no such folder"):
        segmentation_config(tmp_path / "absent")
    other = write_mask_folder(tmp_path / "other", {"train": 2, "test": 2})
    (other / "classes.txt").write_text("ground\nball\nbar")
    with pytest.raises(ConfigError, match="the adapter knows the classes ground, disc, bar, …, but mask_folder has"):
        jobs.test(run, [f"data.root={other}"], None, False, tmp_path / "tested")
