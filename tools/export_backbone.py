"""Makes backbone weights of a run that trained the whole backbone: python tools/export_backbone.py RUN FILE.safetensors

The file is in half precision and is what `backbone.weights` takes, as the shipped weights.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pointadapterx import read_adapter
from pointadapterx.build import restore_model
from pointadapterx.checkpoints.shipped import save_backbone
from pointadapterx.endings import ends_in_one_line
from pointadapterx.errors import CheckpointError, ConfigError


def export_backbone(adapter: Path, output: Path) -> None:
    """Writes the backbone of an adapter of `method.name: full`.

    Args:
        adapter: adapter file, or a run's folder.
        output: file to write.

    Raises:
        ConfigError: for another method, whose backbone is that of its own weights file.
        CheckpointError: if the adapter cannot be read or does not fit, or the output is not called .safetensors.
    """
    if output.suffix != ".safetensors":
        raise CheckpointError(f"{output}: weights are written as .safetensors; choose such a name")
    info = read_adapter(adapter)
    method = info.method.name
    if method != "full":
        raise ConfigError(f"{info.path}: method.name={method} leaves the backbone as it was; only full trains it")
    model = restore_model(info)
    sections = info.config.dump()
    story = {"data": sections["data"], "train": sections["train"], "metrics": info.metrics}
    save_backbone(model.backbone, output, info.config.backbone, story)
    print(f"{output}: {output.stat().st_size:,} bytes")


@ends_in_one_line
def main() -> int:
    """Runs this module from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", type=Path, metavar="RUN", help="run folder or adapter file")
    parser.add_argument("output", type=Path, metavar="FILE", help="file to write, .safetensors")
    options = parser.parse_args()
    export_backbone(options.adapter, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
