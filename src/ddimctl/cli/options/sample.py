"""The options of `ddimctl sample`, as options.py declares them.

The words of each Literal are those of the layer that implements them; a test compares the two.
"""

from pathlib import Path
from typing import Annotated, Final, Literal, get_args

from ddimctl.cli.options.common import MACHINE, OUTPUT, beginning, finite, option, reachable
from ddimctl.cli.options.parse import MAX_IMAGES

SAVED: Final = ("grid", "images", "latents", "samples", "trajectory")

METHOD = "Sampling"
IMAGES = "Which images"

Variance = Literal["eta", "large", "learned"]
Clip = Literal["none", "static", "dynamic"]
Solver = Literal["ddim", "ipndm", "dpm++2m"]
ImageFormat = Literal["png", "webp"]

Steps = Annotated[
    int | None,
    option(
        "--steps",
        panel=METHOD,
        min=1,
        metavar="S",
        show_default="20, or as many as --tau lists",
        text="Network evaluations for each image.",
    ),
]
FixedKind = Literal["linspace", "trailing", "uniform", "quadratic"]
Kind = Literal[FixedKind, "auto"]
Tau = Annotated[
    str | None,
    option(
        "--tau",
        panel=METHOD,
        show_default="linspace",
        metavar="KIND|LIST",
        autocompletion=beginning(get_args(Kind)),
        text="Visited timesteps: linspace, trailing, uniform, quadratic, auto (chosen for this "
        "checkpoint), a list such as 0,250,999, or a file of them.",
    ),
]
Eta = Annotated[
    float | None,
    option(
        "--eta",
        panel=METHOD,
        min=0,
        max=1,
        callback=finite,
        metavar="X",
        show_default="0, or 1 with --variance large or learned",
        text="Noise of each step: 0 is DDIM, 1 is DDPM.",
    ),
]
VarianceOf = Annotated[
    Variance | None,
    option(
        "--variance",
        panel=METHOD,
        show_default="eta",
        text="Size of that noise: by --eta, the paper's large one, or what the network learned.",
    ),
]
SolverOf = Annotated[
    Solver | None,
    option(
        "--solver",
        panel=METHOD,
        show_default="ddim",
        text="ddim, or its higher orders, which come nearer in few steps and add no noise.",
    ),
]
ClipTo = Annotated[
    Clip | None,
    option(
        "--clip",
        panel=METHOD,
        show_default="none",
        text="Hold each step's predicted image in -1 ... 1: static cuts, dynamic scales.",
    ),
]
Guidance = Annotated[
    float | None,
    option(
        "--guidance",
        panel=METHOD,
        callback=finite,
        metavar="W",
        show_default="1",
        text="How strongly to follow the class (classifier-free guidance); 1 is none.",
    ),
]


Seeds = Annotated[
    str | None,
    option("--seeds", panel=IMAGES, metavar="LIST", text="One image for each, such as 0-63,70."),
]
Number = Annotated[
    int | None,
    option(
        "-n",
        "--num",
        panel=IMAGES,
        min=1,
        max=MAX_IMAGES,
        metavar="N",
        show_default="16",
        text="That many images, with seeds from --seed on.",
    ),
]
Seed = Annotated[
    int | None,
    option(
        "--seed",
        panel=IMAGES,
        min=0,
        metavar="K",
        show_default="0",
        text="The first image's seed.",
    ),
]
Classes = Annotated[
    str | None,
    option(
        "--class",
        panel=IMAGES,
        metavar="LIST",
        show_default="drawn by seed",
        text="Class names or indices; a list is dealt out by seed.",
    ),
]
Latents = Annotated[
    Path | None,
    option(
        "--latents",
        panel=IMAGES,
        metavar="FILE",
        text="Decode these x_T instead of seeds, with the settings recorded in the file.",
    ),
]
Size = Annotated[
    str | None,
    option(
        "--size",
        panel=IMAGES,
        metavar="HxW",
        show_default="the checkpoint's",
        text="Pixels; one number is a square.",
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
        show_default="the next number in runs/",
        text="The folder to write.",
    ),
]
Save = Annotated[
    str, option("--save", panel=OUTPUT, metavar="LIST", text=f"Any of {', '.join(SAVED)}.")
]
Scale = Annotated[
    int | None,
    option(
        "--scale",
        panel=OUTPUT,
        min=1,
        max=64,
        metavar="K",
        show_default="so that one can see them",
        text="Enlarge the grid's images K times.",
    ),
]
Columns = Annotated[
    int | None,
    option(
        "--columns",
        panel=OUTPUT,
        min=1,
        metavar="N",
        show_default="nearly square",
        text="Images in a row of the grid.",
    ),
]
Format = Annotated[
    ImageFormat, option("--format", panel=OUTPUT, text="File format of the pictures.")
]
Yes = Annotated[
    bool,
    option(
        "--yes",
        panel=IMAGES,
        text="Fetch the recorded checkpoint, if it is on the hub.",
    ),
]
Resume = Annotated[
    bool,
    option("--resume", panel=OUTPUT, text="Go on with the stopped run in --out, if there is one."),
]
DryRun = Annotated[
    bool, option("--dry-run", panel=OUTPUT, text="Print what would be done, and do nothing.")
]
NoMetadata = Annotated[
    bool, option("--no-metadata", panel=OUTPUT, text="Leave the settings out of the pictures.")
]
BatchSize = Annotated[
    int | None,
    option(
        "--batch-size",
        panel=MACHINE,
        min=1,
        metavar="B",
        show_default="what suits the device",
        text="Images at a time.",
    ),
]
Deterministic = Annotated[
    bool, option("--deterministic", panel=MACHINE, text="Same bytes each time on CUDA; slower.")
]
