"""The progress bars of a terminal. The only module that imports rich, and only when there is one."""

import math
from collections.abc import Iterable
from typing import Final, Self, TextIO

from rich.console import Console, RenderableType
from rich.constrain import Constrain
from rich.progress import BarColumn, ProgressColumn, Task, TaskID, TextColumn
from rich.progress import Progress as RichProgress
from rich.table import Column
from rich.text import Text

from ddimctl.cli.output.progress import facts_text, times_text
from ddimctl.jobs.events import Progress

NAME_WIDTH: Final = 8  # so that the bars of most runs begin in one column
REFRESHES_PER_SECOND: Final = 5


class BarView:
    """Bars at the bottom of the terminal, those of outer phases to stay; notes appear above them."""

    def __init__(self, stderr: TextIO) -> None:
        self._bars = _Bars(
            console=Console(file=stderr, highlight=False, emoji=False, markup=False),
            refresh_per_second=REFRESHES_PER_SECOND,
            speed_estimate_period=math.inf,  # of 1,000 events; in a shorter one may lie none
            redirect_stdout=False,
        )
        self._open: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def progress(self, event: Progress) -> None:
        """A phase that runs while another is unfinished is inside that."""
        bars, facts = self._bars, facts_text(event)
        if event.phase not in self._open:
            name = "  " * len(self._open) + event.phase
            task = bars.add_task(
                name, total=event.total, completed=event.done, unit=event.unit, facts=facts
            )
            bars.advance(task, 0)  # the pace is measured from here
            self._open[event.phase] = task
        task = self._open[event.phase]
        bars.update(task, total=event.total, completed=event.done, facts=facts)
        if event.done >= event.total:
            del self._open[event.phase]
            if self._open:
                bars.remove_task(task)

    def line(self, label: str, text: str) -> None:
        """A labelled sentence above the bars."""
        shown = Text(f"{label}: ", style="bold" if label == "note" else "dim")
        self._bars.console.print(shown.append(text, style="not bold not dim"), soft_wrap=True)


class _Times(ProgressColumn):
    """How long a phase has run and will run."""

    def render(self, task: Task) -> Text:
        if task.finished:
            return Text(times_text(task.finished_time or 0.0, None), "dim")
        return Text(times_text(task.elapsed or 0.0, task.time_remaining), "dim")


def _text_column(text: str, min_width: int | None = None) -> TextColumn:
    return TextColumn(text, markup=False, table_column=Column(no_wrap=True, min_width=min_width))


_COLUMNS: Final = {  # and how many columns of the terminal each needs
    _text_column("{task.description}", NAME_WIDTH): 0,
    BarColumn(40, "bright_black", "cyan", "green"): 58,  # the one that gets narrower
    _text_column("{task.completed:.0f}/{task.total:.0f} {task.fields[unit]}"): 0,
    _text_column("{task.fields[facts]}"): 78,
    _Times(Column(no_wrap=True)): 0,
}


class _Bars(RichProgress):
    """On a narrow terminal the facts go first, then the bar."""

    def get_renderables(self) -> Iterable[RenderableType]:
        if self.tasks:  # while this is built, it has no console
            width = self.console.width - 2  # the terminal's own "^C" must not begin a line
            self.columns = tuple(column for column, needed in _COLUMNS.items() if width >= needed)
            table = self.make_tasks_table(self.tasks)
            table.padding = (0, 2)
            yield Constrain(table, width)
