"""The options of `ddimctl invert` and `ddimctl reconstruct`, as options.py declares them."""

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer
from typer import Argument

from ddimctl.cli.options.common import MACHINE, OUTPUT, beginning, finite, option, reachable
from ddimctl.cli.options.parse import MAX_IMAGES
from ddimctl.cli.options.sample import IMAGES, FixedKind

INVERSION = "Inversion"

Method = Literal["exact", "fixed-point", "naive"]
Fit = Literal["crop", "pad", "stretch"]
InversionPrecision = Literal["fp32", "bf16", "fp16"]


def _above_zero(value: Any) -> Any:
    if finite(value) is not None and value <= 0:
        raise typer.BadParameter("it must be above 0.")
    return value


Photos = Annotated[
    list[Path],
    Argument(
        metavar="PHOTO|DIR",
        show_default=False,
        callback=reachable,
        help="Pictures, and folders of them.",
    ),
]
Steps = Annotated[
    int | None,
    option(
        "--steps",
        panel=INVERSION,
        min=1,
        metavar="S",
        show_default="50, or as many as --tau lists",
        text="Of the way down that is inverted; more come nearer.",
    ),
]
Tau = Annotated[
    str | None,
    option(
        "--tau",
        panel=INVERSION,
        show_default="linspace",
        metavar="KIND|LIST",
        autocompletion=beginning(get_args(FixedKind)),
        text="Visited timesteps: linspace, trailing, uniform, quadratic, a list such as 0,250,999, "
        "or a file of them.",
    ),
]
MethodOf = Annotated[
    Method,
    option(
        "--method",
        panel=INVERSION,
        text="Solve each step; by the plain iteration; or follow the ODE, one evaluation a step.",
    ),
]
Tolerance = Annotated[
    float,
    option(
        "--tolerance",
        panel=INVERSION,
        callback=_above_zero,
        metavar="X",
        text="Largest error of a solved step; a level of 255 is 0.008.",
    ),
]
FitTo = Annotated[
    Fit, option("--fit", panel=IMAGES, text="How a picture of another shape gets the model's.")
]
Class = Annotated[
    str | None,
    option(
        "--class",
        panel=IMAGES,
        metavar="NAME",
        show_default="none, the null class",
        text="Class name or index of the pictures.",
    ),
]
Out = Annotated[
    Path | None,
    option(
        "--out",
        "-o",
        panel=OUTPUT,
        callback=reachable,
        metavar="DIR",
        show_default="the current folder",
        text="Where to write NAME.pt and NAME.inversion.png.",
    ),
]
Overwrite = Annotated[bool, option("--force", panel=OUTPUT, text="Overwrite files of that name.")]
NetworkPrecision = Annotated[
    InversionPrecision,
    option(
        "--precision",
        panel=MACHINE,
        text="Numbers that the network computes in; exact inversion is in fp32.",
    ),
]

# --- reconstruct --------------------------------------------------------------------------------

Data = Annotated[
    Path, Argument(metavar="DATA", show_default=False, help="A folder or a zip of pictures.")
]
StepsList = Annotated[
    str, option("--steps", panel=INVERSION, metavar="LIST", text="Numbers of steps to compare.")
]
DecodeSteps = Annotated[
    str | None,
    option(
        "--decode-steps",
        panel=INVERSION,
        metavar="LIST",
        show_default="those of the inversion",
        text="Decode each latent in these numbers of steps.",
    ),
]
Methods = Annotated[
    str,
    option(
        "--method", panel=INVERSION, metavar="LIST", text="Any of exact, fixed-point and naive."
    ),
]
TauKind = Annotated[
    FixedKind,
    option("--tau", panel=INVERSION, text="Visited timesteps."),
]
Limit = Annotated[
    int | None,
    option(
        "--limit",
        panel=IMAGES,
        min=1,
        max=MAX_IMAGES,
        metavar="N",
        show_default="all",
        text="At most that many pictures, drawn from all of them.",
    ),
]
Holdout = Annotated[
    str | None,
    option(
        "--holdout",
        panel=IMAGES,
        metavar="SHARE",
        text="Only the pictures that `train --holdout` with this share keeps aside.",
    ),
]
