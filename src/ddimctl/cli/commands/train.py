"""`ddimctl train`: images in, a checkpoint out."""

import shlex
from dataclasses import asdict

from ddimctl.cli.options.everywhere import Config, Debug, Json
from ddimctl.cli.output.console import print_result, run_job, say
from ddimctl.jobs.train.request import TrainRequest


def train(
    request: TrainRequest, json: Json = False, config: Config = None, debug: Debug = False
) -> None:
    """Train a network on a folder or a zip of images.

    RUN/checkpoint is a diffusers folder that every command accepts.
    The same command with --resume continues a stopped run.
    """
    from ddimctl.jobs.train.job import train as job

    result = run_job(job, request)
    record = asdict(result) | {"checkpoint": str(result.checkpoint)}
    print_result([str(result.checkpoint)], record, json)
    say("next", shlex.join(["ddimctl", "sample", "--ckpt", str(result.checkpoint)]))
