"""Nothing is left out without another that stands for it."""

from __future__ import annotations

from pointadapterx.peft import METHODS
from tests.mechanisms import LIKE, ON_BOTH, methods, methods_on


def test_what_is_left_out_has_a_stand_in_that_is_not() -> None:
    assert set(LIKE) | set(ON_BOTH) <= set(METHODS)
    for name, reason in LIKE.items():
        stands_in = reason.split(":")[0].split(" and ")
        assert set(stands_in) <= set(METHODS) - set(LIKE), name


def test_a_new_method_is_left_out_nowhere() -> None:
    (new,) = methods(["of today"])
    assert not new.marks


def test_every_method_is_tried_on_every_backbone_somewhere() -> None:
    found = methods_on(["point_mae", "vit"])
    assert len(found) == 2 * len(METHODS)
    assert {form.values[0] for form in found if form.values[1] == "vit" and not form.marks} == set(ON_BOTH)
