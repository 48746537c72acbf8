"""Tables that the jobs print."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table

from pointadapterx.adapted_model import ParameterCount, ParameterReport
from pointadapterx.config import Config
from pointadapterx.counting import count_model
from pointadapterx.engine.console import console


def count(config: Config) -> None:
    """Prints what a config's model costs, see :func:`~pointadapterx.counting.count_model`.

    Raises:
        ConfigError: for a pre-training config, which adapts nothing.
    """
    found = count_model(config)
    console.print(parameter_table(config, found.parameters, found.parts))
    table = Table(title="a training step, per sample", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("multiply-adds, forward", _in_units(found.costs.forward))
    table.add_row("multiply-adds, backward", _in_units(found.costs.backward))
    table.add_row("activations kept, fp32", f"{found.costs.activation_bytes / 2**20:,.2f} MiB")
    console.print(table)


def parameter_table(
    config: Config,
    report: ParameterReport,
    parts: Mapping[str, Mapping[str, ParameterCount]] | None = None,
) -> Table:
    """Trained and all parameters by component, and of what they are how much."""
    assert config.method is not None
    table = Table(title=f"parameters of {config.method.name}", title_justify="left")
    for column in ("part", "trainable", "total"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for name, component in report.components.items():
        table.add_row(name, f"{component.trainable:,}", f"{component.total:,}")
        for part, size in (parts or {}).get(name, {}).items():
            table.add_row(f"  {part}", f"{size.trainable:,}", f"{size.total:,}", style="dim")
    table.add_section()
    table.add_row("all, head included", f"{report.trainable:,}", f"{report.total:,}")
    table.add_row("  of full fine-tuning", f"{report.percent:.2f} %", f"{report.full:,}")
    backbone = report.components["backbone"].total
    table.add_row(
        "without head", f"{report.trainable_without_head:,}", f"{report.total - report.components['head'].total:,}"
    )
    table.add_row("  of the backbone", f"{report.percent_without_head:.2f} %", f"{backbone:,}")
    return table


def _in_units(count: int) -> str:
    """A count with a unit prefix: ``4,571,234,567`` becomes ``4.57 G``."""
    for unit, size in (("G", 1e9), ("M", 1e6)):
        if count >= size:
            return f"{count / size:,.2f} {unit}"
    return f"{count:,}"
