"""A training run's metrics and samples as they come, in RUN/tensorboard where --log asks for it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ddimctl.files.event_log import EventLog, open_event_log
from ddimctl.files.untrusted.settings import JsonObject
from ddimctl.jobs.events import Event, Report, Wrote
from ddimctl.jobs.train.request import TrainRequest

_CURVES: Final = ("loss", "train_loss", "holdout_loss", "lr", "images_per_second")
_SAMPLES: Final = re.compile(r"step-(\d+)\.png")


@contextmanager
def training_log(
    request: TrainRequest, step: int, metrics: list[JsonObject], report: Report
) -> Iterator[Report]:
    """A report that also logs the run's events, where the request asks for a log.

    step: where the run begins or goes on. What a stopped run logged from there on is hidden, and
    the state's own step is logged again: a kill may have come between its parts.
    metrics: the run's growing list of records.
    """
    if request.log is None:
        yield report
        return
    with open_event_log(request.out / "tensorboard", step) as log:
        follower = _Follower(log, step, metrics, report)
        samples = request.out / "samples" / f"step-{step:08d}.png"
        if samples.exists():
            log.add_image(step, "samples", samples)
        try:
            yield follower.report
        finally:
            follower.add_new()


class _Follower:
    def __init__(self, log: EventLog, step: int, metrics: list[JsonObject], report: Report) -> None:
        self._log, self._metrics, self._report = log, metrics, report
        self._logged = dict.fromkeys(_CURVES, step - 1)  # up to where each curve is

    def report(self, event: Event) -> None:
        self.add_new()
        if isinstance(event, Wrote) and (name := _SAMPLES.fullmatch(Path(event.path).name)):
            self._log.add_image(int(name[1]), "samples", Path(event.path))
        self._report(event)

    def add_new(self) -> None:
        """Log what was added since the last event: one record at most, and to the one before it."""
        for record in self._metrics[-2:]:
            step: int = record["step"]
            values = {
                name: record[name]
                for name, last in self._logged.items()
                if record.get(name) is not None and last < step
            }
            if values:
                self._log.add_scalars(step, values)
                self._logged |= dict.fromkeys(values, step)
