"""The options of `ddimctl train`, as options.py declares them.

The words of each Literal are those of the layer that implements them; a test compares the two.
"""

from pathlib import Path
from typing import Annotated, Literal

from typer import Argument

from ddimctl.cli.options.common import finite, option

DATA = "Data"
LEARNING = "Learning"
RUN = "Run"

Prediction = Literal["eps", "x_0", "v"]
ScheduleKind = Literal["linear", "scaled_linear", "cosine", "sigmoid"]
Weighting = Literal["simple", "min-snr"]
Decay = Literal["cosine", "constant"]
SavedPrecision = Literal["fp32", "fp16"]
LogKind = Literal["tensorboard"]
Channels = Literal["1", "3"]

Data = Annotated[
    Path,
    Argument(metavar="DATA", help="A folder or a zip of pictures: PNG, JPEG, WebP."),
]
Run = Annotated[
    Path,
    option("--out", "-o", panel=RUN, metavar="RUN", text="The run's folder."),
]
ImageSize = Annotated[
    str | None,
    option(
        "--image-size",
        panel=DATA,
        metavar="HxW",
        show_default="the pictures' own",
        text="Crop and resize to these pixels.",
    ),
]
ChannelCount = Annotated[Channels, option("--channels", panel=DATA, text="3 is RGB, 1 is gray.")]
Background = Annotated[
    str,
    option(
        "--background",
        panel=DATA,
        metavar="COLOUR",
        text="Under transparent pixels: black, white, #rrggbb or r,g,b.",
    ),
]
Flip = Annotated[bool, option("--flip", panel=DATA, text="Mirror half of the pictures.")]
ClassConditional = Annotated[
    bool, option("--class-conditional", panel=DATA, text="Folders are classes to be learned.")
]
LabelDropout = Annotated[
    str,
    option(
        "--label-dropout",
        panel=DATA,
        metavar="SHARE",
        text="Labels hidden, so that --guidance will work; 0.1 or 10%.",
    ),
]
Holdout = Annotated[
    str,
    option(
        "--holdout",
        panel=DATA,
        metavar="SHARE",
        text="Pictures kept aside to measure the loss on; 0.02 or 2%.",
    ),
]
Strict = Annotated[bool, option("--strict", panel=DATA, text="Fail on an unreadable picture.")]

TrainSteps = Annotated[
    int, option("--steps", panel=LEARNING, min=1, metavar="N", text="Updates of the network.")
]
TrainBatch = Annotated[
    int, option("--batch-size", panel=LEARNING, min=1, metavar="B", text="Pictures in an update.")
]
GradAccum = Annotated[
    int,
    option(
        "--grad-accum",
        panel=LEARNING,
        min=1,
        metavar="N",
        text="Parts that a batch is computed in, to save memory.",
    ),
]
LearningRate = Annotated[
    float,
    option(
        "--lr",
        panel=LEARNING,
        min=0,
        callback=finite,
        metavar="RATE",
        text="Learning rate (AdamW).",
    ),
]
Warmup = Annotated[
    int,
    option("--warmup", panel=LEARNING, min=0, metavar="N", text="Updates until --lr is reached."),
]
LearningRateDecay = Annotated[
    Decay,
    option("--lr-decay", panel=LEARNING, text="Of --lr after the warmup, down to the last step."),
]
WeightDecay = Annotated[
    float,
    option(
        "--weight-decay",
        panel=LEARNING,
        min=0,
        callback=finite,
        metavar="W",
        text="Weight decay (AdamW).",
    ),
]
ClipGrad = Annotated[
    float,
    option(
        "--clip-grad",
        panel=LEARNING,
        min=0,
        callback=finite,
        metavar="NORM",
        text="Largest norm of the gradient; 0 does not clip.",
    ),
]
Ema = Annotated[
    float,
    option(
        "--ema",
        panel=LEARNING,
        min=0,
        max=1,
        callback=finite,
        metavar="DECAY",
        text="Decay of the weights' moving average, which is what the checkpoint holds.",
    ),
]
TrainSeed = Annotated[
    int, option("--seed", panel=LEARNING, min=0, metavar="K", text="Decides every random number.")
]
Architecture = Annotated[
    str | None,
    option(
        "--model",
        panel=LEARNING,
        metavar="NAME|FILE",
        show_default="small",
        text="tiny, small, cifar10, celebahq256, or the config.json of a UNet2DModel.",
    ),
]
Init = Annotated[
    str | None,
    option(
        "--init",
        panel=LEARNING,
        metavar="CKPT",
        text="Start from this checkpoint instead, named as elsewhere by --ckpt.",
    ),
]
ScheduleOf = Annotated[
    ScheduleKind | None,
    option(
        "--schedule",
        panel=LEARNING,
        metavar="KIND",
        show_default="linear, or --init's",
        text="Noise schedule: linear, scaled_linear, cosine, sigmoid.",
    ),
]
PredictionOf = Annotated[
    Prediction | None,
    option(
        "--prediction",
        panel=LEARNING,
        show_default="eps, or --init's",
        text="What the network is to say: the noise, the image, or v.",
    ),
]
LossWeighting = Annotated[
    Weighting, option("--loss-weighting", panel=LEARNING, text="How timesteps count in the loss.")
]

TimeLimit = Annotated[
    str | None,
    option(
        "--time-limit",
        panel=RUN,
        metavar="TIME",
        text="Stop after 90s, 30m, 2h30m, 1d; --resume goes on.",
    ),
]
SaveEvery = Annotated[
    int, option("--save-every", panel=RUN, min=1, metavar="N", text="Steps between saved states.")
]
SampleEvery = Annotated[
    int,
    option("--sample-every", panel=RUN, min=1, metavar="N", text="Steps between sample grids."),
]
LogEvery = Annotated[
    int, option("--log-every", panel=RUN, min=1, metavar="N", text="Steps between metrics.")
]
Log = Annotated[
    LogKind | None,
    option("--log", panel=RUN, text="Curves and samples in RUN/tensorboard too, as they come."),
]
SavedWeights = Annotated[
    SavedPrecision,
    option("--weights-dtype", panel=RUN, text="Numbers that the checkpoint's file holds."),
]
ResumeTraining = Annotated[
    bool, option("--resume", panel=RUN, text="Go on from RUN's last state, if there is one.")
]
Restart = Annotated[bool, option("--force", panel=RUN, text="Begin again where RUN holds a run.")]
