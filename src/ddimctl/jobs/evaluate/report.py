"""What an evaluation leaves to read: tables, a curve, the same seeds side by side, a page of all."""

import base64
import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Final

import torch

from ddimctl.files.atomic import write_bytes, write_json
from ddimctl.files.pictures.grids import GRID_LIMIT, make_grid
from ddimctl.files.pictures.images import encode_image, fit_image, image_pixels, read_image
from ddimctl.files.pictures.plots import line_plot, stack_plots
from ddimctl.jobs.evaluate.paper_tables import Row, is_within_band
from ddimctl.metrics.measure import METRICS

FILES: Final = ("table.csv", "table.json", "curve.png", "seeds.png", "index.html")
SHOWN: Final = 8
"""How many seeds of each cell are shown side by side."""

TITLES: Final = {
    "swd": "Sliced Wasserstein distance of patches, in levels of 255 (not FID)",
    "fid": "FID",
    "kid": "KID",
}
_LABELS: Final = {"large": "σ̂", "learned": "learned"}
_LARGEST_SHOWN: Final = 128  # pixels


@dataclass(frozen=True)
class ReportFolder:
    """Where it goes; settings: plain values, told with the rows; preset: whose numbers are shown."""

    out: Path
    settings: dict[str, Any]
    preset: str | None


@dataclass(frozen=True)
class Table:
    """Of one metric, as the paper's Table 1: a line for each eta, a column for each S."""

    title: str
    columns: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


def combine(
    found: Sequence[Mapping[str, float]], paper: float | None, judged: bool
) -> dict[str, Any]:
    """Mean, and half the range of repeats, of every score; and how FID stands to the paper's.

    judged: whether the two are of one experiment, so that a difference says something.
    """
    row: dict[str, Any] = {}
    for name in found[0]:
        values = [scores[name] for scores in found]
        row[name] = sum(values) / len(values)
        if name in METRICS:
            row[f"{name}_half_range"] = (max(values) - min(values)) / 2 if len(values) > 1 else None
    if paper is not None and "fid" in row:
        row["paper_fid"] = paper
        row["within_band"] = is_within_band(row["fid"], paper) if judged else None
    return row


def tables(rows: Sequence[Mapping[str, Any]]) -> list[Table]:
    """A table of each metric that the rows hold."""
    steps = list(dict.fromkeys(row["steps"] for row in rows))
    cells = {(row_label(row), row["steps"]): row for row in rows}
    labels = list(dict.fromkeys(label for label, _ in cells))
    return [
        Table(
            TITLES[metric],
            ("S", *map(str, steps)),
            tuple(
                (label, *(_cell(cells.get((label, S)), metric) for S in steps)) for label in labels
            ),
        )
        for metric in METRICS
        if any(metric in row for row in rows)
    ]


def row_label(row: Mapping[str, Any]) -> str:
    """Such as "η = 0.2" or "σ̂"."""
    if row["eta"] is not None:
        return f"η = {row['eta']:g}"
    return _LABELS[row["variance"]]


def write_report(
    report: ReportFolder,
    rows: Sequence[dict[str, Any]],
    shown: Iterable[tuple[Row, int, list[Path]]],
) -> None:
    """Write FILES into the folder, over what is there. shown: row, S, image files of the seeds."""
    columns = dict.fromkeys(name for row in rows for name in row)
    text = io.StringIO()
    table = csv.DictWriter(text, list(columns), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    curve, seeds = _curve(rows), _seed_grid(shown, report.settings["size"])
    page = _page(report, tables(rows), curve, seeds)
    write_bytes(report.out / "table.csv", text.getvalue().encode())
    write_json(report.out / "table.json", {"settings": report.settings, "rows": list(rows)})
    write_bytes(report.out / "curve.png", curve)
    write_bytes(report.out / "seeds.png", seeds)
    write_bytes(report.out / "index.html", page.encode())


def _cell(row: Mapping[str, Any] | None, metric: str) -> str:
    if row is None:
        return "-"
    text = f"{row[metric]:#.4g}"
    if row[f"{metric}_half_range"] is not None:
        text += f" ± {row[f'{metric}_half_range']:#.2g}"
    if metric == "fid" and "paper_fid" in row:
        verdict = {True: ", ok", False: ", off", None: ""}[row["within_band"]]
        text += f" ({row['paper_fid']:g}{verdict})"
    return text


def _curve(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Each metric against the evaluations that an image costs, a line for each eta."""
    plots = []
    for metric in METRICS:
        series: dict[str, list[tuple[float, float]]] = {}
        for row in rows:
            # Pillow's font has no Greek
            name = row["variance"] if row["eta"] is None else f"eta {row['eta']:g}"
            if metric in row:
                series.setdefault(name, []).append((row["evaluations"], row[metric]))
        if series:
            points = {name: sorted(found) for name, found in series.items()}
            plots.append(line_plot(points, "evaluations an image", TITLES[metric], log_x=True))
    return encode_image(stack_plots(plots))


def _seed_grid(shown: Iterable[tuple[Row, int, list[Path]]], size: Sequence[int]) -> bytes:
    """A line of images for each cell, by eta, then S; the same seed in each column."""
    cells = sorted(shown, key=lambda cell: (isinstance(cell[0], str), cell[0], cell[1]))
    height, width = size
    shrink = max(1, -(-max(height, width) // _LARGEST_SHOWN))
    pixels, labels = [], []
    for row, steps, files in cells[: GRID_LIMIT // SHOWN]:
        name = row if isinstance(row, str) else f"eta {row:g}"
        labels += [f"{name}, S = {steps}", *[""] * (len(files) - 1)]
        for file in files:
            image = read_image(file, 3)
            pixels.append(image_pixels(fit_image(image, (height // shrink, width // shrink))))
    columns = len(cells[0][2])
    return encode_image(make_grid(torch.stack(pixels), columns, labels=labels))


_STYLE: Final = """
:root { color-scheme: light dark; --ink: #1d1f24; --soft: #5c6370; --line: #d9dce2; --page: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8ec; --soft: #a2a8b4; --line: #3a3e47; --page: #1b1d23; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page);
  max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2.5rem; }
p, dt { color: var(--soft); }
div { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .9rem; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child { text-align: left; }
img { max-width: 100%; border-radius: 6px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; }
dd { margin: 0; overflow-wrap: anywhere; }
"""


def _page(report: ReportFolder, found: Sequence[Table], curve: bytes, seeds: bytes) -> str:
    """One file that needs no other."""
    settings, compared = report.settings, report.settings["reference"]
    name = str(settings["checkpoint"].get("name"))
    notes = [
        f"{settings['pictures']:,} images a cell against {compared['pictures']:,} of the data."
    ]
    if settings["repeats"] > 1:
        notes.append(f"Mean of {settings['repeats']} repeats ± half their range.")
    unlike = settings.get("unlike_the_paper", [])
    if report.preset:
        notes.append(f"{report.preset}: FID in brackets is the paper's.")
    if unlike:
        notes.append(f"It is not judged, since here are {'; '.join(unlike)}.")
    parts = [
        f"<h1>{escape(name)}</h1>",
        f"<p>{escape(' '.join(notes))} Lower is better.</p>",
        *(_html_table(table) for table in found),
        "<h2>Score against evaluations</h2>",
        _html_image(curve, "Score against evaluations, one line for each eta"),
        "<h2>The same seeds in every cell</h2>",
        "<p>Each column begins with the same x_T.</p>",
        _html_image(seeds, "Samples of the same seeds at every eta and S"),
        "<h2>Settings</h2>",
        "<dl>",
        *(
            f"<dt>{escape(key.replace('_', ' '))}</dt><dd>{escape(_plain(value))}</dd>"
            for key, value in _facts(settings).items()
            if value not in (None, "", [], {})
        ),
        "</dl>",
        "<h2>Timesteps</h2>",
        *(
            f"<details><summary>{escape(name)}: {len(tau)} evaluations</summary>"
            f"<p>{escape(_plain(tau))}</p></details>"
            for name, tau in settings["timesteps"].items()
        ),
    ]
    head = (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>ddimctl evaluate: {escape(name)}</title>\n<style>{_STYLE}</style>\n"
    )
    return head + "\n".join(parts) + "\n</html>\n"


def _facts(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that the page lists, by name."""
    elsewhere = ("checkpoint", "reference", "timesteps", "unlike_the_paper")
    compared = settings["reference"]
    data = {name: compared[name] for name in ("fingerprint", "size", "channels", "background")}
    found = {key: value for key, value in settings.items() if key not in elsewhere}
    found |= {f"checkpoint {key}": value for key, value in settings["checkpoint"].items()}
    found |= {f"data {key}": value for key, value in data.items()}
    for name in ("size", "data size"):
        found[name] = "x".join(map(str, found[name]))
    return found


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in table.columns)
    lines = [
        f"<tr><th>{escape(line[0])}</th>{''.join(f'<td>{escape(text)}</td>' for text in line[1:])}"
        "</tr>"
        for line in table.lines
    ]
    return (
        f"<h2>{escape(table.title)}</h2>\n<div><table>\n<tr>{head}</tr>\n"
        + "\n".join(lines)
        + "\n</table></div>"
    )


def _html_image(content: bytes, text: str) -> str:
    data = base64.b64encode(content).decode()
    return f'<img alt="{escape(text)}" src="data:image/png;base64,{data}">'


def _plain(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
