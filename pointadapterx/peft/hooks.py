"""How modules of a method act at sites of a backbone: as forward hooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from pointadapterx.models.sites import Site


class Hook:
    """Lets a module of a method act at a site of the backbone.

    A forward hook instead of a wrapper keeps the backbone's parameter names, so that its checkpoints and its hash do
    not depend on the method; an object instead of a closure, so that a copy of the model has hooks of its own, and can
    be pickled.

    Where queries, keys and values are separate layers, the module acts behind each of them by its method ``third``:
    (what it reads, number of the layer) to its third of the output, or None for nothing.

    Args:
        site: of the backbone.
        module: what acts there; it stays owned by the method.
        beside: ``site(x) + module(x)`` instead of ``module(site(x))``.

    Attributes:
        site: where it acts.
        enabled: whether it acts; False leaves the plain site.
        ran: whether its site has run since the last time that this was set to False.
    """

    def __init__(self, site: Site, module: nn.Module, *, beside: bool) -> None:
        self.site = site
        self.module = module
        self.beside = beside
        self.enabled = True
        self.ran = False
        self._handles = [
            piece.register_forward_hook(layer, with_kwargs=True)
            for (piece, _), layer in zip(site.pieces(), self.layers(), strict=True)
        ]

    def layers(self) -> list[Any]:
        """What acts at each layer of the site."""
        return [_Third(self, place) for place in range(len(self.site.parts))] or [self]

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any], output: Any) -> Any:
        """The output that takes the place of the site's."""
        return self.act(self.module, inputs, named, output)

    def act(self, acting: Callable[[Tensor], Tensor | None], inputs: tuple[Any, ...], named: Any, output: Any) -> Any:
        """The output that takes the place of a layer's; of a tuple, its first element is what ``acting`` sees."""
        if not self.enabled:
            return output
        if not self.ran:
            self.ran = True
        if isinstance(output, tuple):
            return (self.act(acting, inputs, named, output[0]), *output[1:])
        if self.beside:
            added = acting(first_tensor(inputs, named))
            return output if added is None else output + added
        if self.site.channels_first:
            tapped = acting(output.movedim(1, -1))
            return output if tapped is None else tapped.movedim(-1, 1)
        tapped = acting(output)
        return output if tapped is None else tapped

    def remove(self) -> None:
        """Takes it away from the site for good."""
        for handle in self._handles:
            handle.remove()


class _Third:
    """A hook at one of three layers that make up a site."""

    def __init__(self, hook: Hook, place: int) -> None:
        self.hook = hook
        self.place = place

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any], output: Any) -> Any:
        return self.hook.act(self._acting, inputs, named, output)

    def _acting(self, values: Tensor) -> Tensor | None:
        found: Tensor | None = self.hook.module.third(values, self.place)  # type: ignore[operator]
        return found


def first_tensor(inputs: tuple[Any, ...], named: Mapping[str, Any]) -> Tensor:
    """The tokens among the inputs of a module, however they were given."""
    if inputs and isinstance(inputs[0], Tensor):
        return inputs[0]
    return next(value for value in (*inputs, *named.values()) if isinstance(value, Tensor))


class Change(nn.Module):
    """A module of a method that changes what linear layers compute."""

    def change(self, layer: nn.Linear, tokens: Tensor, output: Tensor, features: slice) -> Tensor:
        """What takes the place of the output of a layer.

        Args:
            layer: of the backbone.
            tokens: its input, (..., in).
            output: of the layer, (..., out).
            features: which of the site's output features are the layer's.
        """
        raise NotImplementedError(f"{type(self).__name__} must say how it changes a layer")


class ChangeHook(Hook):
    """Lets a module of a method change what the layers of a site compute, see :meth:`Method.change`."""

    module: Change

    def layers(self) -> list[Any]:
        """One a layer of the site."""
        return [_Changed(self, features) for _, features in self.site.pieces()]


class _Changed:
    """A hook at one layer of a site."""

    def __init__(self, hook: ChangeHook, features: slice) -> None:
        self.hook = hook
        self.features = features

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], named: Mapping[str, Any], output: Any) -> Any:
        if not self.hook.enabled:
            return output
        self.hook.ran = True
        assert isinstance(module, nn.Linear)
        return self.hook.module.change(module, first_tensor(inputs, named), output, self.features)
