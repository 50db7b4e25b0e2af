"""The options of `ddimctl evaluate` and `ddimctl reference`, as options.py declares them.

The words of each Literal are those of the layer that implements them; a test compares the two.
"""

from pathlib import Path
from typing import Annotated, Literal

from typer import Argument

from ddimctl.cli.options.common import OUTPUT, option
from ddimctl.cli.options.parse import MAX_IMAGES
from ddimctl.cli.options.sample import IMAGES, METHOD, Kind

SCORES = "Scores"

Metric = Literal["swd", "fid", "kid"]
AddedVariance = Literal["large", "learned"]
PresetName = Literal["paper-cifar10", "paper-celeba", "paper-bedroom", "paper-church"]

Data = Annotated[
    Path | None,
    option(
        "--data",
        panel=SCORES,
        metavar="DIR|ZIP",
        show_default=False,
        text="The pictures to compare with, prepared as `train` does.",
    ),
]
Reference = Annotated[
    Path | None,
    option(
        "--reference",
        panel=SCORES,
        metavar="FILE",
        show_default=False,
        text="Instead of --data, what `ddimctl reference` kept of it.",
    ),
]
Samples = Annotated[
    Path | None,
    option(
        "--samples",
        panel=SCORES,
        metavar="DIR|ZIP",
        show_default=False,
        text="Score these pictures; sample nothing, write nothing.",
    ),
]
Metrics = Annotated[
    str | None,
    option(
        "--metric",
        panel=SCORES,
        metavar="LIST",
        show_default="swd; with --preset all",
        text="Any of swd (needs nothing), fid and kid (need the extra named fid).",
    ),
]
Inception = Annotated[
    Path | None,
    option(
        "--inception",
        panel=SCORES,
        metavar="FILE",
        show_default="downloaded once",
        text="torch-fidelity's weights of the network of FID and KID.",
    ),
]
Repeats = Annotated[
    int,
    option(
        "--repeats",
        panel=SCORES,
        min=1,
        max=100,
        metavar="K",
        text="Score K sets of further seeds: mean and half the range.",
    ),
]
Preset = Annotated[
    PresetName | None,
    option(
        "--preset",
        panel=METHOD,
        metavar="NAME",
        show_default=False,
        text="Timesteps, S, eta and numbers of the paper's tables: paper-cifar10, -celeba, "
        "-bedroom, -church.",
    ),
]
StepsList = Annotated[
    str | None,
    option(
        "--steps",
        panel=METHOD,
        metavar="LIST",
        show_default="10,20,50,100; with --tau auto 10,20,50",
        text="Numbers of steps: the table's columns.",
    ),
]
TauKind = Annotated[
    Kind | None,
    option(
        "--tau",
        panel=METHOD,
        show_default="linspace; a preset's own",
        text="Visited timesteps; auto chooses them for the checkpoint, for each S up to 50.",
    ),
]
Etas = Annotated[
    str | None,
    option(
        "--eta",
        panel=METHOD,
        metavar="LIST",
        show_default="0,0.2,0.5,1",
        text="Noise of each step: the table's rows.",
    ),
]
Variances = Annotated[
    str | None,
    option(
        "--variance",
        panel=METHOD,
        metavar="LIST",
        show_default="none; a preset's own",
        text="More rows: large (the paper's), learned (the network's).",
    ),
]
Number = Annotated[
    int | None,
    option(
        "-n",
        "--num",
        panel=IMAGES,
        min=2,
        max=MAX_IMAGES,
        metavar="N",
        show_default="10000; with --preset 50000; of --samples all",
        text="Pictures in each cell, exactly.",
    ),
]
Background = Annotated[
    str | None,
    option(
        "--background",
        panel=SCORES,
        metavar="COLOUR",
        show_default="the checkpoint's or reference's, else black",
        text="Under transparent pixels: black, white, #rrggbb or r,g,b.",
    ),
]
Resume = Annotated[
    bool,
    option("--resume", panel=OUTPUT, text="Go on with the evaluation in --out, if there is one."),
]

# --- reference ----------------------------------------------------------------------------------

DataArgument = Annotated[
    Path, Argument(metavar="DATA", show_default=False, help="A folder or a zip of pictures.")
]
Out = Annotated[
    Path | None,
    option(
        "--out",
        "-o",
        panel=OUTPUT,
        metavar="FILE",
        show_default="DATA.reference.safetensors",
        text="The file to write.",
    ),
]
Size = Annotated[
    str | None,
    option(
        "--size",
        panel=SCORES,
        metavar="HxW",
        show_default="the pictures' own",
        text="Crop and resize to these pixels.",
    ),
]
ColourUnder = Annotated[
    str,
    option(
        "--background",
        panel=SCORES,
        metavar="COLOUR",
        text="Under transparent pixels: black, white, #rrggbb or r,g,b.",
    ),
]
ReferenceMetrics = Annotated[
    str,
    option("--metric", panel=SCORES, metavar="LIST", text="For any of swd, fid, kid."),
]
