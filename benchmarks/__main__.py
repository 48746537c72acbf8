"""``python -m benchmarks ops --help``, and so on."""

from __future__ import annotations

import sys

from benchmarks import (
    busy,
    cluster,
    curves,
    dense2d,
    exactness,
    fuzz,
    gpu,
    infer,
    memory,
    novelty,
    ops,
    peft,
    predict,
    propagation,
    scale,
    scene,
    serve,
    train,
)
from pointadapterx.process_tuning import keep_freed_memory

KINDS = {
    "busy": busy.main,
    "curves": curves.main,
    "dense": dense2d.main,
    "exactness": exactness.main,
    "fuzz": fuzz.main,
    "gpu": gpu.main,
    "infer": infer.main,
    "memory": memory.main,
    "novelty": novelty.main,
    "ops": ops.main,
    "peft": peft.main,
    "predict": predict.main,
    "propagation": propagation.main,
    "ray": cluster.main,
    "scale": scale.main,
    "scene": scene.main,
    "serve": serve.main,
    "train": train.main,
}


def main() -> int:
    """Runs the measurement that the first argument names."""
    if len(sys.argv) < 2 or sys.argv[1] not in KINDS:
        print(f"usage: python -m benchmarks {{{','.join(KINDS)}}} [options]", file=sys.stderr)
        return 2
    if "--system-allocator" not in sys.argv:
        keep_freed_memory()  # as the commands do
    return KINDS[sys.argv[1]](sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
