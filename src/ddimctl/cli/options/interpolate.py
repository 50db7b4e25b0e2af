"""The options of `ddimctl interpolate`, as options.py declares them."""

from pathlib import Path
from typing import Annotated, Literal

from typer import Argument

from ddimctl.cli.options.common import OUTPUT, finite, option
from ddimctl.cli.options.sample import IMAGES

PATH = "Path"

PathKind = Literal["slerp", "lerp"]
VideoFormat = Literal["gif", "webp", "mp4"]

Inputs = Annotated[
    list[Path] | None,
    Argument(
        metavar="FILE",
        show_default=False,
        help="Latent files (.pt, .safetensors; every latent in them) and pictures, in order.",
    ),
]
EndSeeds = Annotated[
    str | None,
    option(
        "--seeds",
        panel=IMAGES,
        metavar="LIST",
        text="The noise of these seeds, such as 3,9; after the files.",
    ),
]
Class = Annotated[
    str | None,
    option(
        "--class",
        panel=IMAGES,
        metavar="NAME",
        show_default="the inputs' own, if they agree",
        text="Class name or index of all frames.",
    ),
]
Frames = Annotated[
    int | None,
    option(
        "--frames",
        panel=PATH,
        min=2,
        max=9999,
        metavar="N",
        show_default="16",
        text="In all: every input is one, the ways between share the rest evenly.",
    ),
]
PathOf = Annotated[
    PathKind, option("--path", panel=PATH, text="On the sphere, or on the straight line.")
]
Loop = Annotated[
    bool,
    option("--loop", panel=PATH, text="Back to the first input, which is not repeated at the end."),
]
Grid = Annotated[
    str | None,
    option(
        "--grid",
        panel=PATH,
        metavar="ROWSxCOLUMNS",
        text="Instead of a path, all that lies between four inputs, the corners.",
    ),
]
Video = Annotated[
    VideoFormat | None,
    option(
        "--video", panel=OUTPUT, text="Also a video of the frames; mp4 needs the extra 'video'."
    ),
]
FramesPerSecond = Annotated[
    float,
    option("--fps", panel=OUTPUT, callback=finite, metavar="F", text="Frames a second of it."),
]
