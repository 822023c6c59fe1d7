"""What a person sees while a study runs: rounds, each site's protocol step, epsilon spent of its budget.

It listens to the events of a run and must never slow it or fail it. Without a terminal it prints one line a round.
Events hold text of others: it is shown as it stands and never read as markup, escape sequences or several lines.
"""

from collections import deque
from dataclasses import dataclass, field
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedseg.events import (
    AnyEvent,
    Burned,
    Dropped,
    EpsilonSpent,
    Left,
    Note,
    Rejoined,
    Resumed,
    RoundEnded,
    RoundStarted,
    Scored,
    StepAccepted,
    StudyStarted,
    Trained,
)
from secagg.printable import printable
from secagg.state import STEPS

SHORT = dict(zip(STEPS[:-1], ("keys", "shares", "report", "masked", "attest", "unmask"), strict=True))
MESSAGES = 6


def plain(text: object, style: str = "", *, console: Console) -> Text:
    """Text, perhaps of others, for a console: shown as it stands, in one line."""
    return Text(printable(text, console.encoding), style)


class Screen:
    """A `Listener` that draws; use it as a context manager."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        self._study: StudyStarted | None = None
        self._round = 0
        self._done = 0
        self._sites: dict[str, _Site] = {}
        self._said: deque[Text] = deque(maxlen=MESSAGES)
        self._live = Live(console=self._console, refresh_per_second=8, transient=True, get_renderable=self._draw)

    def __enter__(self) -> "Screen":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def say(self, message: str) -> None:
        """A line for the person, above the table or in the log."""
        shown = self._plain(message)
        self._said.append(shown)
        if not self._console.is_terminal:
            self._console.print(shown, soft_wrap=True)

    def __call__(self, event: AnyEvent) -> None:
        """Take one event of the run."""
        match event:
            case StudyStarted():
                self._study = event
                self._sites = {name: _Site() for name in event.sites}
                self._introduce(event)
            case Resumed():
                done = f"round {event.round}" if event.round else "the start"
                self.say(f"all above was before the interruption; going on after {done}")
            case RoundStarted():
                self._round = event.round
                for site in self._sites.values():
                    site.begin()
            case Trained():
                site = self._of(event.site)
                site.step, site.steps = event.step, event.steps
            case StepAccepted():
                site = self._of(event.site)
                site.done.add(event.step)
                site.state = "in"
            case Dropped():
                self._of(event.site).state = "dropped"
                self.say(f"round {event.round}: {event.site} fell silent after {event.after or 'joining'}")
            case Rejoined():
                self._of(event.site).state = "in"
                self.say(f"round {event.round}: {event.site} is back")
            case Left():
                self._of(event.site).state = "out"
                self.say(event.reason)
            case Burned():
                self.say(f"round {event.round} ended without a sum: {event.reason}")
            case EpsilonSpent():
                self._of(event.site).epsilon = event.spent
            case Scored():
                known = [value for value in event.values.values() if value is not None]
                if known:
                    self._of(event.site).dice = sum(known) / len(known)
            case RoundEnded():
                self._finish_round(event)
            case Note():
                self.say(event.text)

    def _of(self, site: str) -> "_Site":
        return self._sites.get(site) or _Site()

    def _plain(self, text: object, style: str = "") -> Text:
        return plain(text, style, console=self._console)

    def _introduce(self, event: StudyStarted) -> None:
        privacy = "mechanism = 'none': NO DIFFERENTIAL PRIVACY"
        if event.mechanism != "none":
            privacy = f"epsilon at most {event.budget:g} per {event.unit}, delta {event.delta:g}, trusting nobody"
            if event.seed is not None:
                privacy += f"; seed {event.seed}: reproducible, no privacy claim"
        masks = f"secure aggregation {event.suite}, {event.threshold} of {event.n} open a sum"
        if not event.secure:
            masks = "PLAIN SUM: no secure aggregation"
        self.say(f"{event.name}: {len(event.sites)} sites, {event.parameters} parameters, {event.rounds} rounds")
        self.say(f"{privacy}; {masks}")

    def _finish_round(self, event: RoundEnded) -> None:
        self._done += 1
        parts = [f"round {event.round}: sum of {len(event.included)} of {len(self._sites)} sites"]
        if event.dropped:
            without = f"without {', '.join(event.dropped)}"
            parts.append(f"{without}, the exact sum of the survivors" if event.exact else without)
        spent = [site.epsilon for site in self._sites.values() if site.epsilon is not None]
        if spent and self._study is not None and self._study.budget is not None:
            parts.append(f"epsilon {max(spent):.2f} of {self._study.budget:g}")
        dice = [site.dice for site in self._sites.values() if site.dice is not None]
        if dice:
            parts.append(f"Dice {sum(dice) / len(dice):.2f} in the round before")
        if event.dropped or not self._console.is_terminal:
            self.say("; ".join(parts))

    def _draw(self) -> RenderableType:
        study = self._study
        if study is None:
            return Text("starting: loading torch and MONAI takes some seconds a process ...")
        table = Table(box=None, pad_edge=False, header_style="dim")
        for heading in ("site", "training", *SHORT.values(), f"epsilon of {study.budget or '-'}", "Dice"):
            table.add_column(self._plain(heading))
        for name, site in self._sites.items():
            table.add_row(*self._row(name, site))
        head = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=study.rounds, completed=self._done, width=40)
        head.add_row(f"round {self._round} of {study.rounds}", bar)
        said = Text("\n", style="dim", overflow="fold").join(self._said)
        return Panel(Group(head, table, said), title=self._plain(study.name), border_style="blue")

    def _row(self, name: str, site: "_Site") -> list[RenderableType]:
        gone = site.state in ("dropped", "out")
        bar: RenderableType = ProgressBar(total=site.steps, completed=site.step, width=12) if site.step else Text("")
        marks = [Text("●" if step in site.done else "✗" if gone else "·") for step in SHORT]
        for mark in marks:
            mark.stylize("green" if mark.plain == "●" else "red" if gone else "dim")
        return [
            self._plain(name, "red" if gone else ""),
            bar,
            *marks,
            "" if site.epsilon is None else f"{site.epsilon:.2f}",
            "" if site.dice is None else f"{site.dice:.2f}",
        ]


@dataclass
class _Site:
    """What is shown of a site."""

    state: str = "waiting"
    done: set[str] = field(default_factory=set)
    step: int = 0
    steps: int = 0
    epsilon: float | None = None
    dice: float | None = None

    def begin(self) -> None:
        """A round begins, or another attempt at it; what was spent and scored stays."""
        self.state, self.step = "out" if self.state == "out" else "joining", 0
        self.done.clear()
