"""`ddimctl train`: pictures in, a checkpoint out."""

import shlex
from dataclasses import asdict
from typing import Any

from ddimctl.cli.options import common as o
from ddimctl.cli.options import parse
from ddimctl.cli.options import train as own
from ddimctl.cli.output.console import print_result, run_job, say


def train(
    data: own.Data,
    out: own.Run,
    model: own.Architecture = None,
    init: own.Init = None,
    prediction: own.PredictionOf = None,
    schedule: own.ScheduleOf = None,
    steps: own.TrainSteps = 100_000,
    batch_size: own.TrainBatch = 64,
    grad_accum: own.GradAccum = 1,
    lr: own.LearningRate = 2e-4,
    lr_decay: own.LearningRateDecay = "cosine",
    warmup: own.Warmup = 500,
    weight_decay: own.WeightDecay = 0.0,
    clip_grad: own.ClipGrad = 1.0,
    loss_weighting: own.LossWeighting = "simple",
    ema: own.Ema = 0.9999,
    seed: own.TrainSeed = 0,
    image_size: own.ImageSize = None,
    channels: own.ChannelCount = "3",
    background: own.Background = "black",
    flip: own.Flip = False,
    class_conditional: own.ClassConditional = False,
    label_dropout: own.LabelDropout = "0.1",
    holdout: own.Holdout = "0",
    strict: own.Strict = False,
    time_limit: own.TimeLimit = None,
    save_every: own.SaveEvery = 1000,
    sample_every: own.SampleEvery = 1000,
    log_every: own.LogEvery = 50,
    log: own.Log = None,
    weights_dtype: own.SavedWeights = "fp32",
    resume: own.ResumeTraining = False,
    force: own.Restart = False,
    json: o.Json = False,
    device: o.Device = "auto",
    precision: o.Compute = None,
    compile: o.Compile = False,
    config: o.Config = None,
    debug: o.Debug = False,
) -> None:
    """Train a checkpoint on a folder or a zip of pictures.

    RUN/checkpoint is a diffusers folder that every command takes.
    A run that was stopped goes on with the same command and --resume.
    """
    settings: dict[str, Any] = {
        "image_size": parse.parse_size(image_size, "--image-size") if image_size else None,
        "background": parse.parse_colour(background, "--background"),
        "label_dropout": parse.parse_fraction(label_dropout, "--label-dropout"),
        "holdout": parse.parse_fraction(holdout, "--holdout"),
        "time_limit": parse.parse_duration(time_limit, "--time-limit") if time_limit else None,
        "channels": int(channels),
    }
    from ddimctl.jobs.train.job import train as job
    from ddimctl.jobs.train.request import TrainRequest

    request = TrainRequest(
        data=data,
        out=out,
        steps=steps,
        batch_size=batch_size,
        grad_accum=grad_accum,
        lr=lr,
        warmup=warmup,
        lr_decay=lr_decay,
        weight_decay=weight_decay,
        clip_grad=clip_grad,
        ema=ema,
        seed=seed,
        model=model,
        init=init,
        schedule=schedule,
        prediction=prediction,
        loss_weighting=loss_weighting,
        flip=flip,
        class_conditional=class_conditional,
        strict=strict,
        precision=precision or "auto",
        device=device,
        compile=compile,
        weights_dtype=weights_dtype,
        save_every=save_every,
        sample_every=sample_every,
        log_every=log_every,
        log=log,
        resume=resume,
        force=force,
        **settings,
    )
    result = run_job(job, request)
    print_result(
        [str(result.checkpoint)], asdict(result) | {"checkpoint": str(result.checkpoint)}, json
    )
    say("next", shlex.join(["ddimctl", "sample", "--ckpt", str(result.checkpoint)]))
