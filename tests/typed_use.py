"""The loop of docs/predicting.md, for mypy: what a predictor gives is typed as users rely on."""

import numpy as np

from pointadapterx import Failure, Predictor
from pointadapterx.tasks.exchange import Answer

points = np.zeros((300, 3))

predictor = Predictor("runs/demo/<time>")  # or {"parts": "a.safetensors", "tools": "b.safetensors"}
for found in predictor.stream(["scan.ply", points, "scans/"]):  # files, arrays (N, 3), folders
    if isinstance(found, Failure):  # the order is kept, and the other files are predicted
        print("not predicted:", found.reason)
    else:
        print(found.name, found.classes[0], found.probabilities[0], found.novelty, found.known)

for answer in Predictor[Answer]("runs/parts/<time>", condition="chair")("scans/"):
    if not isinstance(answer, Failure):
        print(answer.text())
