"""The plot: how this package compares to the published plugin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

# Of about the same contrast to a white page and to a black one; the page's colour shows behind the plot.
INK = "#768390"
COLOURS = {"asyncio": "#2f81f7", "uvloop": "#8957e5", "trio": "#2da44e"}


WHERE = ("on the clock", "on the processor")


def draw(ratios: Mapping[str, Mapping[str, Sequence[float | None]]], path: Path) -> None:
    """Draw how many times as fast as the peer, by workload and event loop, on the clock and on the processor."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams.update(
        {
            "svg.hashsalt": "speed",  # the same plot is the same file
            "font.size": 11,
            **dict.fromkeys(["text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"], INK),
        }
    )
    from matplotlib import pyplot as plt

    rows = {title: of for title, of in ratios.items() if any(any(pair) for pair in of.values())}
    height = 0.8 / len(COLOURS)
    figure, both = plt.subplots(1, len(WHERE), sharey=True, figsize=(11, 0.75 * len(rows) + 1.4))
    for kind, (where, axes) in enumerate(zip(WHERE, both, strict=True)):
        for index, (name, colour) in enumerate(COLOURS.items()):
            places = [row + index * height for row in range(len(rows))]
            values = [of[name][kind] for of in rows.values()]
            bars = axes.barh(places, [value or 0 for value in values], height * 0.92, label=name, color=colour)
            axes.bar_label(bars, [f"{value:.2f}" if value else "" for value in values], padding=4, color=INK)
        axes.axvline(1, color=INK, linewidth=1.5, linestyle="--")
        axes.margins(x=0.15)
        axes.tick_params(left=False)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.set_title(where, color=INK, fontsize=11)
    both[0].set_yticks([row + height for row in range(len(rows))], list(rows))
    both[0].invert_yaxis()
    figure.supxlabel(
        "times as fast as utcp-websocket with its logging off, on the same loop; right of the line is faster",
        color=INK,
        fontsize=11,
    )
    handles, labels = both[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", bbox_to_anchor=(0.5, 1.04), ncols=len(COLOURS), frameon=False)
    figure.tight_layout()
    figure.savefig(path, transparent=True, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
