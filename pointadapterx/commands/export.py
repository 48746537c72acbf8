"""Write a trained model as one file that runs without this package: for onnxruntime, or for torch.export.load."""

from __future__ import annotations

import argparse

from pointadapterx.commands.options import add_adapter, add_weights, require_positive
from pointadapterx.engine.console import steps
from pointadapterx.export import TOLERANCE, export_adapter
from pointadapterx.text import printable

EXAMPLES = """\
  %(prog)s runs/demo/<time> parts.onnx               for onnxruntime; any number of clouds at a time
  %(prog)s runs/demo/<time> parts.pt2                for torch.export.load
  %(prog)s adapter.safetensors parts.onnx --batch-size 1
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """See :class:`~pointadapterx.commands.main.Module`."""
    add_adapter(parser)
    parser.add_argument("output", metavar="FILE", help="FILE.onnx, or FILE.pt2 for torch.export.load")
    parser.add_argument("--batch-size", type=int, metavar="N", help="samples at a time, always (default: any number)")
    parser.add_argument(
        "--tolerance", type=float, default=TOLERANCE, help=f"largest difference to torch (default {TOLERANCE:g})"
    )
    add_weights(parser)


def run(options: argparse.Namespace) -> int:
    """Writes the file, unless it would compute something else."""
    require_positive(options, "batch_size")
    with steps() as progress:
        exported = export_adapter(
            options.adapter,
            options.output,
            batch_size=options.batch_size,
            weights=options.weights,
            tolerance=options.tolerance,
            progress=progress,
        )
    given, made = exported.metadata["input"], exported.metadata["output"]
    print(printable(f"written: {exported.path} ({exported.path.stat().st_size / 1e6:.1f} MB)"))
    for end, part in (("input", given), ("output", made)):
        print(f"{end}: {part['name']} ({', '.join(map(str, part['shape']))}) float32")
    if (told := exported.metadata.get("condition")) is not None:
        names = ", ".join(f"{number} {name}" for number, name in enumerate(told["categories"]))
        print(printable(f"condition: {told['name']} ({told['shape'][0]}) int64: {names}"))
    print(f"checked: logits differ from torch's by at most {exported.difference:.1e}")
    return 0
