"""From the outcomes of `run` to tables in Markdown and a plot."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from plot import draw
from workloads import IDLE_SECONDS, WORKLOADS

PLUGIN, QUIET, SOCKET = "plugin", "plugin-quiet", "blocking socket"
NAMES = {PLUGIN: "utcp-websocket, as installed", QUIET: "utcp-websocket, logging off", "ours": "ours"}

Outcomes = list[dict[str, Any]]
Contenders = dict[str, Outcomes]
Cost = Callable[[dict[str, Any]], "float | None"]

INTRODUCTION = """\
# Speed

{about}; {rounds} rounds. Written by `nox -s bench`.

Each row is the median over the rounds, every run a process of its own. *Spread* is from the fastest to the slowest
round. *CPU* is the client's own processor time per operation. *×* is how many times as fast as a peer, as the median of
the ratios within each round: above 1 is faster than the peer, below 1 slower. The peers are the published plugin with
its logging off (*quiet*) and as it installs itself (*installed*), and a blocking *socket* that knows one connection and
nothing of UTCP. *Wrong* counts calls that failed or got another call's answer, over all rounds; times are per right
answer.
"""

GROWTH = """\
What a call costs this package as there is more of something, each step with its connections open before it begins; *×*
is the cost relative to the first row. For the size of a message it is the cost of each KiB of it."""


def clock(outcome: dict[str, Any]) -> float | None:
    """Microseconds per right answer; None where nothing was right."""
    return 1e6 * float(outcome["seconds"]) / float(outcome["right"]) if outcome["right"] else None


def cpu(outcome: dict[str, Any]) -> float | None:
    """Microseconds of the client's processor per right answer."""
    return 1e6 * float(outcome["cpu"]) / float(outcome["right"]) if outcome["right"] else None


def memory(outcome: dict[str, Any]) -> float | None:
    """Bytes per right answer, each of which left a connection open."""
    return float(outcome["memory"]) / float(outcome["right"]) if outcome["right"] else None


def costs(outcomes: Outcomes, cost: Cost) -> list[float]:
    return [value for outcome in outcomes if (value := cost(outcome)) is not None]


def ratio(peer: Outcomes, own: Outcomes, cost: Cost) -> float | None:
    """How many times the peer's cost is the own one, as the median of the ratios within each round."""
    pairs = [
        peer_cost / own_cost
        for peer_outcome, outcome in zip(peer, own, strict=False)
        if (peer_cost := cost(peer_outcome)) and (own_cost := cost(outcome))
    ]
    return statistics.median(pairs) if pairs else None


def against(peer: str, contenders: Contenders, name: str, cost: Cost) -> str:
    """A ratio as the table has it."""
    value = ratio(contenders.get(peer, []), contenders[name], cost)
    return "" if value is None else f"{value:.2f}"


def rows(heads: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown whose first column is text and whose others are numbers."""
    lines = [heads, ["---", *["--:"] * (len(heads) - 1)], *body]
    return ["| " + " | ".join(line) + " |" for line in lines]


def table(contenders: Contenders) -> list[str]:
    """The contenders of a workload, the fastest first."""
    body = []
    for name in sorted(contenders, key=lambda name: statistics.median(costs(contenders[name], clock) or [1e18])):
        outcomes = contenders[name]
        wrong = f"{sum(outcome['wrong'] for outcome in outcomes):,}"
        values = costs(outcomes, clock)
        if not values:
            body.append([NAMES.get(name, name), *[""] * 6, wrong])
            continue
        middle = statistics.median(values)
        body.append(
            [
                NAMES.get(name, name),
                f"{middle:,.1f}",
                f"{min(values):,.1f} – {max(values):,.1f}",
                f"{statistics.median(costs(outcomes, cpu)):,.1f}",
                *(against(peer, contenders, name, clock) for peer in (QUIET, PLUGIN, SOCKET)),
                wrong,
            ]
        )
    return rows(["", "median, µs", "spread, µs", "CPU, µs", "× quiet", "× installed", "× socket", "wrong"], body)


def idle_table(contenders: Contenders) -> list[str]:
    """What idle connections cost; the ratios are of memory and of processor time."""
    body = []
    for name in sorted(contenders, key=lambda name: statistics.median(costs(contenders[name], memory) or [1e18])):
        outcomes = contenders[name]
        if costs(outcomes, memory):
            body.append(
                [
                    NAMES.get(name, name),
                    f"{statistics.median(costs(outcomes, memory)):,.0f}",
                    against(QUIET, contenders, name, memory),
                    f"{statistics.median(costs(outcomes, cpu)):,.0f}",
                    against(QUIET, contenders, name, cpu),
                    f"{sum(outcome['wrong'] for outcome in outcomes):,}",
                ]
            )
    return rows(["", "bytes each", "× quiet", f"CPU each in {IDLE_SECONDS} s, µs", "× quiet", "wrong"], body)


def growth_table(contenders: Contenders) -> list[str]:
    """Costs, and how many times that of the first step of a series, by series."""
    lines: list[str] = []
    runs = {
        name: [{(step["series"], step["label"]): step for step in outcome["growth"]} for outcome in outcomes]
        for name, outcomes in contenders.items()
    }
    steps = list(dict.fromkeys(key for found in runs.values() for run in found for key in run))
    for series in dict.fromkeys(series for series, _ in steps):
        labels = [label for of, label in steps if of == series]
        body = []
        for label in labels:
            line = [label]
            for found in runs.values():
                whole = [run for run in found if (series, label) in run and (series, labels[0]) in run]
                for kind in ("clock", "cpu"):
                    values = [run[series, label][kind] for run in whole]
                    ratios = [run[series, label][kind] / run[series, labels[0]][kind] for run in whole]
                    line += (
                        [f"{statistics.median(values):,.1f}", f"{statistics.median(ratios):.2f}"] if whole else [""] * 2
                    )
            body.append(line)
        heads = [head for name in runs for head in (f"{name.removeprefix('ours-')}, µs", "×", "CPU, µs", "×")]
        lines += ["", *rows([series, *heads], body)]
    return lines


def report(about: str, results: dict[str, Contenders]) -> str:
    """All workloads, one after the other."""
    rounds = max(len(outcomes) for contenders in results.values() for outcomes in contenders.values())
    lines = [INTRODUCTION.format(about=about, rounds=rounds)]
    for workload, contenders in results.items():
        if workload == "growth":
            lines += ["## Growth", "", GROWTH, *growth_table(contenders), ""]
            continue
        lines += [f"## {WORKLOADS[workload].title}", ""]
        lines += [*(idle_table if workload == "idle" else table)(contenders), ""]
    return "\n".join(lines).strip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("outcomes", type=Path, help="the JSON file that run wrote")
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--plot", type=Path, required=True)
    options = parser.parse_args()
    outcomes = json.loads(options.outcomes.read_text(encoding="utf-8"))
    results = outcomes["results"]
    ordered = {workload: results[workload] for workload in WORKLOADS if workload in results}
    text = report(outcomes["about"], ordered)
    options.table.write_text(text, encoding="utf-8")
    print(text)
    shown = {
        WORKLOADS[workload].title: {
            name.removeprefix("ours-"): ratio(contenders[QUIET], outcomes, clock)
            for name, outcomes in contenders.items()
            if name in {"ours-asyncio", "ours-uvloop", "ours-trio"}
        }
        for workload, contenders in ordered.items()
        # Of 100 tasks at once the plugin answers nearly none: no time to compare with.
        if QUIET in contenders and workload not in {"tasks", "idle"}
    }
    draw(shown, options.plot)


if __name__ == "__main__":
    main()
