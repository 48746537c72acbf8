"""Every picture, from embedded data: what it shows, and that it can be drawn."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import sys
import xml.etree.ElementTree
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pointadapterx.commands.main import main
from pointadapterx.errors import ConfigError, PointAdapterXError
from pointadapterx.report import page
from pointadapterx.report.gallery import modes_of, pack_clouds
from pointadapterx.visualize import introspection, open3d_view, pictures, plots
from pointadapterx.visualize.colours import GREY, of_amounts, of_kinds, of_signed, rgb
from pointadapterx.visualize.drawing import Scale, Sheet, View, box_edges, columns_of, paint, projected, save
from pointadapterx.visualize.groups import OF_COUNTS
from pointadapterx.visualize.loaded_run import Subject, name_apart
from pointadapterx.visualize.pictures import PICTURES
from tests.visualize.conftest import save_random

pytest.importorskip("matplotlib", reason="pictures are drawn by matplotlib")


def sheet(name: str, subject: Subject, indices: list[int]) -> Sheet:
    made = PICTURES[name].make([subject], subject.choose(indices))
    assert isinstance(made, Sheet)
    return made


def test_groups_are_what_the_model_sees(demo: Subject) -> None:
    found = sheet("groups", demo, [3])
    ((_, centres, groups, counts),) = found.rows
    cloud = demo.choose([3]).inputs
    seen = demo.model.backbone.grouping(cloud)
    assert np.array_equal(centres.marked, seen.centers[0].numpy())
    points = cloud[0]
    times = torch.zeros(len(points), dtype=torch.int64)
    for centre, relative in zip(seen.centers[0], seen.neighborhood[0], strict=True):
        member = (points[:, None] - (relative + centre)[None]).abs().amax(dim=2) < 1e-6  # (N, k)
        times += member.any(dim=1)
    assert int(times.sum()) == seen.neighborhood[0].shape[0] * seen.neighborhood[0].shape[1]
    grey = np.all(groups.colours == rgb(GREY), axis=1)
    assert np.array_equal(grey, (times == 0).numpy())
    assert 0 < grey.mean() < 0.5
    assert np.array_equal(counts.colours, OF_COUNTS[times.clamp(max=3).numpy()])
    assert f"{100 * grey.mean():.1f} % of points in none" in counts.title
    assert f"{100 * float((times > 1).float().mean()):.1f} % in several" in counts.title
    assert found.legend[0][0] == "in no group"
    own = [int(((points - centre) ** 2).sum(dim=1).argmin()) for centre in seen.centers[0]]
    colours = groups.colours[own]  # of the centres, each in its own group
    near = torch.cdist(seen.centers[0], seen.centers[0]).fill_diagonal_(9).argmin(dim=1).numpy()
    assert np.all(colours == colours[near], axis=1).mean() < 0.2  # neighbours differ


def test_augmentation_leaves_the_first_view_alone(demo: Subject, digits: Subject) -> None:
    (row,) = sheet("augmentation", demo, [3]).rows
    assert np.array_equal(row[0].points, demo.choose([3]).inputs[0].numpy())
    spans = {tuple(np.round(np.ptp(view.points, axis=0), 4)) for view in row}
    assert len(spans) == len(row) == 5  # scaled otherwise each time
    (row,) = sheet("augmentation", digits, [3]).rows
    assert len(row) == 5
    assert row[0].image.shape == (*digits.choose([3]).inputs.shape[2:], 3)


def test_boxes_and_axes_show_where_a_cloud_was(demo: Subject, digits: Subject) -> None:
    found = sheet("augmentation", demo, [3])
    (row,) = found.rows
    corners = np.stack([row[0].points.min(axis=0), row[0].points.max(axis=0)])
    assert all(np.array_equal(view.box, corners) for view in row)
    assert found.axes == 1.0  # the clouds are in the unit sphere
    edges = box_edges(corners)
    assert edges.shape == (12, 2, 3)
    assert sorted(np.ptp(edges, axis=1).sum(axis=1).round(5)) == sorted(4 * np.ptp(corners, axis=0).round(5).tolist())
    lines = paint(found).axes[0].lines
    assert len(lines) == 12 + 3
    assert sheet("augmentation", digits, [3]).axes == 0
    assert [pictures._round_length(value) for value in (0.9999, 7.3, 0.03, 1999.0)] == [1.0, 5.0, 0.02, 2000.0]


def test_attention_has_one_scale(demo: Subject) -> None:
    found = sheet("attention", demo, [3, 4])
    inputs = demo.choose([3, 4]).inputs
    weights, (_, nearest) = (
        introspection.class_attention(demo.model, inputs),
        introspection.nearest_patch(demo.model, inputs),
    )
    assert [len(row) for row in found.rows] == [len(weights)] * 2
    assert found.scale == Scale(found.scale.label, 0.0, 100 * float(weights.max()))
    for number, row in enumerate(found.rows):
        for view, of_patches in zip(row, weights[:, number], strict=True):
            shares = (of_patches / weights.max())[nearest[number]]
            assert np.allclose(view.colours, of_amounts(shares.numpy()), atol=0.01)
    bar = paint(found).axes[-1]
    assert bar.get_xlim() == (found.scale.low, found.scale.high)


@pytest.mark.parametrize("name", ["demo", "digits"])
def test_saliency_has_two_signs_about_zero(name: str, request: pytest.FixtureRequest) -> None:
    subject = request.getfixturevalue(name)
    falls = torch.tensor([[0.2, -0.1, 0.0, 0.05]]).repeat(1, subject.model.backbone.num_patches)
    falls = falls[:, : subject.model.backbone.num_patches]
    subject.saliency = lambda inputs: falls
    found = sheet("saliency", subject, [3])
    ((view,),) = found.rows
    assert (found.scale.low, found.scale.high, found.scale.signed) == (pytest.approx(-20), pytest.approx(20), True)
    assert "−10.0 to +20.0 points" in view.title
    if name == "demo":
        _, nearest = introspection.nearest_patch(subject.model, subject.choose([3]).inputs)
        assert np.allclose(view.colours, of_signed(np.array([1.0, -0.5, 0.0, 0.25])[nearest[0].numpy() % 4]))
        assert len(np.unique(view.colours.round(4), axis=0)) == 4


def test_signs_are_apart_for_everyone() -> None:
    least, zero, most = of_signed(np.array([-1.0, 0.0, 1.0]))
    assert least[2] > least[0] + 0.3  # blue
    assert most[0] > most[2] + 0.3  # orange
    assert np.ptp(zero) < 0.01  # grey
    lightness = np.array([least, zero, most]) @ [0.2126, 0.7152, 0.0722]
    assert lightness[1] > lightness[[0, 2]].max() + 0.2  # and in greyscale what matters is darker than what does not


def test_experts_have_the_line_of_equal_shares(demo: Subject) -> None:
    _, right, bar = plots.experts(demo).axes
    (line,) = [line for line in right.lines if line.get_linestyle() == "--"]
    assert set(line.get_ydata()) == {0.25}
    assert 25 in {float(line.get_ydata()[0]) for line in bar.lines}


def test_colours_of_the_viewer_have_legends(demo: Subject) -> None:
    inputs = demo.choose([3, 4]).inputs
    packed, legends = pack_clouds(demo, inputs, modes_of(demo, inputs))
    assert all(list(cloud["modes"]) == list(legends) for cloud in packed)
    assert "in no group" in legends["groups"]
    assert legends["height"].startswith("lowest ")
    assert "expert 4" in legends["expert of sub-token 1, block 1"]
    assert "loses" in legends["what the answer loses without the patch"]
    text = page.gallery([(0, "data:,", "a")], legends)
    assert re.findall(r'data-mode="([^"]+)"( hidden)?>', text) == [
        (mode, " hidden" if number else "") for number, mode in enumerate(legends)
    ]


def test_routing_has_a_row_a_sub_token_and_a_view_a_block(demo: Subject) -> None:
    found = sheet("routing", demo, [3, 4])
    inputs = demo.choose([3, 4]).inputs
    uses, (_, nearest) = introspection.routing(demo.model, inputs), introspection.nearest_patch(demo.model, inputs)
    assert [len(found.rows), len(found.rows[0])] == [2 * 3, len(uses)]
    experts = uses["block 2"].chosen[1, -demo.model.backbone.num_patches :, 2, 0]
    assert np.array_equal(found.rows[5][1].colours, of_kinds(4)[experts[nearest[1]].numpy()])
    assert [label for label, _ in found.legend] == [f"expert {i}" for i in range(1, 5)]


def test_loads_are_shares_of_the_whole_split(demo: Subject) -> None:
    loads, gates = plots._routing_of_split(demo)
    for name in loads:
        assert float(loads[name].sum()) == pytest.approx(1, abs=1e-5)
        assert float(gates[name].sum()) == pytest.approx(1, abs=1e-5)
    everything = demo.choose(range(len(demo.test))).inputs
    chosen = introspection.routing(demo.model, everything)["block 3"].chosen
    wanted = torch.bincount(chosen.flatten(), minlength=4) / chosen.numel()
    torch.testing.assert_close(loads["block 3"], wanted, atol=1e-4, rtol=0)


def test_mistakes_are_wrong_and_sorted(demo: Subject) -> None:
    found = pictures.surest_mistakes(demo, 5)
    sure = [probability for _, _, probability in found]
    assert sure == sorted(sure, reverse=True)
    for index, answer, probability in found:
        assert answer != demo.classes[int(demo.test.labels[index])]
        assert probability == pytest.approx(float(demo.probabilities[index].max()))
    wrong = demo.probabilities.argmax(dim=1) != demo.test.labels
    assert sure[0] == pytest.approx(float(demo.probabilities[wrong].max()))


def test_samples_are_of_different_classes(demo: Subject) -> None:
    kinds = len(demo.test.labels.unique())
    labels = demo.test.labels[demo.spread(kinds)]
    assert len(labels.unique()) == kinds
    assert len(set(demo.spread(kinds + 5))) == kinds + 5


@pytest.mark.slow
def test_every_picture_is_written(demo_adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["visualize", str(demo_adapter), "--output", str(tmp_path), "--renderer", "matplotlib"]
    assert main([*arguments, "--format", "png", "svg", "--samples", "2", "--dpi", "60"]) == 0
    written = {path.name for path in tmp_path.iterdir()}
    names = set(PICTURES) - {"umap", "point_labels", "pixel_labels", "objects"}  # an extra; of other tasks
    assert written == {f"{name}.{kind}" for name in names for kind in ("png", "svg")}
    assert capsys.readouterr().out.count("written: ") == len(written)
    for name in names:
        pixels = np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB"))
        colours = len(np.unique(pixels.reshape(-1, 3), axis=0))
        assert colours > 50, f"{name} is nearly empty"
        xml.etree.ElementTree.parse(tmp_path / f"{name}.svg")


def test_images_have_all_pictures_but_those_of_clouds(digits_adapter: Path, tmp_path: Path) -> None:
    wanted = ["attention", "saliency", "routing", "mistakes", "augmentation"]
    assert (
        main(["visualize", str(digits_adapter), "--picture", *wanted, "--output", str(tmp_path), "--samples", "1"]) == 0
    )
    assert {path.stem for path in tmp_path.iterdir()} == set(wanted)


def test_several_adapters_stand_side_by_side(demo_adapter: Path, tmp_path: Path) -> None:
    other = save_random(tmp_path / "other.safetensors", "demo_linear.yaml")
    runs = [str(demo_adapter), str(other)]
    assert main(["visualize", *runs, "--picture", "tsne", "confusion", "--output", str(tmp_path)]) == 0
    single = plots.confusion([Subject(demo_adapter)]).get_size_inches()[0]
    assert Image.open(tmp_path / "confusion.png").width > 1.5 * 150 * single


def test_own_files_are_looked_at(demo: Subject, demo_adapter: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "scan.npy", demo.test.points[0].numpy())
    arguments = ["visualize", str(demo_adapter), "--files", str(tmp_path / "scan.npy"), "--output", str(tmp_path)]
    assert main([*arguments, "--picture", "groups", "--renderer", "matplotlib"]) == 0
    assert (tmp_path / "groups.png").is_file()
    chosen = demo.read_files([tmp_path / "scan.npy"])
    assert chosen.names == ["scan"]
    assert chosen.inputs.shape == demo.choose([0]).inputs.shape
    assert float(chosen.inputs.norm(dim=2).max()) == pytest.approx(1, abs=1e-5)  # as predict normalises it


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--picture", "nothing"], "picture 'nothing' is not known; choose from groups, "),
        (["--picture", "reconstruction"], "was not pre-trained"),
        (["--picture", "tsne", "--files", "scan.npy"], "picture tsne: is of a whole test split; leave --files out"),
        (["--picture", "groups", "--files", "missing.npy"], "missing.npy"),
        (["method.rank=3"], "method.rank=3: would make it another model"),
        (["--picture", "tsne", "--window"], "no display"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(
    demo_adapter: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["visualize", str(demo_adapter), *arguments]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert message in errors[0]


def test_pictures_of_clouds_are_not_made_of_images(digits_adapter: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["visualize", str(digits_adapter), "--picture", "groups"]) == 2
    assert "picture groups: is of point clouds" in capsys.readouterr().err


def test_other_classes_do_not_stand_side_by_side(demo: Subject, digits: Subject) -> None:
    with pytest.raises(ConfigError, match="knows other classes"):
        plots.embedding([demo, digits], "t-SNE")


def test_a_missing_umap_is_told(demo: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ConfigError, match=r"needs UMAP, which is not installed; pip install umap-learn"):
        plots.embedding([demo], "UMAP")


def test_features_that_show_nothing_are_refused_before_sklearn_sees_them(demo: Subject) -> None:
    for features in (torch.zeros(48, 4), torch.full((48, 4), float("nan"))):
        demo.__dict__["features"] = features
        with pytest.raises(ConfigError, match="all the same or not finite"):
            plots.embedding([demo], "t-SNE")


def test_what_shows_nothing_is_left_out_of_all_pictures(
    demo_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pictures, "surest_mistakes", lambda subject, count: [])
    monkeypatch.setattr(
        "pointadapterx.commands.visualize.PICTURES", {k: PICTURES[k] for k in ("mistakes", "confusion")}
    )
    assert main(["visualize", str(demo_adapter), "--output", str(tmp_path)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["confusion.png"]
    assert "picture mistakes left out: " in capsys.readouterr().out
    assert main(["visualize", str(demo_adapter), "--output", str(tmp_path), "--picture", "mistakes"]) == 2


def test_names_are_text_and_none_is_lost(demo: Subject, tmp_path: Path) -> None:
    assert len(demo.test) == 48  # read, and its classes compared, before they are renamed
    demo.classes[:3] = [r"a$\foo$b", "_hidden", "<b>"]
    demo.name = r"$\frac$"
    figure = plots.embedding([demo], "t-SNE")
    save(figure, tmp_path / "one.svg")
    assert [text.get_text().strip() for text in figure.legends[0].get_texts()] == demo.classes
    save(plots.confusion([demo]), tmp_path / "two.png")


def test_the_same_picture_is_the_same_file(demo: Subject, tmp_path: Path) -> None:
    for name in ("one", "two"):
        save(paint(sheet("groups", demo, [3])), tmp_path / f"{name}.svg")
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is no DISPLAY")
def test_without_a_display_there_is_no_window(
    demo_adapter: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert main(["visualize", str(demo_adapter), "--window", "--picture", "groups"]) == 2
    assert capsys.readouterr().err == "error: no window can be opened here (no display); leave --window out\n"


def test_saliency_is_of_the_probability_that_is_told(demo: Subject) -> None:
    chosen = demo.choose([0, 1])
    _, sure = demo.prediction(chosen.inputs)
    falls = demo.saliency(chosen.inputs).amax(dim=1)
    assert all(float(fall) <= probability for fall, probability in zip(falls, sure, strict=True))
    assert not torch.allclose(falls, introspection.saliency(demo.model, chosen.inputs).amax(dim=1))  # T is 2


def test_adapters_of_one_method_are_told_apart(demo_adapter: Path, tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b", tmp_path / "c" / "b"]
    for folder in folders:
        folder.mkdir(parents=True)
        shutil.copy(demo_adapter, folder)
    subjects = [Subject(folder) for folder in folders]
    name_apart(subjects)
    assert [subject.name for subject in subjects] == ["dapt_x (a)", "dapt_x (b) 2", "dapt_x (b) 3"]


def test_the_eye_stands_above_and_sees_up_upwards() -> None:
    seen = projected(np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0]]))
    assert seen[0, 1] > 0.9  # up is up
    assert seen[0, 2] > 0  # and nearer, from above
    assert np.allclose(np.linalg.norm(seen, axis=1), [1, 0, 1])  # a rotation


@pytest.mark.skipif(sys.platform != "linux", reason="writes by the C library")
def test_what_libraries_write_is_hidden_unless_something_fails(capfd: pytest.CaptureFixture[str]) -> None:
    libc = ctypes.CDLL(None)
    with open3d_view.native_lines_hidden():
        libc.puts(b"engine created")
        os.write(2, b"warning: no window\n")
    print("ours")
    assert capfd.readouterr() == ("ours\n", "")

    @open3d_view.native_lines_hidden()
    def fail() -> None:
        libc.puts(b"the cause")
        raise PointAdapterXError("what failed")

    with pytest.raises(PointAdapterXError, match="what failed"):
        fail()
    assert capfd.readouterr() == ("", "the cause\n")


@pytest.mark.vulkan
def test_open3d_draws_off_screen_what_it_is_given(capfd: pytest.CaptureFixture[str]) -> None:
    if open3d_view.problem() is not None:
        pytest.skip(str(open3d_view.problem()))
    rng = np.random.default_rng(0)
    points = rng.normal(size=(2000, 3))
    points[:, 1] = np.abs(points[:, 1])
    red = np.tile([1.0, 0.0, 0.0], (2000, 1))
    view = View("", points, red, marked=np.zeros((1, 3)))
    pixels = open3d_view.off_screen()(view, 5.0)
    assert capfd.readouterr() == ("", "")
    assert pixels.shape == (open3d_view.PIXELS, open3d_view.PIXELS, 3)
    inked = pixels.min(axis=2) < 0.9
    rows, columns = inked.nonzero()
    assert 0.005 < inked.mean() < 0.6
    assert pixels[inked][:, 0].min() > 0.7  # red, whatever its depth
    assert rows.mean() < open3d_view.PIXELS / 2  # above the middle: y is up
    assert abs(columns.mean() - open3d_view.PIXELS / 2) < open3d_view.PIXELS / 20
    figure = paint(Sheet("", [[view]]), open3d_view.off_screen())
    assert len(figure.axes[0].images) == 1


def test_a_missing_open3d_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open3d_view, "problem", lambda: open3d_view.MISSING)
    open3d_view.off_screen.cache_clear()
    assert open3d_view.choose_renderer("auto") is None
    with pytest.raises(PointAdapterXError, match=r"pip install open3d \(1 GB\), or choose --renderer"):
        open3d_view.choose_renderer("open3d")


@pytest.mark.parametrize(
    ("labels", "width", "columns"),
    [
        (["right"] * 4, 6.0, 4),
        (["right"] * 4, 2.0, 2),
        (["r" * 200, "w"], 3.0, 1),
        ([*["right"] * 8, "w" * 40], 6.0, 3),
    ],
)
def test_a_legend_is_no_wider_than_its_figure(labels: list[str], width: float, columns: int) -> None:
    assert columns_of(labels, width) == columns
