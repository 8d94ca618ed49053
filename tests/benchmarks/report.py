"""From the outcomes of `run` to a table in Markdown and a plot."""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from workloads import WORKLOADS

PEER, SOCKET = "plugin-quiet", "blocking socket"

Outcomes = list[dict[str, Any]]


def cost(outcome: dict[str, Any], workload: str) -> float | None:
    """Microseconds per right answer; for idle connections, bytes each; None where nothing was right."""
    if not outcome["right"]:
        return None
    if workload == "idle":
        return float(outcome["memory"]) / float(outcome["right"])
    return 1e6 * float(outcome["seconds"]) / float(outcome["right"])


def costs(outcomes: Outcomes, workload: str) -> list[float]:
    return [value for outcome in outcomes if (value := cost(outcome, workload)) is not None]


def ratio(theirs: Outcomes, ours: Outcomes, workload: str) -> float | None:
    """How many times as fast, as the median of the ratios within each round."""
    pairs = [
        their_cost / own_cost
        for their, own in zip(theirs, ours, strict=False)
        if (their_cost := cost(their, workload)) and (own_cost := cost(own, workload))
    ]
    return statistics.median(pairs) if pairs else None


def table(results: dict[str, dict[str, Outcomes]]) -> str:
    """All workloads, one after the other."""
    lines: list[str] = []
    for workload, contenders in results.items():
        unit = "bytes each" if workload == "idle" else "µs each"
        lines += ["", f"### {WORKLOADS[workload].title}", ""]
        lines += [f"| contender | median, {unit} | spread | CPU, µs each | × plugin | × socket | wrong |"]
        lines += ["|---|--:|--:|--:|--:|--:|--:|"]
        for name, outcomes in sorted(contenders.items(), key=lambda item: min(costs(item[1], workload) or [1e18])):
            values = costs(outcomes, workload)
            wrong = sum(outcome["wrong"] for outcome in outcomes)
            if not values:
                lines.append(f"| {name} | – | – | – | – | – | {wrong} |")
                continue
            middle = statistics.median(values)
            spread = (max(values) - min(values)) / middle
            cpu = statistics.median(1e6 * outcome["cpu"] / max(outcome["right"], 1) for outcome in outcomes)
            against = [
                "–"
                if other not in contenders or (value := ratio(contenders[other], outcomes, workload)) is None
                else f"{value:.2f}"
                for other in (PEER, SOCKET)
            ]
            lines.append(
                f"| {name} | {middle:,.1f} | {spread:.0%} | {cpu:,.1f} | {against[0]} | {against[1]} | {wrong or ''} |"
            )
    return "\n".join(lines).strip() + "\n"


def plot(results: dict[str, dict[str, Outcomes]], path: Path) -> None:
    """How many times as fast as the published plugin, for each workload that it can do."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    shown = ["ours-asyncio", "ours-uvloop", "ours-trio"]
    rows = {
        workload: [
            ratio(contenders[PEER], contenders[name], workload) if name in contenders else None for name in shown
        ]
        for workload, contenders in results.items()
        if PEER in contenders and workload != "tasks" and any(costs(contenders[PEER], workload))
    }
    figure, axes = plt.subplots(figsize=(8, 0.6 * len(rows) + 1.2))
    height = 0.8 / len(shown)
    for index, name in enumerate(shown):
        values = [row[index] or 0 for row in rows.values()]
        axes.barh([y + index * height for y in range(len(rows))], values, height, label=name.removeprefix("ours-"))
    axes.set_yticks([y + height for y in range(len(rows))], [WORKLOADS[workload].title for workload in rows])
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlabel("times as fast as utcp-websocket 1.2.1 with its logging off")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, help="the JSON file that run wrote")
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--plot", type=Path, required=True)
    options = parser.parse_args()
    results = json.loads(options.results.read_text(encoding="utf-8"))
    ordered = {workload: results[workload] for workload in WORKLOADS if workload in results}
    options.table.write_text(table(ordered), encoding="utf-8")
    plot(ordered, options.plot)
    print(table(ordered))


if __name__ == "__main__":
    main()
