"""Counts every method at its published size: python tools/count_methods.py > docs/results/parameters.md"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pointadapterx.adapted_model import ParameterReport
from pointadapterx.config import Config, read_config
from pointadapterx.counting import Costs, count_model
from pointadapterx.peft import METHODS

CFGS = Path(__file__).resolve().parent.parent / "cfgs"


class Row(NamedTuple):
    """One row of a table.

    Attributes:
        config: name in ``cfgs/``.
        printed: published figure, or a dash.
        overrides: of the config.
        words: what the overrides do, where the method's sizes do not say it.
    """

    config: str
    printed: str = "–"
    overrides: tuple[str, ...] = ()
    words: str = ""


POINT_MAE = {
    "full": "22.1 M",
    "idpt": "1.7 M",
    "stag": "0.43 M",
    "dapt": "1.09 M, 1.1 M (4.97 %)",
    "dapt_x": "0.42 M (1.88 %)",
}
ONLY_MIXTURE = ("method.norms=false", "method.prompts=false")
POINT_MAE_VARIANTS = (
    Row("scan_pb_t50_rs", overrides=(*ONLY_MIXTURE, "head.pools=[cls, patch_max]"), words="only the mixture"),
    Row("scan_pb_t50_rs", overrides=("method.mixture=false",), words="no mixture"),
    Row("scan_pb_t50_rs", overrides=("method.shared=false",), words="a mixture a block"),
    Row("scan_pb_t50_rs", overrides=("method.inject_from=6",), words="injected from block 6 on"),
    Row("scan_pb_t50_rs", overrides=("method.neighbours=8",), words="8 neighbours"),
    Row("scan_pb_t50_rs", overrides=("method.train_position=true",), words="positions trained"),
    Row("scan_pb_t50_rs_stag", "1.02 M", ("method.variant=sl",), "sl"),
    Row("scan_pb_t50_rs_stag", "0.43 M", ("method.class_token=false",), "class token as initialised"),
    Row("scan_pb_t50_rs_dapt_x_table3", "0.46 M", ("method.tfts=null",)),
    Row("scan_pb_t50_rs_dapt_x_table3", "0.56 M", words="TFTS"),
    Row("scan_pb_t50_rs_dapt_x_table3", "1.40 M", ("method.shared=false",), "TFTS, a mixture a block"),
    Row("modelnet40", words="ModelNet40"),
    Row("modelnet40_dapt_x_table3", words="TFTS, ModelNet40"),
    Row("scan_obj_only_dapt", "1.1 M", words="OBJ_ONLY"),
    Row("modelnet40_dapt", "1.1 M", words="ModelNet40"),
)
VIT = {
    "full": "85.84 M",
    "linear": "0.04 M",
    "adapter": "0.15 M",
    "adapter_x": "0.17 M (0.20 %)",
    "adaptformer": "1.26 M",
    "adaptformer_x": "0.17 M (0.20 %)",
    "bitfit": "0.10 M",
    "lora": "0.29 M",
    "noah": "0.36 M",
    "ssf": "0.24 M",
    "vpt": "0.53 M",
}
VIT_VARIANTS = (
    Row("vtab/adapter", "1.19 M", ("method.rank=64",)),
    Row("vtab/adaptformer_x", "0.15 M", ONLY_MIXTURE, "only the mixture"),
    Row("vtab/adaptformer_x", "1.8 M", ("method.shared=false",), "a mixture a block"),
    Row("vtab/vpt", "0.53 M", ("method.num_prompts=58",)),
    Row("vtab/vpt", overrides=("method.deep=false",), words="shallow"),
)
WORDS = {"noah": "the supernet"}

INTRODUCTION = """\
# What every method trains and costs

Written by `python tools/count_methods.py > docs/results/parameters.md`; `python tools/main.py --count --config FILE`
counts one config, part by part. The counts follow from shapes; nothing here was measured on a machine.

- **Trained** is with the head; **of full** is its share of what full fine-tuning trains. **Printed** is the figure of a
  paper, with the head on Point-MAE and without it on ViT-B.
- **Forward** and **backward** are multiply-adds per sample of one training step, in units of 10⁹: matrix products,
  convolutions, attention, and the distances of the point operations. Where gradients pass through a frozen layer, its
  input's gradient costs as much as its forward pass; a trained layer has its weight's besides. Fused attention
  computes its scores again in the backward pass. A routed sub-token is computed by `top_k` experts, here one,
  whichever it is; in `e3va_x` by all, as torch computes it where its compiled kernel does not serve.
- **Kept** is what autograd holds of the forward pass for the backward pass, MiB per sample in float32, parameters and
  inputs aside. Mixed precision and `torch.compile` change it.
"""
POINT_MAE_TEXT = """\
## Point-MAE, ScanObjectNN

`cfgs/scan_pb_t50_rs_<method>.yaml` (`dapt_x` of rank 24: `cfgs/scan_pb_t50_rs.yaml`, of rank 64:
`cfgs/scan_pb_t50_rs_dapt_x_table3.yaml`): clouds of 2,048 points, 128 patches, 15 classes; the head has 267,535
parameters, 365,839 where it also pools prompts, and 169,231 for `stag`, which has one pool. ModelNet40: 1,024 points,
64 patches, 40 classes. Printed: `full` by Point-MAE ([arXiv 2203.06604](https://arxiv.org/abs/2203.06604)), `idpt` by
IDPT ([arXiv 2304.07221](https://arxiv.org/abs/2304.07221)), `stag` by [its
authors](https://github.com/takahikof/STAG), `dapt` by DAPT ([arXiv 2403.01439](https://arxiv.org/abs/2403.01439)) and
then by Adapter-X ([arXiv 2406.03051](https://arxiv.org/abs/2406.03051), table 2), as `dapt_x` of rank 24; table 3b has
that of rank 64.
"""
POINT_MAE_NOTES = """\
Where a count is not the printed one:

- `dapt`: 1,087,771 of 22,093,327 are 4.92 %; the printed 4.97 % is 1.1 of 22.1, cut.
- `dapt_x`: table 3b prints 0.56 M for the method that table 2 prints with 0.42 M and the same accuracy, so the two
  describe different models. Both readings are [shipped](../deviations.md#dapt-x-readings-of-adapter-x).
- `stag`: in the published code the class token is not trained, which makes 428,431; 429,199 with the class token.
- `dapt` on OBJ_ONLY: its published head pools no patches, which leaves 0.99 M of the printed 1.1 M.
"""
VIT_TEXT = """\
## ViT-B/16, VTAB-1K

`cfgs/vtab/<method>.yaml`: images of 224 x 224 pixels, a linear head for 100 classes with 76,900 parameters. Printed:
Adapter-X, table 1, and table 3a for the variants of `adaptformer_x`. For other methods it quotes earlier papers, NOAH
([arXiv 2206.04673](https://arxiv.org/abs/2206.04673)) among them.
"""
VIT_NOTES = """\
Where a count is not the printed one (the explanations are readings: the papers print no breakdown):

- `full`, `linear`: the printed ones are with a head. The 19 tasks have 940 classes, so the mean head has 38,045
  parameters, the printed 0.04 M; with it `full` has 85,836,701.
- `ssf`: 205,824 are γ and β behind the patch embedding, both norms and the four linear layers of each block, and the
  final norm. With the mean head they are 243,869, the printed 0.24 M.
- `adaptformer`: 1.26 M is its count with the head for 100 classes, 1,266,532, cut to two digits; without it 1.19 M, as
  the same table prints for `adapter` of rank 64.
- `adapter` of rank 8: 156,768 is 0.16 M when rounded; 0.15 M is cut, too.
- `noah`: the supernet, counted as its largest architecture; the printed figure is a mean of the architectures that were
  found in it, one a task. The search keeps to `method.search.budget`.
- `vpt`: the number of prompts is tuned on each task, and the printed figure is a mean; 58 in each block are nearest to
  it, the config has 50.
- `adapter_x`, `adaptformer_x`: 0.20 % is without the head, 167,448 of 85,798,656; the column here is with it.
- `dapt`, `dapt_x`, `idpt`, `stag`, `e3va`: their papers print none for this backbone. E³VA ([arXiv
  2306.09729](https://arxiv.org/abs/2306.09729)) is for dense prediction with Swin.
"""
HEADER = """\
| method | trained | without head | of full | printed | forward | backward | kept |
|---|---:|---:|---:|---:|---:|---:|---:|"""


def point_mae_rows() -> list[Row]:
    """Rows of the table: every method and its variants."""
    configs = {name: "scan_pb_t50_rs" if name == "dapt_x" else f"scan_pb_t50_rs_{name}" for name in METHODS}
    rows = [Row(config, POINT_MAE.get(name, "–"), words=WORDS.get(name, "")) for name, config in configs.items()]
    return rows + list(POINT_MAE_VARIANTS)


def vit_rows() -> list[Row]:
    """Rows of the table: every method and its variants."""
    rows = [Row(f"vtab/{name}", VIT.get(name, "–"), words=WORDS.get(name, "")) for name in METHODS]
    return rows + list(VIT_VARIANTS)


def _in_order(rows: list[Row]) -> list[Row]:
    def place(row: Row) -> tuple[bool, str]:
        name = load(row).method.name
        return name not in ("full", "linear"), name

    return sorted(rows, key=place)


def load(row: Row) -> Config:
    """The config of a row."""
    return read_config(CFGS / f"{row.config}.yaml", row.overrides)


def label(row: Row) -> str:
    """The method with its size."""
    method = load(row).method.model_dump()
    sizes = [
        text.format(method[key]) for key, text in (("rank", "rank {}"), ("num_prompts", "{} prompts")) if key in method
    ]
    return ", ".join([f"`{method['name']}`", *sizes, *filter(None, [row.words])])


def parameter_cells(row: Row, found: ParameterReport) -> str:
    """The columns that need no pass, in Markdown."""
    counts = f"{found.trainable:,} | {found.trainable_without_head:,} | {found.percent:.2f} %"
    return f"| {label(row)} | {counts} | {row.printed} |"


def cost_cells(costs: Costs) -> str:
    """Columns with the costs of a training step, in Markdown."""
    kept = costs.activation_bytes / 2**20
    return f" {costs.forward / 1e9:.2f} | {costs.backward / 1e9:.2f} | {kept:.2f} |"


def line(row: Row) -> str:
    """All columns of one row, in Markdown."""
    found = count_model(load(row))
    return parameter_cells(row, found.parameters) + cost_cells(found.costs)


def page(lines: Callable[[Row], str]) -> str:
    """The whole page.

    Args:
        lines: row of a table -> its Markdown.
    """
    of_points, of_images = (_in_order(rows) for rows in (point_mae_rows(), vit_rows()))
    return "\n".join(
        [
            *(INTRODUCTION, POINT_MAE_TEXT, HEADER, *map(lines, of_points), "", POINT_MAE_NOTES),
            *(VIT_TEXT, HEADER, *map(lines, of_images), "", VIT_NOTES),
        ]
    )


if __name__ == "__main__":
    print(page(line), end="")
