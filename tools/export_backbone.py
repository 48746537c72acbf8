"""Makes backbone weights of a run that trained the whole backbone: python tools/export_backbone.py RUN FILE.safetensors

The file is in half precision, or in eight bits with `--bits 8`, and is what `backbone.weights` takes, as the shipped
weights. In place of RUN, a file of such weights is written again, for example that of a pre-training.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Literal

from pointadapterx import read_adapter
from pointadapterx.build import build_backbone, restore_model
from pointadapterx.checkpoints.shipped import backbone_sizes, save_backbone
from pointadapterx.endings import ends_in_one_line
from pointadapterx.errors import CheckpointError, ConfigError
from pointadapterx.files import read_safetensors
from pointadapterx.models import BACKBONES
from pointadapterx.run_folder import WEIGHTS_FILE


def export_backbone(source: Path, output: Path, bits: Literal[8, 16] = 16) -> None:
    """Writes the backbone of an adapter of `method.name: full`, or of a file of weights.

    Args:
        source: adapter file, a file of weights of ours, or a run's folder.
        output: file to write.
        bits: of the values of matrices.

    Raises:
        ConfigError: for another method, whose backbone is that of its own weights file.
        CheckpointError: if the source cannot be read or does not fit, or the output is not called .safetensors.
    """
    if output.suffix != ".safetensors":
        raise CheckpointError(f"{output}: weights are written as .safetensors; choose such a name")
    weights = source / WEIGHTS_FILE if source.is_dir() else source
    metadata = read_safetensors(weights)[1] if weights.is_file() and weights.suffix == ".safetensors" else {}
    if sizes := backbone_sizes(weights, metadata):
        options = BACKBONES[sizes["name"]].Options.model_validate({**sizes, "weights": str(weights)})
        save_backbone(build_backbone(options), output, options, json.loads(metadata.get("story", "{}")), bits)
    else:
        info = read_adapter(source)
        method = info.method.name
        if method != "full":
            raise ConfigError(f"{info.path}: method.name={method} leaves the backbone as it was; only full trains it")
        story = {**{key: info.config.dump()[key] for key in ("data", "train")}, "metrics": info.metrics}
        save_backbone(restore_model(info).backbone, output, info.config.backbone, story, bits)
    print(f"{output}: {output.stat().st_size:,} bytes")


@ends_in_one_line
def main() -> int:
    """Runs this module from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="RUN", help="run folder, adapter file or file of weights")
    parser.add_argument("output", type=Path, metavar="FILE", help="file to write, .safetensors")
    parser.add_argument("--bits", type=int, choices=(8, 16), default=16, help="of the values of matrices (default: 16)")
    options = parser.parse_args()
    export_backbone(options.source, options.output, options.bits)
    return 0


if __name__ == "__main__":
    sys.exit(main())
