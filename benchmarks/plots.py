"""
The plots of `benchmarks.growth`.
"""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot

__all__ = ["draw"]

IMAGES = Path(__file__).parents[1] / "docs" / "images"
pyplot.rcParams["svg.hashsalt"] = "uow"  # the same numbers make the same file
pyplot.rcParams["svg.fonttype"] = "none"


def draw(plots: dict[str, Any]) -> None:
    """Write one SVG file for each plot, with the quartiles around each line."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    for name, plot in plots.items():
        if plot["unit"] != "bytes":
            _draw(plot, IMAGES / f"growth-{name}.svg")


def _draw(plot: dict[str, Any], path: Path) -> None:
    figure, axes = pyplot.subplots(figsize=(7, 3.8), layout="constrained")
    for line, points in plot["lines"].items():
        numbers, middle, lower, upper = zip(*points, strict=True)
        (drawn,) = axes.plot(numbers, middle, marker="o", markersize=3, label=line)
        axes.fill_between(numbers, lower, upper, color=drawn.get_color(), alpha=0.2, linewidth=0)
    axes.set_xscale("symlog" if 0 in numbers else "log", **({"linthresh": 10} if 0 in numbers else {}))
    axes.set_yscale("log")
    axes.set(title=plot["title"], xlabel=plot["across"], ylabel=plot["unit"])
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
