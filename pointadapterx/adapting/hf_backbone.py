"""``backbone: {name: hf}``: models of images of Hugging Face's transformers."""

from __future__ import annotations

import inspect
import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pointadapterx.adapting.backbone import ForeignBackbone
from pointadapterx.errors import CheckpointError, ConfigError, shown
from pointadapterx.hub import HUB, Address, NotFound, fetch
from pointadapterx.models.backbone import BACKBONES
from pointadapterx.models.checkpoint_keys import Translated
from pointadapterx.optional import need, reason_of

log = logging.getLogger(__name__)

CONFIG, PREPROCESSOR, WEIGHTS = "config.json", "preprocessor_config.json", "model.safetensors"
UNUSED = (
    *("_name_or_path", "_commit_hash", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version"),
    *("id2label", "label2id", "num_labels", "problem_type"),
)
"""Keys of a config.json that belong to a head, a file or a version, or name code."""
STAGE_NORM = re.compile(r"backbone\.hidden_states_norms\.stage(\d+)\.(?:weight|bias)")
"""Of a segmentor's file: norms behind the stages of its backbone."""
OF_BACKBONE = re.compile(r"backbone\.(?:swin\.)?((?:embeddings|encoder)\..+)")
"""Of a segmentor's file: the backbone itself, under the names of older and newer versions."""

Statistics = tuple[list[float], list[float]]


@BACKBONES.register("hf")
class HfBackbone(ForeignBackbone):
    """A model of transformers: ViT, DINOv2, DINOv3, Swin, Swin v2, BEiT."""

    class Options(ForeignBackbone.Options):
        """``backbone:`` of a config.

        ``model`` is ``hf://owner/name`` (optionally ``@revision``) or a folder of ``save_pretrained``; or else
        ``architecture`` has the keys of a ``config.json``, ``model_type`` among them. ``weights`` are those of
        ``model`` unless they are set, null being random ones.
        """

        name: Literal["hf"] = "hf"
        needs = ("transformers",)
        extra = "hf"

        def read(self) -> tuple[ForeignBackbone.Options, Statistics | None]:
            """With what the files of ``model`` say, and the mean and std in its ``preprocessor_config.json``."""
            need("transformers", "needs transformers", "hf", ConfigError)
            if self.model is None:
                if self.architecture is None:
                    raise ConfigError(
                        f"is required: {HUB}owner/name or a folder of save_pretrained; or give architecture: "
                        "{model_type: dinov2, ...} for random weights"
                    )
                return self._sized(self._with_weights(self.weights), {}), None
            if self.architecture is not None:
                raise ConfigError(
                    f"{self.model}: says its own architecture and image size; remove backbone.architecture and, unless "
                    "you want another size, backbone.image_size"
                )
            place = _Place(self.model)
            preprocessing = place.read(PREPROCESSOR, optional=True)
            content = {key: value for key, value in place.read(CONFIG).items() if key not in UNUSED}
            weights = self.weights if "weights" in self.model_fields_set else self.model
            known: dict[str, Any] = {"model": None, "architecture": content, "label": self.label or place.label}
            options = self._with_weights(weights).model_copy(update=known)
            assert isinstance(options, HfBackbone.Options)
            return options._sized(options, preprocessing), _statistics(preprocessing, place.label)

        def _with_weights(self, weights: str | None) -> HfBackbone.Options:
            """With the file of the weights in place of its folder or repository."""
            if weights is not None:
                if weights.startswith(HUB):
                    address = Address.parse(weights)
                    weights = str(address._replace(file=address.file or WEIGHTS))
                elif Path(weights).is_dir():
                    weights = str(_weights_in(Path(weights)))
            return self.model_copy(update={"weights": weights})

        def _sized(self, options: HfBackbone.Options, preprocessing: Mapping[str, Any]) -> HfBackbone.Options:
            """With sizes of images: those that are set, of the preprocessing, or of the config."""
            described = _config(options.architecture or {})
            own = getattr(described, "image_size", None)
            size = options.image_size or _side(preprocessing) or (own if isinstance(own, int) else (own or [224])[0])
            channels = options.channels or getattr(described, "num_channels", 3)
            label = options.label or f"random {described.model_type}"
            return options.model_copy(update={"image_size": size, "channels": channels, "label": label})

        def build(self) -> nn.Module:
            """The model, without a head."""
            config = _config(self.architecture or {})
            config.image_size, config.num_channels = self.image_size, self.channels
            if hasattr(config, "drop_path_rate"):
                config.drop_path_rate = self.drop_path
            elif self.drop_path:
                raise ConfigError(f"{config.model_type} has no drop path; set backbone.drop_path=0.0")
            return _built(config)

    options: HfBackbone.Options

    def translate(self, state: Mapping[str, Tensor]) -> Translated:  # type: ignore[override]
        """The tensors of a file by the names of this backbone's; transformers knows those of its older versions.

        Raises:
            CheckpointError: if they are of another model.
        """
        kind: Any = type(self.model)
        config = _config(self.options.architecture or {})
        state, further = _without_segmentor(state)
        with _quiet():
            try:
                model, found = kind.from_pretrained(
                    None,
                    config=config,
                    state_dict=dict(state),
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,
                    **_kept(kind, config),
                )
            except Exception as error:  # whatever transformers raises
                raise CheckpointError(f"does not fit {self.options.label} ({reason_of(error)})") from None
        for name, there, wanted in sorted(found["mismatched_keys"]):
            raise CheckpointError(
                f"{name} has shape {tuple(there)}, {self.options.label} needs {tuple(wanted)}; give the weights of "
                "that model"
            )
        missing = {name for name in found["missing_keys"] if not name.endswith("mask_token")}
        tensors = {f"backbone.model.{name}": value for name, value in model.state_dict().items() if name not in missing}
        unexpected = [*further, *(key for key in found["unexpected_keys"] if not _of_head(key))]
        return Translated(tensors, sorted(unexpected), [])

    def fit_tensor(self, name: str, tensor: Tensor) -> Tensor:
        """Position embeddings of another image size, interpolated as transformers does."""
        if not name.endswith("position_embeddings") or tensor.ndim != 3 or self.grid is None:
            return tensor
        before, side = int(self.has_class_token), round((tensor.shape[1] - 1) ** 0.5)
        if tensor.shape[1] == before + self.num_patches or before + side**2 != tensor.shape[1]:
            return tensor
        field = tensor[:, before:].float().unflatten(1, (side, side)).permute(0, 3, 1, 2)
        resized = F.interpolate(field, size=(self.grid, self.grid), mode="bicubic", align_corners=False)
        return torch.cat([tensor[:, :before].float(), resized.flatten(2).transpose(1, 2)], dim=1)

    @property
    def made_by(self) -> str:
        """Library and version."""
        return f"transformers {need('transformers', 'needs transformers', 'hf', ConfigError).__version__}"

    @property
    def recomputed(self) -> bool:
        """Whether activations are recomputed in the backward pass instead of being kept."""
        return bool(getattr(self.model, f"is_{_checkpointing(self.model)}", False))

    @recomputed.setter
    def recomputed(self, wanted: bool) -> None:
        model: Any = self.model
        name = _checkpointing(model)
        if wanted:
            getattr(model, f"{name}_enable")({"use_reentrant": False})
        elif self.recomputed:
            getattr(model, f"{name}_disable")()


def _checkpointing(model: nn.Module) -> str:
    """What this version of transformers calls the checkpointing of activations."""
    new = hasattr(type(model), "activation_checkpointing_enable")
    return "activation_checkpointing" if new else "gradient_checkpointing"


def _without_segmentor(state: Mapping[str, Tensor]) -> tuple[Mapping[str, Tensor], list[str]]:
    """The backbone of a segmentor such as UPerNet by its own names, and the names of the rest; any other file as it is.

    The norm behind the last stage becomes the final one; those behind the others belong to a head.
    """
    stages = [int(found[1]) for name in state if (found := STAGE_NORM.fullmatch(name)) is not None]
    if not stages:
        return state, []
    last, own, further = f"backbone.hidden_states_norms.stage{max(stages)}.", {}, []
    for name, tensor in state.items():
        inner = OF_BACKBONE.fullmatch(name)
        if name.startswith(last):
            own[f"layernorm.{name.removeprefix(last)}"] = tensor
        elif inner is not None:
            own[inner[1]] = tensor
        else:
            further.append(name)
    return own, further


def _of_head(name: str) -> bool:
    """Whether a tensor belongs to a head of transformers, or to a pooler, which a backbone has no use for."""
    return name.partition(".")[0].endswith(("classifier", "head", "decoder")) or ".pooler." in f".{name}"


class _Place:
    """Where the files of a model lie: a repository or a folder."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.address = Address.parse(text, file=False) if text.startswith(HUB) else None
        self.folder = Path(text)
        if self.address is None and not self.folder.is_dir():
            known = f"; for the model on the hub write {HUB}{text}" if text.count("/") == 1 else ""
            raise ConfigError(f"{text}: no such folder{known}")
        self.label = self.address.repository if self.address is not None else self.folder.resolve().name

    def read(self, name: str, *, optional: bool = False) -> dict[str, Any]:
        """The content of a JSON file; empty where there is no such and it is optional.

        Raises:
            ConfigError: if it is missing or damaged.
            HubError: if it cannot be fetched.
        """
        try:
            path = self.folder / name if self.address is None else fetch(self.address._replace(file=name))
            content = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotFound) as error:
            if optional:
                return {}
            what = "is not a model of transformers" if isinstance(error, FileNotFoundError) else "cannot be used"
            raise ConfigError(f"{self.text}: {what}, as it has no {name}; give a folder of save_pretrained") from None
        except (OSError, ValueError, RecursionError) as error:
            raise ConfigError(f"{self.text}: {name} cannot be read ({reason_of(error)})") from None
        if not isinstance(content, dict):
            raise ConfigError(f"{self.text}: {name} is a {type(content).__name__}, not a mapping")
        return content


def _weights_in(folder: Path) -> Path:
    """The one file of weights in a folder.

    Raises:
        ConfigError: if there is no such file.
    """
    file = folder / WEIGHTS
    if file.is_file():
        return file
    way = "save it again with model.save_pretrained(folder)"
    if (folder / f"{WEIGHTS}.index.json").is_file():
        raise ConfigError(f"{folder}: its weights are in several files; {way[:-1]}, max_shard_size='1TB')")
    if any(folder.glob("*.bin")):
        raise ConfigError(f"{folder}: has pickled weights alone, which could run code; {way} of a new transformers")
    raise ConfigError(f"{folder}: has no {WEIGHTS}; {way}, or set backbone.weights=null for random ones")


def _statistics(preprocessing: Mapping[str, Any], label: str) -> Statistics | None:
    """Mean and std of images in [0, 1], where a preprocessor_config.json has them."""
    mean, std = preprocessing.get("image_mean"), preprocessing.get("image_std")
    if preprocessing.get("do_normalize") is False:
        mean, std = [0.0], [1.0]
        channels = 3
        mean, std = mean * channels, std * channels
    if not isinstance(mean, list) or not isinstance(std, list):
        return None
    say_once(label, mean, std)
    return [float(value) for value in mean], [float(value) for value in std]


_said: set[str] = set()


def say_once(label: str, mean: list[float], std: list[float]) -> None:
    """Logs how images are normalised, once a model."""
    if label not in _said:
        _said.add(label)
        log.info("%s: images are normalised as its own preprocessing does, with mean %s and std %s", label, mean, std)


def _side(preprocessing: Mapping[str, Any]) -> int | None:
    """Side of the square images that a preprocessor_config.json makes, if it says so."""
    for key in ("crop_size", "size"):
        if key == "crop_size" and preprocessing.get("do_center_crop") is False:
            continue
        found = preprocessing.get(key)
        if isinstance(found, dict):
            found = found.get("height", found.get("shortest_edge"))
        if isinstance(found, int) and found > 0:
            return found
    return None


def _config(content: Mapping[str, Any]) -> Any:
    """A config of transformers.

    Raises:
        ConfigError: if it knows no such model, or refuses a value.
    """
    from transformers import AutoConfig

    options = {key: value for key, value in content.items() if key not in UNUSED}
    kind = options.pop("model_type", None)
    if not isinstance(kind, str):
        raise ConfigError(f"architecture.model_type is {shown(kind)}; give the type of the model, such as dinov2")
    try:
        return AutoConfig.for_model(kind, **options)
    except Exception as error:  # whatever transformers raises
        raise ConfigError(f"{kind}: transformers refuses the config ({reason_of(error)[:200]})") from None


def _built(config: Any) -> nn.Module:
    from transformers import AutoModel
    from transformers.models.auto.modeling_auto import MODEL_MAPPING

    kind = MODEL_MAPPING.get(type(config), None)
    if kind is None:
        raise ConfigError(f"{config.model_type}: transformers has no model of that type that gives features")
    try:
        model: nn.Module = AutoModel.from_config(config, **_kept(kind, config))
    except Exception as error:  # whatever transformers raises
        raise ConfigError(f"{config.model_type}: transformers cannot build it ({reason_of(error)[:200]})") from None
    return model


def _kept(kind: Any, described: Any) -> dict[str, bool]:
    """Leaves out a pooler, but one that has the final norm."""
    pools = "add_pooling_layer" in inspect.signature(kind.__init__).parameters
    return {"add_pooling_layer": False} if pools and not getattr(described, "use_mean_pooling", False) else {}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what transformers says of tensors that belong to a head, and its progress bars."""
    from transformers.utils import logging as speech

    level, bars = speech.get_verbosity(), speech.is_progress_bar_enabled()
    speech.set_verbosity_error()
    speech.disable_progress_bar()
    try:
        yield
    finally:
        speech.set_verbosity(level)
        if bars:
            speech.enable_progress_bar()
