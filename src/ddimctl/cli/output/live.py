"""The progress display of a terminal. The only module that imports rich, and only when there is one."""

from typing import Final, Self, TextIO, cast

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from ddimctl.cli.output.console import Stderr
from ddimctl.cli.output.meter import Meter, Phase, count_text, fact_texts, time_texts
from ddimctl.jobs.events import Progress

BAR_WIDTHS: Final = (10, 40)
NAME_WIDTH: Final = 8  # so that the bars of most phases begin in one column
REFRESHES_PER_SECOND: Final = 5


class LiveView:
    """A bar at the bottom of the terminal; finished phases and notes stay above it."""

    def __init__(self) -> None:
        self._meter = Meter()
        stderr = cast(TextIO, Stderr())
        self._console = Console(file=stderr, highlight=False, emoji=False, markup=False)
        self._live = Live(
            self,
            console=self._console,
            refresh_per_second=REFRESHES_PER_SECOND,
            transient=True,
            redirect_stdout=False,
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()
        unfinished = self._meter.unfinished()
        if unfinished is not None:
            self._keep(unfinished)

    def progress(self, event: Progress) -> None:
        phase = self._meter.update(event)
        if phase.finished and self._meter.current is None:
            self._keep(phase)

    def line(self, label: str, text: str) -> None:
        """A labelled sentence above the bar."""
        shown = Text(f"{label}: ", style="bold" if label == "note" else "dim")
        self._console.print(shown.append(text, style="not bold not dim"), soft_wrap=True)

    def _keep(self, phase: Phase) -> None:
        console = self._console
        console.print(phase_line(phase, self._meter.clock(), console, console.width))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        phase = self._meter.current
        if phase is not None:
            yield phase_line(phase, self._meter.clock(), console, options.max_width)


def phase_line(phase: Phase, now: float, console: Console, width: int) -> Text:
    """One line of at most width columns; where that is too little, facts go first, then the bar."""
    event = phase.event
    name = event.phase.ljust(NAME_WIDTH)
    facts = fact_texts(event)
    times = ", ".join(time_texts(phase, now))

    def words() -> list[str]:
        return [count_text(event), *facts, times]

    def room() -> int:
        return width - len(name) - sum(2 + len(word) for word in words()) - 2

    while facts and room() < BAR_WIDTHS[0]:
        facts.pop()
    line = Text(name, no_wrap=True, overflow="ellipsis")
    if room() >= BAR_WIDTHS[0]:
        line.append("  ").append(_bar(phase, min(room(), BAR_WIDTHS[1]), console))
    for word in words():
        line.append("  ").append(word, style="" if word != words()[-1] else "dim")
    return line


def _bar(phase: Phase, width: int, console: Console) -> Text:
    filled, rest = ("#", ".") if console.options.ascii_only else ("━", "━")
    if console.no_color:
        rest = " " if rest == "━" else rest
    done = width * phase.event.done // max(phase.event.total, 1)
    bar = Text(filled * done, style="green" if phase.finished else "cyan")
    return bar.append(rest * (width - done), style="bright_black")
