"""Configs: includes, overrides, and every problem at once with its file and line."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pointadapterx.commands.main import main
from pointadapterx.config import SHIPPED, Config, Overrides, dump_config, load_config, read_config
from pointadapterx.errors import ConfigError
from pointadapterx.labelled_files import write_labelled
from pointadapterx.optional import missing
from pointadapterx.peft import METHODS
from tests.conftest import ROOT, small_config
from tests.rooms import write_rooms

Write = Callable[[str, str], Path]


def text_with_bases(path: Path) -> str:
    """A config, and those that it includes."""
    text = path.read_text(encoding="utf-8")
    found = re.search(r"^_base_: (\S+\.yaml)$", text, re.MULTILINE)
    return text if found is None else text + text_with_bases(path.parent / found[1])


SHIPPED_NAMES = sorted(
    path.relative_to(ROOT / "cfgs").with_suffix("").as_posix()
    for path in (ROOT / "cfgs").rglob("*.yaml")
    if path.parent.name not in ("base", "study")
    and path.stem not in ("best", "folder", "h5", "labelled_folder", "own", "rooms")  # which need the user's data.root
    and (missing("timm", "timm") is None or "name: timm" not in text_with_bases(path))
)


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """``write(name, text)``: a config file in the test's folder, which also holds a complete ``base.yaml``."""
    (tmp_path / "base.yaml").write_text(dump_config(small_config()))

    def to_file(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return to_file


def problems_of(path: Path | str, *overrides: str) -> list[str]:
    """The lines below the headline of the error that the config raises."""
    with pytest.raises(ConfigError) as error:
        load_config(path, overrides)
    headline, *lines = str(error.value).splitlines()
    assert f"{len(lines)} problem" in headline
    return lines


def _with_files(name: str, root: Path) -> list[str]:
    """Overrides for a config whose classes are in the files of its data."""
    if name == "rooms":
        write_rooms(root)
    elif name == "labelled_folder":
        points = np.random.default_rng(0).normal(size=(9, 3))
        for part in ("train", "test"):
            write_labelled(root / part / "a.ply", ".ply", points, np.arange(9) % 2)
    else:
        return []
    return [f"data.root={root}"]


@pytest.mark.parametrize("name", SHIPPED_NAMES)
def test_shipped_configs_load_and_round_trip(name: str, tmp_path: Path) -> None:
    config = load_config(SHIPPED / f"{name}.yaml", _with_files(name, tmp_path))
    (tmp_path / "dumped.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "dumped.yaml") == config
    assert Config.of(config, "again").dump() == config


def test_random_weights_may_follow_the_seed_of_training() -> None:
    assert load_config("demo", ["train.seed=7"]).backbone.init_seed == 0
    assert load_config("demo", ["train.seed=7", "backbone.init_seed=null"]).backbone.init_seed == 7


@pytest.mark.parametrize("name", ["demo", "cfgs/demo.yaml", "demo.yaml"])
def test_shipped_configs_are_found_by_name_from_any_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config(name) == load_config(SHIPPED / "demo.yaml")


def test_a_file_of_the_user_comes_before_a_shipped_one(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("demo.yaml", "_base_: base.yaml\ntrain: {epochs: 7}\n")
    monkeypatch.chdir(path.parent)
    assert load_config("demo.yaml").train.epochs == 7


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("scan_obj", "did you mean 'scan_obj_bg'?"),
        ("study/qick", "did you mean 'study/quick'?"),
        ("cfgs/pretrain/point_mae_tin.yaml", "did you mean 'pretrain/point_mae_tiny'?"),
        ("elsewhere/dmeo.yaml", "did you mean 'demo'?"),
        ("nothing_like_it", "no such config. Shipped: best, blood_retinanet, claim2d/blood_crops, "),
        ("/", "/"),
    ],
)
def test_an_unknown_config_lists_the_shipped_ones(name: str, says: str) -> None:
    with pytest.raises(ConfigError, match="no such config") as error:
        load_config(name)
    assert says in str(error.value)
    assert "scan_pb_t50_rs_dapt" in str(error.value)


def test_defaults_are_the_published_recipe() -> None:
    train = load_config("scan_obj_bg").train
    published = {"epochs": 300, "batch_size": 32, "lr": 5e-4, "min_lr": 1e-6, "warmup_epochs": 10, "weight_decay": 0.05}
    assert {key: train[key] for key in published} == published
    assert train.clip_grad == 10.0


def test_base_is_relative_to_the_file_that_names_it(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write("inner/middle.yaml", "_base_: ../base.yaml\ntrain: {epochs: 5, lr: 0.1}\n")
    path = write("inner/deep/top.yaml", "_base_: ../middle.yaml\ntrain: {epochs: 6}\n")
    monkeypatch.chdir("/")
    config = load_config(path)
    assert (config.train.epochs, config.train.lr, config.backbone.dim) == (6, 0.1, 48)


def test_later_bases_override_earlier_ones_and_the_file_overrides_both(write: Write) -> None:
    write("one.yaml", "train: {epochs: 3, seed: 1, batch_size: 6}\n")
    write("two.yaml", "train: {epochs: 4, seed: 2}\n")
    train = load_config(write("top.yaml", "_base_: [base.yaml, one.yaml, two.yaml]\ntrain: {epochs: 5}\n")).train
    assert (train.epochs, train.seed, train.batch_size) == (5, 2, 6)


def test_a_base_shared_by_two_bases_is_no_cycle(write: Write) -> None:
    write("left.yaml", "_base_: base.yaml\ntrain: {seed: 1}\n")
    write("right.yaml", "_base_: base.yaml\n")
    assert load_config(write("top.yaml", "_base_: [right.yaml, left.yaml]\n")).train.seed == 1


def test_cycles_show_their_chain(write: Write) -> None:
    write("one.yaml", "_base_: two.yaml\n")
    write("two.yaml", "_base_: three.yaml\n")
    path = write("three.yaml", "_base_: one.yaml\n")
    with pytest.raises(ConfigError, match=r"includes itself: three.yaml -> one.yaml -> two.yaml -> three.yaml"):
        load_config(path)


def test_a_section_is_merged_but_another_method_replaces_its_own(write: Write) -> None:
    merged = load_config(write("same.yaml", "_base_: base.yaml\nmethod: {name: dapt_x, top_k: 2}\n")).method
    assert (merged.rank, merged.top_k) == (4, 2)
    replaced = load_config(write("other.yaml", "_base_: base.yaml\nmethod: {name: dapt}\n")).method
    assert replaced.name == "dapt"
    assert replaced.rank == 64  # the default of DAPT, not the 4 that the base gives DAPT-X
    assert "num_experts" not in replaced


def test_overriding_the_method_replaces_its_section(write: Write) -> None:
    path = write("c.yaml", "_base_: base.yaml\n")
    assert load_config(path, ["method.name=dapt"]).method.rank == 64
    assert load_config(path, ["method.name=dapt", "method.rank=8"]).method.rank == 8
    assert "rank" not in load_config(path, ["method.name=linear"]).method


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("train.lr=5e-4", "train.lr", 5e-4),
        ("train.lr=1", "train.lr", 1.0),
        ("train.lr=+2.5E-2", "train.lr", 0.025),
        ("train.seed=7", "train.seed", 7),
        ("train.clip_grad=null", "train.clip_grad", None),
        ("eval.vote.copies=3", "eval.vote.copies", 3),
        ("eval.vote.seeds=[4, 5]", "eval.vote.seeds", [4, 5]),
        ("eval.vote={copies: 2}", "eval.vote.seeds", [0, 1, 2]),
        ("backbone.skip_origin=true", "backbone.skip_origin", True),
        ("data.root=/data/with space/a=b", "data.root", "/data/with space/a=b"),
        ("data.augment=none", "data.augment", "none"),
        ("data.augment=[rotation, scale]", "data.augment", ["rotation", "scale"]),
        ("data.augment=[{jitter: {std: 0.01}}]", "data.augment", [{"jitter": {"std": 0.01}}]),
        ("head.hidden=[]", "head.hidden", []),
    ],
)
def test_overrides_are_yaml(write: Write, text: str, key: str, value: object) -> None:
    config = load_config(write("c.yaml", "_base_: base.yaml\n"), [text])
    found = config
    for part in key.split("."):
        found = found[part]
    assert found == value
    assert type(found) is type(value)
    untouched = load_config(write("c.yaml", "_base_: base.yaml\n"))
    for section in set(config) - {key.split(".")[0]}:
        assert config[section] == untouched[section]


@pytest.mark.parametrize("text", ["5e-4", "5E-4", "5.e-4", "+5e-4", "0.5e-3", ".5e-3", "0.0005"])
def test_floats_need_no_dot(write: Write, text: str) -> None:
    assert load_config(write("c.yaml", f"_base_: base.yaml\ntrain: {{lr: {text}}}\n")).train.lr == pytest.approx(5e-4)


@pytest.mark.parametrize("text", ["1e3x", "e-4", "5e", "1-2"])
def test_what_only_looks_like_a_float_stays_text(write: Write, text: str) -> None:
    path = write("c.yaml", "_base_: base.yaml\n")
    assert load_config(path, [f"data.root={text}"]).data.root == text


def test_later_overrides_win(write: Write) -> None:
    path = write("c.yaml", "_base_: base.yaml\n")
    assert load_config(path, ["train.seed=1", "train.seed=2"]).train.seed == 2


def test_a_key_given_twice_is_an_error(write: Write) -> None:
    path = write("c.yaml", "_base_: base.yaml\ntrain:\n  lr: 0.1\n  seed: 3\n  lr: 0.2\n")
    with pytest.raises(ConfigError, match=r"c.yaml:5: train.lr is set twice, first in line 3"):
        load_config(path)
    with pytest.raises(ConfigError, match=r"c.yaml:3: train is set twice, first in line 2"):
        load_config(write("c.yaml", "_base_: base.yaml\ntrain: {lr: 0.1}\ntrain: {seed: 1}\n"))


def test_every_problem_is_listed_at_once_with_its_place(write: Write) -> None:
    base = write("own.yaml", "_base_: base.yaml\ntrain:\n  epochs: -1\n")
    path = write(
        "c.yaml",
        "_base_: own.yaml\n"
        "method:\n"
        "  num_expert: 4\n"
        "head:\n"
        "  pools: [clss]\n"
        "data:\n"
        "  variant: obj_bg\n"
        "eval: {vote: {copy: 3}}\n"
        "trian: {}\n",
    )
    lines = problems_of(path, "backbone.depth=twelve", "train.sead=3")
    expected = [
        (f"{path}:9: trian: unknown section", "did you mean 'train'?"),
        ("override backbone.depth=twelve: backbone.depth:", "'twelve'"),
        (f"{path}:3: method.num_expert: unknown key", "did you mean 'num_experts'?"),
        (f"{base}:3: train.epochs:", "-1"),
        ("override train.sead=3: train.sead: unknown key", "did you mean 'seed'?"),
        (f"{path}:8: eval.vote.copy: unknown key", "did you mean 'copies'?"),
        (f"{path}:5: head.pools: unknown pool 'clss'", "did you mean 'cls'?"),
        (f"{path}:7: data.variant: unknown variant 'obj_bg'", "leave it out"),
    ]
    assert len(lines) == len(expected), lines
    for place, hint in expected:
        assert any(place in line and hint in line for line in lines), (place, lines)


def test_impossible_combinations_are_listed_together(write: Write) -> None:
    path = write("c.yaml", "_base_: base.yaml\n")
    lines = problems_of(
        path,
        "backbone.dim=50",
        "backbone.group_size=1000",
        "method.top_k=9",
        "head.pools=[cls, cls]",
        "head.num_classes=3",
        "train.warmup_epochs=2",
        "train.min_lr=1",
        "train.accumulate=8",
    )
    for says in (
        "backbone.num_heads: 3 heads do not divide dim=50",
        "backbone.group_size: 1000 exceeds data.num_points=128",
        "method.num_heads: 3 sub-tokens do not divide backbone.dim=50",
        "method.top_k: 9 exceeds num_experts=4",
        "head.pools: a pool is named twice",
        "head.num_classes: 3, but ldraw20 has 20 classes",
        "train.warmup_epochs: 2 leaves nothing of train.epochs=2; lower it, for example with train.warmup_epochs=0",
        "train.min_lr: 1.0 exceeds train.lr=0.001; lower it, for example with train.min_lr=0",
        "train.accumulate: 8 parts of train.batch_size=8",
    ):
        assert any(says in line for line in lines), (says, lines)
    assert len(lines) == 9


def test_prompt_pools_need_a_method_that_makes_prompts(write: Write) -> None:
    path = write("c.yaml", "_base_: base.yaml\n")
    (line,) = problems_of(path, "method.name=linear", "head.pools=[cls, prompt_mean]")
    assert "prompt_mean needs prompt tokens, which method linear does not make" in line
    (line,) = problems_of(path, "method.prompts=false")
    assert "prompt_mean" in line


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("base", ["demo", "demo_linear", "scan_pb_t50_rs", "vtab/digits", "dumped"])
def test_the_method_alone_may_change(name: str, base: str, tmp_path: Path) -> None:
    """The head reads the prompts of a method that makes some, whatever the method of the config was."""
    if base == "dumped":  # every key is set, as in the folder of a run
        base = str(tmp_path / "config.yaml")
        Path(base).write_text(dump_config(load_config("demo")))
    with_prompts = METHODS[name].Options(name=name).makes_prompts
    expected = ["cls", "prompt_mean", "patch_max"] if with_prompts else ["cls", "patch_max"]
    assert load_config(base, [f"method.name={name}"]).head.pools == expected


@pytest.mark.parametrize(
    ("method", "pools", "overrides", "expected"),
    [
        ("dapt_x", None, [], ["cls", "prompt_mean", "patch_max"]),
        ("dapt_x", None, ["method.prompts=false"], ["cls", "patch_max"]),
        ("e3va", None, ["method.prompts=true"], ["cls", "prompt_mean", "patch_max"]),
        ("dapt_x", "[cls, patch_max]", ["method.name=dapt"], ["cls", "patch_max"]),  # chosen, and still possible
        ("dapt_x", "[cls]", ["method.name=linear"], ["cls"]),
        ("dapt_x", "[patch_mean, prompt_max]", ["method.name=lora"], ["patch_mean"]),
        ("dapt_x", "[prompt_max]", ["method.name=lora"], ["cls", "patch_max"]),
        ("dapt_x", None, ["method.name=linear", "head.pools=[patch_max]"], ["patch_max"]),
        ("dapt_x", None, ["head.pools=[patch_max]", "method.name=linear"], ["patch_max"]),
    ],
)
def test_pools_follow_the_method(
    write: Write, method: str, pools: str | None, overrides: list[str], expected: list[str]
) -> None:
    head = f"head: {{pools: {pools or 'null'}}}\n"
    write("one.yaml", f"_base_: base.yaml\nmethod: {{name: {method}}}\n{head}")
    path = write("two.yaml", "_base_: one.yaml\n")
    assert load_config(path, overrides).head.pools == expected
    names = [text.removeprefix("method.name=") for text in overrides if text.startswith("method.name=")]
    if names == overrides and names:  # in a file of its own as well
        other = write("three.yaml", f"_base_: one.yaml\nmethod: {{name: {names[0]}}}\n")
        assert load_config(other).head.pools == expected


def test_the_number_of_classes_is_that_of_the_data(write: Write) -> None:
    path = write("c.yaml", "_base_: base.yaml\n")
    assert load_config(path, ["head.num_classes=null"]).head.num_classes == 20
    few = ["head.num_classes=null", "data.few_shot.ways=5", "data.few_shot.shots=1"]
    assert load_config(path, few).head.num_classes == 5
    images = ["backbone={name: vit, image_size: 48, patch_size: 16, dim: 48, num_heads: 3}", "data.num_points=null"]
    (line,) = [
        line
        for line in problems_of(path, "head.num_classes=null", "data.name=imagefolder", *images)
        if "data.root" in line
    ]
    assert "data.root: data.root is required for data.name=imagefolder" in line


def test_vtab_needs_its_task() -> None:
    with pytest.raises(ConfigError) as error:
        load_config("vtab/linear", ["data.variant=null"])
    assert len(str(error.value).splitlines()) == 2
    assert "data.variant: is required for vtab, one of cifar, caltech101" in str(error.value)


def test_prompts_on_a_highway_need_a_pool(write: Write) -> None:
    path = write("c.yaml", "_base_: base.yaml\n")
    (line,) = problems_of(path, "method.name=e3va", "method.prompts=true", "head.pools=[cls]")
    assert "method.prompts: its prompts are read by a prompt pool alone" in line


def test_missing_sections_are_named() -> None:
    with pytest.raises(ConfigError) as error:
        Config.of({"train": {"epochs": 3}}, "here")
    for section in ("backbone", "method", "head", "data"):
        assert f"here: config: section '{section}' is missing" in str(error.value)


@pytest.mark.parametrize("config", [None, [], 3, "text"])
def test_a_stored_config_that_is_no_mapping(config: object) -> None:
    with pytest.raises(ConfigError, match=r"stored: a config is a mapping of sections, this is a \w+"):
        Config.of(config, "stored")  # type: ignore[arg-type]


def test_strings_are_not_numbers_and_numbers_are_not_strings(write: Write) -> None:
    lines = problems_of(
        write("c.yaml", "_base_: base.yaml\ntrain: {lr: '0.1', epochs: 2.0, seed: true}\ndata: {root: 3}\n")
    )
    assert sorted(line.split(": ")[1] for line in lines) == ["data.root", "train.epochs", "train.lr", "train.seed"]
    assert all("c.yaml:2" in line or "c.yaml:3" in line for line in lines)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("data.block=-1", "data.block: Input should be greater than 0 or 'whole', not -1"),
        ("data.columns=[1.5,a,2]", "data.columns.0: Input should be a valid integer or a valid string, not 1.5"),
        ("train.class_weights=[1,-2]", "train.class_weights.1: Input should be greater than 0, not -2"),
    ],
)
def test_a_value_that_may_be_of_several_kinds_is_one_problem(override: str, says: str, write: Write) -> None:
    (line,) = problems_of(write("c.yaml", "_base_: base.yaml\n"), override)
    assert line.endswith(says)


def test_the_command_line_prints_one_error(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write("c.yaml", "_base_: base.yaml\ntrain: {lr: 0}\n")
    assert main(["--config", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}: 1 problem in the config\n  {path}:2: train.lr:")
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["train=5"], "train: is a section with keys of its own, not 5; set one of them, for example train."),
        (["train=5", "train.seed=1"], "1 problem in the config"),
        (["method.name=null"], "method: needs a name, one of adapter, "),
        (["method.name=3"], "method.name: unknown name 3. Known: adapter, "),
        (["method=null"], "method: is a section with keys of its own, not None"),
        (["data.name.x=5"], "data.name: is 'ldraw20', which has no keys, but an override sets data.name.x"),
        (["method=lora"], "method: is a section with keys of its own, not 'lora'; write method.name=lora"),
        ({"backbone": "vit"}, "backbone: is a section with keys of its own, not 'vit'; write backbone.name=vit"),
    ],
)
def test_an_override_replaces_no_section(overrides: Overrides, says: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(says)):
        load_config("demo", overrides)
    assert load_config("demo", ["data.few_shot={ways: 2, shots: 1}", "data.few_shot=null"]).data.few_shot is None


def test_null_undoes_what_a_file_sets(tmp_path: Path) -> None:
    """A shipped file is not to be changed for one run."""
    with pytest.raises(ConfigError) as error:
        load_config("demo", ["data.name=digits", "data.mean=[0.5]", "data.up=x"])
    says = "belongs to point clouds, but digits holds images; remove it"
    assert f"data.num_points: {says}, for example by data.num_points=null\n" in str(error.value)
    assert f"override data.up=x: data.up: {says}\n" in str(error.value)
    own = tmp_path / "own.yaml"
    own.write_text("_base_: [demo.yaml]\nmethod: lora\n")
    (tmp_path / "demo.yaml").write_text(dump_config(load_config("demo")))
    with pytest.raises(ConfigError, match=r"method: needs a name, written as method: \{name: lora\}, one of adapter, "):
        load_config(own)


def test_a_typed_config_is_what_users_get_as_a_mapping() -> None:
    config = read_config("demo", ["train.lr=1e-2", "eval.vote={copies: 3}"])
    assert (config.train.lr, config.eval.vote.copies, config.data.few_shot) == (0.01, 3, None)
    assert config.pretrain is None
    assert config.dump() == load_config("demo", ["train.lr=1e-2", "eval.vote={copies: 3}"])
    assert Config.of(config) is config
    assert Config.of(config.dump()) == config
    assert Config.of(config, "here", ["train.seed=5"]).train.seed == 5


def test_a_changed_copy_is_checked() -> None:
    config = small_config()
    changed = config.replaced(train={"precision": "bf16"}, eval={"vote": {"copies": 2}})
    assert (config.train.precision, changed.train.precision) == ("fp32", "bf16")
    assert changed.eval.vote.model_dump() == {"copies": 2, "seeds": [0, 1, 2]}
    assert changed.replaced(train={"precision": "fp32"}, eval={"vote": {"copies": 10}}) == config
    with pytest.raises(ConfigError, match=r"train\.epoch: unknown key; did you mean 'epochs'\?"):
        config.replaced(train={"epoch": 3})
    with pytest.raises(ConfigError, match=r"backbone\.num_groups: 999 exceeds data\.num_points=128"):
        config.replaced(backbone={"num_groups": 999})


@pytest.mark.parametrize(("base", "name"), [("demo", "classification"), ("pretrain/point_mae_tiny", "reconstruction")])
def test_a_task_that_the_sections_imply_is_not_stored(base: str, name: str) -> None:
    config = read_config(base)
    assert config.task.name == name
    assert "task" not in config.dump()
    assert read_config(base, [f"task.name={name}"]) == config


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["task.name=classify"], "task.name: unknown name 'classify'; did you mean 'classification'? Known: "),
        (["task.classes=3"], "task.classes: unknown key"),
        (["task.name=reconstruction"], "config: section 'pretrain' is missing"),
        (["pretrain={}"], "head: belongs to adaptation, but there is a section 'pretrain'; remove one"),
    ],
)
def test_a_task_is_checked(overrides: list[str], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_config("demo", overrides)
    assert says in str(error.value)


def test_configs_are_typed_outside_their_files() -> None:
    untyped = re.compile(
        r"config: (Mapping|dict)\[str, Any\]|config\[[\"']"
        r"|getattr\((\w+\.)*(config|config\.\w+|data), "
        r"|model_dump\(\)\["
    )
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for folder in ("pointadapterx", "datasets", "benchmarks", "tools")
        for path in (ROOT / folder).rglob("*.py")
        if path.parent != ROOT / "pointadapterx" / "config"
        for match in untyped.finditer(path.read_text())
    ]
    assert found == []
