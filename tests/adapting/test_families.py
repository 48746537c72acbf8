"""Every method on every family, as docs/methods/families.md has it.

``python -m tests.adapting.test_families`` writes the page where both libraries are; a test compares the rows of those
that it finds.
"""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch

import pointadapterx as pax
from pointadapterx import Sites
from pointadapterx.errors import ConfigError
from pointadapterx.models.foreign import ForeignHost
from pointadapterx.peft import METHODS
from tests.adapting.models import FAMILIES, Library, answer, head_of, method_of, randomised
from tests.conftest import ROOT

PAGE = ROOT / "docs" / "methods" / "families.md"
START, END = "<!-- written by tests/adapting/test_families.py -->\n", "<!-- end -->\n"
SIGNS = {"": "yes", "prompts": "without prompts"}


def options_of(method: str, depth: int, prompts: bool) -> dict[str, object]:
    """Options to try a method with."""
    found: dict[str, object] = (
        {} if prompts or "prompts" not in METHODS[method].Options.model_fields else {"prompts": False}
    )
    if method == "noah":
        counts = [2] * depth
        found["architecture"] = {"prompts": counts if prompts else [0] * depth, "lora": counts, "adapter": counts}
    return found


def tried(library: Library, method: str) -> str:
    """What the table says of a method on a family; the method is run and trained, not only attached."""
    for prompts in (True, False):
        model = randomised(library.make())
        depth = len(ForeignHost.of(model).every_block())
        try:
            pax.adapt(model, method, train=[head_of(model)], **options_of(method, depth, prompts))
        except ConfigError:
            continue
        randomised(method_of(model), seed=1)
        inputs = library.inputs()
        with torch.no_grad(), pax.disable_adapter(model):
            plain = answer(model(inputs))
        adapted = answer(model.train()(inputs))
        (adapted.square().mean() + pax.auxiliary_loss(model)).backward()
        assert adapted.shape == plain.shape
        if next(method_of(model).parameters(), None) is not None:
            assert not torch.allclose(adapted, plain, atol=1e-3)
        for name, parameter in model.named_parameters():
            wanted = parameter.requires_grad and not name.endswith("mask_token")
            assert (parameter.grad is not None) == wanted, name
        return SIGNS["" if prompts else "prompts"]
    return "–"


def row(library: Library) -> str:
    return f"| {library.title} | " + " | ".join(tried(library, method) for method in sorted(METHODS)) + " |"


def table(rows: list[str]) -> list[str]:
    return [f"| | {' | '.join(f'`{name}`' for name in sorted(METHODS))} |", f"|---|{'---|' * len(METHODS)}", *rows]


@pytest.mark.parametrize("library", [pytest.param(one, id=one.title, marks=one.marks) for one in FAMILIES])
def test_methods_work_as_the_page_says(library: Library) -> None:
    library.need()
    assert row(library) in PAGE.read_text(encoding="utf-8").splitlines()


def test_bitfit_trains_biases_that_attention_has_apart_from_its_layers() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList([torch.nn.TransformerEncoderLayer(8, 2, 8)])
            self.norm = torch.nn.LayerNorm(8)

    model = pax.adapt(Model(), "bitfit", sites=Sites(blocks="layers", norm="norm", norm1="norm1"))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if name.endswith("bias")}


def test_the_page_has_every_family() -> None:
    text = PAGE.read_text(encoding="utf-8")
    lines = text.partition(START)[2].partition(END)[0].strip().splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == [one.title for one in FAMILIES]
    assert lines[:2] == table([])


if __name__ == "__main__":
    missing = [one.package for one in FAMILIES if importlib.util.find_spec(one.package) is None]
    if missing:
        sys.exit(f"the page needs {', '.join(sorted({*missing}))}")
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    written = "\n".join(table([row(one) for one in FAMILIES]))
    PAGE.write_text(f"{before}{START}{written}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
