"""`ddimctl train`: pictures in, a checkpoint out."""

from dataclasses import asdict
from typing import Any

from ddimctl.cli import options as o
from ddimctl.cli import parse
from ddimctl.cli.console import print_result, run_job, say


def train(
    data: o.Data,
    out: o.Run,
    model: o.Architecture = None,
    init: o.Init = None,
    prediction: o.PredictionOf = None,
    schedule: o.ScheduleOf = None,
    steps: o.TrainSteps = 100_000,
    batch_size: o.TrainBatch = 64,
    grad_accum: o.GradAccum = 1,
    lr: o.LearningRate = 2e-4,
    lr_decay: o.LearningRateDecay = "cosine",
    warmup: o.Warmup = 500,
    weight_decay: o.WeightDecay = 0.0,
    clip_grad: o.ClipGrad = 1.0,
    loss_weighting: o.LossWeighting = "simple",
    ema: o.Ema = 0.9999,
    seed: o.TrainSeed = 0,
    image_size: o.ImageSize = None,
    channels: o.ChannelCount = "3",
    background: o.Background = "black",
    flip: o.Flip = False,
    class_conditional: o.ClassConditional = False,
    label_dropout: o.LabelDropout = "0.1",
    holdout: o.Holdout = "0",
    strict: o.Strict = False,
    time_limit: o.TimeLimit = None,
    save_every: o.SaveEvery = 1000,
    sample_every: o.SampleEvery = 1000,
    log_every: o.LogEvery = 50,
    weights_dtype: o.SavedWeights = "fp32",
    resume: o.ResumeTraining = False,
    force: o.Restart = False,
    json: o.Json = False,
    device: o.Device = "auto",
    precision: o.Compute = None,
    compile: o.Compile = False,
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
    from ddimctl.jobs.train import TrainRequest
    from ddimctl.jobs.train import train as job

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
        resume=resume,
        force=force,
        **settings,
    )
    result = run_job(job(request))
    print_result(
        [str(result.checkpoint)], asdict(result) | {"checkpoint": str(result.checkpoint)}, json
    )
    say("next", f"ddimctl sample --ckpt {result.checkpoint}")
