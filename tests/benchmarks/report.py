"""From the outcomes of `run` to tables in Markdown and a plot."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from plot import draw
from workloads import HEARTBEAT, IDLE_SECONDS, LIBRARIES, WORKLOADS, Workload

OURS, ALSO, PLUGIN = "ours", "also", "plugin"
NAMES = {
    PLUGIN: "utcp-websocket",
    "plugin-uvloop": "utcp-websocket on uvloop",
    "plugin-logging": "utcp-websocket, logging as installed",
    "utcp": "`import utcp.utcp_client` alone",
}
LOOPS = ("asyncio", "uvloop", "trio")
WHOLE = ("refused", "answer")
"""Workloads of which a run is one operation, in milliseconds."""

Outcomes = list[dict[str, Any]]
Contenders = dict[str, Outcomes]
Cost = Callable[[dict[str, Any]], "float | None"]

INTRODUCTION = """\
# Speed

{about}; {rounds}. Written by `nox -s bench`.

Each row is the median over the rounds, every run a process of its own. *Spread* is from the fastest to the slowest
round. *CPU* is the client's own processor time per operation. *×* is how many times as fast as the published plugin
with its logging off, on the clock and on the processor, as the median of the ratios within each round: above 1 is
faster than the plugin, below 1 slower. What runs on uvloop is compared with the plugin on uvloop.{also} *Wrong* counts
calls that failed or got another call's answer, over all rounds; times are per right answer. The libraries are used by
hand, without UTCP, deadlines or more of a pool than the workload needs; the blocking socket knows one connection.
"""
ALSO_SAYS = """ *× also* is how many
times as fast as the other source tree that was measured along, on the same event loop."""

IDLE = """\
Opened one after the other, then left alone for {seconds} s, with a WebSocket ping every {heartbeat} s."""

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
    """How many times the peer's cost is the own one, as the median of the ratios within each round.

    A round in which the peer gave wrong answers is nothing to compare with.
    """
    pairs = [
        peer_cost / own_cost
        for peer_outcome, outcome in zip(peer, own, strict=False)
        if not peer_outcome["wrong"] and (peer_cost := cost(peer_outcome)) and (own_cost := cost(outcome))
    ]
    return statistics.median(pairs) if pairs else None


def plugin_for(name: str) -> str:
    """The plugin on the event loop of a contender."""
    return f"{PLUGIN}-uvloop" if name.endswith("uvloop") else PLUGIN


def against(peer: str, contenders: Contenders, name: str, cost: Cost) -> str:
    """A ratio as the table has it."""
    value = ratio(contenders.get(peer, []), contenders[name], cost)
    return "" if value is None else f"{value:.2f}"


def compared(contenders: Contenders, name: str, one: Cost, other: Cost) -> list[str]:
    """The ratios of a row, by two costs."""
    peer, also = plugin_for(name), name.replace(OURS, ALSO)
    cells = [against(peer, contenders, name, cost) for cost in (one, other)]
    if has_also(contenders):
        cells += [against(also, contenders, name, cost) if also != name else "" for cost in (one, other)]
    return cells


def has_also(contenders: Contenders) -> bool:
    return any(name.startswith(ALSO) for name in contenders)


def heads(contenders: Contenders, one: str, other: str) -> list[str]:
    """What is above the ratios of a row."""
    also = [f"× also, {one}", f"× also, {other}"] if has_also(contenders) else []
    return [f"× {one}", f"× {other}", *also]


def shown(name: str) -> str:
    return f"**{NAMES.get(name, name)}**" if name.startswith(OURS) else NAMES.get(name, name)


def per_second(workload: Workload, microseconds: float) -> str:
    """How much of it that is in a second."""
    rate = 1e6 / microseconds
    return f"{rate * workload.size / 1e6:,.0f} MB" if workload.rate == "MB" else f"{rate:,.0f}"


def rows(heads: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown whose first column is text and whose others are numbers."""
    lines = [heads, ["---", *["--:"] * (len(heads) - 1)], *body]
    return ["| " + " | ".join(line) + " |" for line in lines]


def by_cost(contenders: Contenders, cost: Cost) -> list[str]:
    """The names, the cheapest first."""
    return sorted(contenders, key=lambda name: statistics.median(costs(contenders[name], cost) or [1e18]))


def table(key: str, contenders: Contenders) -> list[str]:
    """The contenders of a workload, the fastest first."""
    workload = WORKLOADS[key]
    scale, unit = (1000, "ms") if key in WHOLE else (1, "µs")
    rate = [f"{workload.rate} a second"] if workload.rate else []
    head = [
        "",
        f"median, {unit}",
        f"spread, {unit}",
        f"CPU, {unit}",
        *rate,
        *heads(contenders, "clock", "CPU"),
        "wrong",
    ]
    body = []
    for name in by_cost(contenders, clock):
        outcomes = contenders[name]
        wrong = f"{sum(outcome['wrong'] for outcome in outcomes):,}"
        values = costs(outcomes, clock)
        if not values:
            body.append([shown(name), *[""] * (len(head) - 2), wrong])
            continue
        middle = statistics.median(values)
        body.append(
            [
                shown(name),
                f"{middle / scale:,.1f}",
                f"{min(values) / scale:,.1f} – {max(values) / scale:,.1f}",
                f"{statistics.median(costs(outcomes, cpu)) / scale:,.1f}",
                *([per_second(workload, middle)] if workload.rate else []),
                *compared(contenders, name, clock, cpu),
                wrong,
            ]
        )
    return rows(head, body)


def idle_table(contenders: Contenders) -> list[str]:
    """What idle connections cost, in memory and in processor time."""
    head = ["", "KiB each", f"CPU each in {IDLE_SECONDS} s, µs", *heads(contenders, "memory", "CPU"), "wrong"]
    body = []
    for name in by_cost(contenders, memory):
        outcomes = contenders[name]
        if costs(outcomes, memory):
            body.append(
                [
                    shown(name),
                    f"{statistics.median(costs(outcomes, memory)) / 1024:.1f}",
                    f"{statistics.median(costs(outcomes, cpu)):,.0f}",
                    *compared(contenders, name, memory, cpu),
                    f"{sum(outcome['wrong'] for outcome in outcomes):,}",
                ]
            )
    return [IDLE.format(seconds=IDLE_SECONDS, heartbeat=HEARTBEAT), "", *rows(head, body)]


def summary(results: dict[str, Contenders]) -> list[str]:
    """All workloads at a glance: each event loop, and the fastest library by hand."""
    body = []
    for key, contenders in results.items():
        if key == "growth":
            continue
        costs_of = (memory, cpu) if key == "idle" else (clock, cpu)
        best = next((name for name in by_cost(contenders, costs_of[0]) if name in LIBRARIES), None)
        cells = [glance(key, contenders, f"{OURS}-{loop}", costs_of) for loop in LOOPS]
        cells.append(f"{best} {glance(key, contenders, best, costs_of)}" if best else "")
        body.append([WORKLOADS[key].title, *cells])
    return rows(["× clock / CPU, or by the second", *LOOPS, "first by hand"], body)


def glance(key: str, contenders: Contenders, name: str, costs_of: tuple[Cost, Cost]) -> str:
    """A contender in a few characters: how much it does by the second, if that is what counts, or its ratios."""
    if name not in contenders:
        return ""
    values = costs(contenders[name], clock)
    if WORKLOADS[key].rate and values:
        return per_second(WORKLOADS[key], statistics.median(values))
    ratios = (against(plugin_for(name), contenders, name, cost) for cost in costs_of)
    return " / ".join(filter(None, ratios))


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


def report(about: str, rounds: int, results: dict[str, Contenders]) -> str:
    """All workloads, one after the other."""
    also = ALSO_SAYS if any(has_also(contenders) for contenders in results.values()) else ""
    said = f"{rounds} round{'s' if rounds > 1 else ''}"
    lines = [INTRODUCTION.format(about=about, rounds=said, also=also), *summary(results), ""]
    for key, contenders in results.items():
        if key == "growth":
            lines += ["## Growth", "", GROWTH, *growth_table(contenders), ""]
        else:
            lines += [f"## {WORKLOADS[key].title[0].upper()}{WORKLOADS[key].title[1:]}", ""]
            lines += [*(idle_table(contenders) if key == "idle" else table(key, contenders)), ""]
    return "\n".join(lines).strip() + "\n"


def drawn(results: dict[str, Contenders]) -> dict[str, dict[str, list[float | None]]]:
    """What the plot shows: by workload and event loop, how many times as fast, on the clock and on the processor."""
    return {
        WORKLOADS[key].title: {
            loop: [
                ratio(contenders.get(plugin_for(loop), []), contenders.get(f"{OURS}-{loop}", []), cost)
                for cost in (clock, cpu)
            ]
            for loop in LOOPS
        }
        for key, contenders in results.items()
        if key not in {"idle", "growth"}
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("outcomes", type=Path, help="the JSON file that run wrote")
    parser.add_argument("--table", type=Path, help="the file to write the tables to, besides printing them")
    parser.add_argument("--plot", type=Path, help="the file to draw the plot in")
    options = parser.parse_args()
    outcomes = json.loads(options.outcomes.read_text(encoding="utf-8"))
    results = {key: outcomes["results"][key] for key in WORKLOADS if key in outcomes["results"]}
    text = report(outcomes["about"], outcomes["rounds"], results)
    print(text)
    if options.table:
        options.table.write_text(text, encoding="utf-8")
    if options.plot:
        draw(drawn(results), options.plot)


if __name__ == "__main__":
    main()
