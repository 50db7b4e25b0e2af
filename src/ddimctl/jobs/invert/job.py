"""Inversion: input images in, their latents and a comparison of each out."""

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from ddimctl.diffusion.statistics import is_atypical
from ddimctl.errors import DataError, RequestError, Stopped, StorageError
from ddimctl.files.atomic import check_writable, make_folder, write_bytes
from ddimctl.files.latents import save_latents
from ddimctl.files.own_output import TAKEN
from ddimctl.files.pictures.images import from_uint8, to_uint8
from ddimctl.files.untrusted.settings import JsonObject
from ddimctl.jobs.checkpoint import open_model
from ddimctl.jobs.events import Notice, Progress, Report, Wrote, ignore, notify
from ddimctl.jobs.invert.input_images import (
    Fitted,
    InputImage,
    find_inputs,
    fit_input_image,
)
from ddimctl.jobs.invert.report import figures_of, inversion_sheet, sentence, warnings
from ddimctl.jobs.invert.request import InvertRequest
from ddimctl.jobs.invert.resume import (
    Recorder,
    finished_figures,
    input_image_paths,
    matching,
    read_records,
    recorded_batch_size,
)
from ddimctl.jobs.invert.round_trip import (
    RoundTrip,
    Steps,
    fidelity,
    input_text,
    inversion_plan,
    round_trip,
)
from ddimctl.jobs.option import check_choices
from ddimctl.jobs.requests import OutputOptions
from ddimctl.jobs.sample.folder import go_on, run_folder
from ddimctl.jobs.sample.manifest import image_text
from ddimctl.jobs.sample.plan import Plan
from ddimctl.runtime.device import memory_errors
from ddimctl.runtime.signals import StopRequest, stop_on_signals


@dataclass(frozen=True)
class InvertResult:
    """images: one record for each that was inverted, or would be. failed: name and reason of
    those that could not be read or inverted."""

    images: tuple[JsonObject, ...]
    failed: tuple[tuple[str, str], ...]
    settings: JsonObject
    seconds: float


def invert(request: InvertRequest, report: Report = ignore) -> InvertResult:
    """Invert every input image, batch by batch, and write NAME.pt and NAME.inversion.png for each.

    An input image that cannot be read, or has no finite latent, is a notice and an entry in `failed`.
    With --resume, images that a run with the same settings has finished are kept. Raises
    RequestError (also where something would be overwritten), CheckpointError, DataError,
    StorageError, DeviceError; Stopped when a signal ended the run, which --resume continues.
    """
    check_choices(request)
    inputs, output = find_inputs(request.inputs, report), request.output
    folder = output.out or Path()
    with (
        run_folder(OutputOptions(folder, resume=output.resume, dry_run=output.dry_run), "invert"),
        memory_errors("Use a smaller --batch-size or another --device."),
    ):
        return _invert(request, folder, inputs, report)


def _invert(
    request: InvertRequest, out: Path, inputs: Sequence[InputImage], report: Report
) -> InvertResult:
    started = time.monotonic()
    output, inversion = request.output, request.inversion
    found = read_records(out, inputs) if output.resume else {}
    recorded = {name: record for name, record in found.items() if record is not None}
    _check_room(out, [image for image in inputs if image.name not in found], output.force)
    model = open_model(
        request.checkpoint,
        request.device,
        report,
        size=request.images.size,
        exact=inversion.method == "exact",
    )
    # those of a resumed run are in the same groups
    batch_size = request.device.batch_size or recorded_batch_size(recorded)
    text = input_text(request.prompt, request.images, model.checkpoint, len(inputs), report)
    model = replace(model, checkpoint=text.checkpoint)
    plan = inversion_plan(request.images, inversion, model, text, len(inputs), batch_size)
    recorder = Recorder(out, plan, model.checkpoint, inversion.tolerance)
    run = _Run(request, inputs, recorder, matching(recorded, recorder, force=output.force))
    if output.dry_run:
        for batch in run.batches():
            for image, fitted in _read(run, batch, report):
                _note(run, image, fitted, {})
    else:
        check_writable(out, 4 * (len(inputs) - len(run.recorded)) * math.prod(plan.shape))
        _resumable(run, model.device, report)
    seconds = time.monotonic() - started
    return InvertResult(tuple(run.records), tuple(run.failed), plan.record(), seconds)


@dataclass
class _Run:
    """recorded: the metadata of this run's latents that were there, by the input images' names."""

    request: InvertRequest
    inputs: Sequence[InputImage]
    recorder: Recorder
    recorded: dict[str, JsonObject] = field(default_factory=dict)
    records: list[JsonObject] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    made: int = 0  # how many of the records are new

    def batches(self) -> Iterator[Sequence[InputImage]]:
        """The input images in groups, which are the same in a resumed run."""
        size = self.recorder.plan.batch_size
        for start in range(0, len(self.inputs), size):
            yield self.inputs[start : start + size]

    def facts(self) -> dict[str, str]:
        """How many images are done, for the progress."""
        return {"pictures": f"{len(self.records)}/{len(self.inputs)}"}


def _resumable(run: _Run, device: torch.device, report: Report) -> None:
    """Invert all; an error of the disk says how to continue if anything is done."""
    try:
        with stop_on_signals() as stop:
            _invert_all(run, device, stop, report)
    except StorageError as error:
        if not run.records:
            raise
        remedy = f"{error.remedy} {go_on(run.recorder.out)}".strip()
        raise StorageError(error.cause, remedy) from error
    if run.recorded and not run.made and not run.failed:
        report(Notice(f"already complete: {len(run.records)} input images."))


def _stop(run: _Run, stop: StopRequest) -> NoReturn:
    if not run.records:
        stop.pass_on()
    out, how_far = run.recorder.out, f"{len(run.records)} of {len(run.inputs)} input images"
    raise Stopped(f"{stop.name}: stopped with {how_far} in {out}.", go_on(out))


def _invert_all(run: _Run, device: torch.device, stop: StopRequest, report: Report) -> None:
    """Invert each group in which an image is not done, whole; write only the images not done."""
    recorder, plan = run.recorder, run.recorder.plan
    steps, total = len(plan.timesteps), -(-len(run.inputs) // plan.batch_size) * len(plan.timesteps)
    for number, batch in enumerate(run.batches()):
        readable = _read(run, batch, report)
        finished = [_finished(run, image, fitted) for image, fitted in readable]
        if None in finished:
            images = from_uint8(torch.stack([fitted.pixels for _, fitted in readable])).to(device)
            x_0 = recorder.checkpoint.encode(images)
            progress = Steps(number * steps, total, run.facts())
            try:
                with stop.at_once():
                    trip = round_trip(
                        recorder.checkpoint, plan, x_0, recorder.tolerance, report, progress
                    )
            except KeyboardInterrupt:
                if not stop:
                    raise
                _stop(run, stop)
            _store(run, readable, finished, (images, x_0), trip, report)
        else:
            for (image, fitted), figures in zip(readable, finished, strict=True):
                _note(run, image, fitted, figures or {})
        report(Progress("inverting", (number + 1) * steps, total, "steps", run.facts()))


def _check_room(out: Path, inputs: Sequence[InputImage], force: bool) -> None:
    if force:
        return
    for image in inputs:
        made = input_image_paths(out, image)
        for path in (Path(made["latents"]), Path(made["comparison"])):
            if path.exists() and path != image.path:
                raise RequestError(f"{path} exists already.", TAKEN)


def _read(
    run: _Run, images: Sequence[InputImage], report: Report
) -> list[tuple[InputImage, Fitted]]:
    """Those of the input images that can be read, fitted; the others go to run.failed."""
    size, fit = run.recorder.plan.image_size, run.request.images.fit
    readable = []
    for image in images:
        try:
            fitted = fit_input_image(image.path, run.recorder.checkpoint, size, fit)
        except DataError as error:
            report(_fail(run, image, error.cause))
        else:
            report(Notice(f"{image.path}: {fitted.sentence()}."))
            readable.append((image, fitted))
    return readable


def _finished(run: _Run, image: InputImage, fitted: Fitted) -> JsonObject | None:
    """The figures of an input image that is done, or None."""
    record, force = run.recorded.get(image.name), run.request.output.force
    return record and finished_figures(record, run.recorder.out, image, fitted, force=force)


def _fail(run: _Run, image: InputImage, cause: str) -> Notice:
    run.failed.append((str(image.path), cause))
    return Notice(f"left out: {cause}")


def _note(run: _Run, image: InputImage, fitted: Fitted, figures: JsonObject) -> None:
    run.records.append(input_image_paths(run.recorder.out, image) | fitted.record() | figures)


def _store(
    run: _Run,
    readable: Sequence[tuple[InputImage, Fitted]],
    finished: Sequence[JsonObject | None],
    inverted: tuple[Tensor, Tensor],
    trip: RoundTrip,
    report: Report,
) -> None:
    """Write the two files of each input image that is not done, and note all in run.records.

    inverted: the images, and the x_0 that they are in the network's space.
    """
    plan, out = run.recorder.plan, run.recorder.out
    make_folder(out)
    odd, finite = is_atypical(trip.latents), trip.finite.tolist()
    checkpoint, (originals, x_0) = run.recorder.checkpoint, inverted
    target, back = checkpoint.decode(x_0), checkpoint.decode(trip.decoded)
    decoded, found = to_uint8(back).cpu(), fidelity(target, back)
    coded = fidelity(originals, target) if checkpoint.codec is not None else None
    for i, (image, fitted) in enumerate(readable):
        if (figures := finished[i]) is not None:
            _note(run, image, fitted, figures)
            continue
        if not finite[i]:
            report(
                _fail(run, image, f"{image.path}: its latent or its decoded image is not finite.")
            )
            continue
        latents = trip.latents[i : i + 1].cpu()
        paths = input_image_paths(out, image)
        figures = figures_of(found[i], trip, i, bool(odd[i]))
        if coded is not None:
            figures["autoencoder"] = asdict(coded[i])
        metadata = run.recorder.metadata(image, fitted, figures)
        save_latents(Path(paths["latents"]), latents, metadata)
        settings = image_text(_of_one(plan, latents), run.recorder.checkpoint, 0)
        text = {"ddimctl": json.dumps(settings | {"method": plan.method})}
        sheet = inversion_sheet(fitted.pixels, decoded[i], len(plan.timesteps), text)
        write_bytes(Path(paths["comparison"]), sheet)
        run.made += 1
        _note(run, image, fitted, figures)
        report(Wrote(paths["latents"], sentence(figures)))
        notify(report, warnings(image.path, plan, found[i], trip.residuals[i], figures))


def _of_one(plan: Plan, latents: Tensor) -> Plan:
    """The plan of decoding one image's latents (1, C, H, W)."""
    labels = None if plan.labels is None else plan.labels[:1]
    prompts = None if plan.prompts is None else plan.prompts[:1]
    own = replace(plan, labels=labels, prompts=prompts)
    return replace(own, names=(0,), seeds=(0,), x_T=latents, batch_size=1)
