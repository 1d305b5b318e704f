"""Several runs of one recipe side by side: a Markdown table, and their curves as one drawing.

``python tools/compare_runs.py "seed 0=runs/a" "shuffled rewards=runs/b" --chart curves.svg``
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from palestra.learning.metrics import Interval
from palestra.report.comparison import Measured, compare
from palestra.report.curves import Point, Series, curve_chart
from palestra.report.run_record import RunRecord, read_run
from palestra.report.time_use import total_s
from palestra.report.words import duration, percent
from palestra.run.directory import RunDirectory

_COLOURS = ("#2f6f4f", "#b0562c", "#3b5fa8", "#8a8f98", "#8b3f8f", "#a08a1c")
_STYLE = """
text { font: 11px system-ui, sans-serif; fill: #7a808a }
line { stroke: #8a8f9855 } .line { fill: none; stroke-width: 1.8 }
"""


def main() -> None:
    """Print the table, and write the drawing if it is wanted."""
    options = _options()
    records = {name: read_run(RunDirectory(path)) for name, path in map(_named, options.runs)}
    print(table(records))
    if options.chart is not None:
        options.chart.write_text(chart(records), encoding="utf-8")


def table(records: Mapping[str, RunRecord]) -> str:
    """A row for each run: held-out rates before and after with 95 % intervals, and the time."""
    lines = [
        "| run | mode | before | after | intervals | steps | time |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, record in records.items():
        for c in compare(record.evaluations):
            apart = {None: "", True: "apart", False: "overlap"}[c.is_separate]
            facts = f"{apart} | {len(record.steps)} | {duration(total_s(record))}"
            lines.append(f"| {name} | {c.mode} | {_rate(c.before)} | {_rate(c.after)} | {facts} |")
    return "\n".join(lines)


def chart(records: Mapping[str, RunRecord]) -> str:
    """The share of training episodes solved, by step; a file that stands alone."""
    series = [
        Series(
            name=name,
            points=[Point(step=s, value=v) for s, v in record.series("solve_rate")],
            style=number,
        )
        for number, (name, record) in enumerate(records.items(), start=1)
    ]
    colours = "".join(
        f".line.s{n} {{ stroke: {colour} }} .dot.s{n}, .end.s{n} {{ fill: {colour} }}\n"
        for n, colour in enumerate(_COLOURS, start=1)
    )
    drawn = curve_chart("Training episodes solved", series, show=percent, low=0.0, high=1.0)
    style = f"<style>{_STYLE}{colours}.dot.faint {{ opacity: .3 }}</style>"
    head, rest = str(drawn).split(">", 1)
    return f'{head} xmlns="http://www.w3.org/2000/svg">{style}{rest}\n'


def _rate(measured: Measured | None) -> str:
    if measured is None or measured.rate is None or measured.interval is None:
        return "not measured"
    return f"{percent(measured.rate)} {_bounds(measured.interval)}"


def _bounds(interval: Interval) -> str:
    return f"({100 * interval.low:.1f} to {100 * interval.high:.1f})"


def _named(argument: str) -> tuple[str, Path]:
    name, _, path = argument.rpartition("=")
    return name or Path(path).name, Path(path)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="compare_runs", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="NAME=FOLDER", help=f"at most {len(_COLOURS)}")
    parser.add_argument("--chart", type=Path, help="an SVG file to write")
    return parser.parse_args()


if __name__ == "__main__":
    main()
