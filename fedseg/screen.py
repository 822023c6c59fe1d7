"""What a person sees while a study runs: rounds, each site's protocol step, epsilon spent of its budget.

It listens to the events of a run and must never slow it or fail it. Without a terminal it prints one line a round.
Events hold text of others: it is shown as it stands and never read as markup, escape sequences or several lines.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
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
    Listening,
    Note,
    Refused,
    Rejoined,
    Resumed,
    RoundEnded,
    RoundStarted,
    Scored,
    StepAccepted,
    StudyStarted,
    Trained,
    Waiting,
)
from fedseg.mechanisms.table import no_claim, trust_in
from fedseg.privacy.delta import delta_text
from fedseg.privacy.trust import NO_CLAIM_SEEDED, SEEDED
from secagg.steps import STEPS
from secagg.terminal import plain

SHORT = dict(zip(STEPS[:-1], ("keys", "shares", "report", "masked", "attest", "unmask"), strict=True))
MESSAGES = 6
WIDE = 80


class Screen:
    """A `Listener` that draws; use it as a context manager.

    Args:
        console: where; one that is no terminal, or a dumb one, gets lines with the time instead of a table.
        now: the time of day, for the lines.
    """

    def __init__(self, console: Console | None = None, now: Callable[[], datetime] = datetime.now) -> None:
        self._console = console or Console(markup=False, emoji=False, highlight=False)
        self._now = now
        self._drawn = self._console.is_terminal and not self._console.is_dumb_terminal
        self._marks = ("●", "✗", "·") if self._console.encoding.startswith("utf") else ("+", "x", ".")
        self._start: tuple[int, int] | None = None
        self._study: StudyStarted | None = None
        self._round = 0
        self._done = 0
        self._sites: dict[str, _Site] = {}
        self._cut: set[str] = set()
        self._said: deque[Text] = deque(maxlen=MESSAGES)
        self._live = Live(console=self._console, refresh_per_second=8, transient=True, get_renderable=self._draw)

    def __enter__(self) -> "Screen":
        if self._drawn:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def say(self, message: str) -> None:
        """A line for the person, with the time: above the table or in the log."""
        shown = self._plain(f"{self._now():%Y-%m-%d %H:%M:%S} {message}")
        self._said.append(shown)
        if not self._drawn:
            self._console.print(shown, soft_wrap=True)

    def starting(self, step: int, steps: int) -> None:
        """A step of the training of the public start; in a log each tenth is a line."""
        self._start = (step, steps) if step < steps else None
        if step == 1 or step * 10 // steps > (step - 1) * 10 // steps:
            text = f"training the public start on made patients, kept for the next time: step {step} of {steps}"
            if not self._drawn:
                self.say(text)

    def __call__(self, event: AnyEvent) -> None:
        """Take one event of the run."""
        match event:
            case StudyStarted():
                self._study = event
                self._sites = {name: _Site() for name in event.sites}
                self._introduce(event)
            case Listening():
                self.say(f"listening on {event.where}")
            case Resumed():
                done = f"round {event.round}" if event.round else "the start"
                self.say(f"all above was before the interruption; going on after {done}")
            case Waiting():
                what = f" in {event.step}" if event.step else ""
                limit = "" if event.seconds is None else f", at most {event.seconds:.0f} s more"
                self.say(f"waiting for {', '.join(event.sites)}{what}{limit}")
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
            case Refused():
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

    @property
    def _wide(self) -> bool:
        """Whether each step has a column of its own; on a narrow terminal their marks stand together."""
        return self._console.width >= WIDE

    @property
    def _per(self) -> str:
        """What belongs to an epsilon: unit, delta, and that a seeded one is no claim."""
        study = self._study
        if study is None or study.budget is None:
            return ""
        per = f" per {study.unit} at delta {delta_text(study.delta)}"
        return per if study.seed is None else f"{per}, {NO_CLAIM_SEEDED}"

    def _of(self, site: str) -> "_Site":
        return self._sites.get(site) or _Site()

    def _plain(self, text: object, style: str = "") -> Text:
        return plain(text, style, console=self._console)

    def _introduce(self, event: StudyStarted) -> None:
        trust, delta = trust_in(event.mechanism, event.max_corrupt), delta_text(event.delta)
        privacy = no_claim(event.mechanism)
        if trust.claims_epsilon:
            privacy = f"epsilon at most {event.budget:g} per {event.unit}, delta {delta}, trusting {trust.trusted}"
            if event.seed is not None:
                privacy += f"; {SEEDED}"
        masks = f"secure aggregation {event.suite}, {event.threshold} of {event.n} open a sum"
        if not event.secure:
            masks = "PLAIN SUM: no secure aggregation"
        self.say(f"{event.name}: {len(event.sites)} sites, {event.parameters} parameters, {event.rounds} rounds")
        self.say(f"{privacy}; {masks}")

    def _finish_round(self, event: RoundEnded) -> None:
        self._done += 1
        for site, text in event.much_cut.items():
            if site not in self._cut:  # once a site is enough
                self._cut.add(site)
                self.say(text)
        parts = [f"round {event.round}: sum of {len(event.included)} of {len(self._sites)} sites"]
        if event.dropped:
            without = f"without {', '.join(event.dropped)}"
            parts.append(f"{without}, the exact sum of the survivors" if event.exact else without)
        spent = [site.epsilon for site in self._sites.values() if site.epsilon is not None]
        if spent and self._study is not None and self._study.budget is not None:
            parts.append(f"epsilon {max(spent):.2f} of {self._study.budget:g}{self._per}")
        dice = [site.dice for site in self._sites.values() if site.dice is not None]
        if dice:
            classified = self._study is not None and self._study.task == "classification"
            sites = "1 site" if len(dice) == 1 else f"{len(dice)} sites"
            score = "accuracy" if classified else "Dice on the working grid"
            parts.append(f"{score} {sum(dice) / len(dice):.2f} in the round before, mean of {sites}")
        if event.dropped or not self._drawn:
            self.say("; ".join(parts))

    def _draw(self) -> RenderableType:
        study = self._study
        if study is None and self._start:
            step, steps = self._start
            grid = Table.grid(padding=(0, 1))
            grid.add_row("training the public start on made patients", ProgressBar(steps, step, 40), f"{step}/{steps}")
            return grid
        if study is None:
            return Text("starting: loading torch and MONAI takes some seconds a process ...")
        table = Table(box=None, pad_edge=False, header_style="dim")
        columns = ("training", *SHORT.values()) if self._wide else ("steps",)
        score = "accuracy" if study.task == "classification" else "working-grid Dice"
        for heading in ("site", *columns, f"epsilon of {study.budget or '-'}", score):
            table.add_column(self._plain(heading))
        for name, site in self._sites.items():
            table.add_row(*self._row(name, site))
        head = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=study.rounds, completed=self._done, width=40)
        head.add_row(f"round {self._round} of {study.rounds}", bar)
        trusted = trust_in(study.mechanism, study.max_corrupt).trusted
        about = f"epsilon{self._per}; {trusted} is trusted" if study.budget is not None else no_claim(study.mechanism)
        said = Text("\n", style="dim", overflow="fold").join(self._said)
        shown = Group(head, table, self._plain(about, "dim"), said)
        return Panel(shown, title=self._plain(study.name), border_style="blue")

    def _row(self, name: str, site: "_Site") -> list[RenderableType]:
        gone = site.state in ("dropped", "out")
        bar: RenderableType = ProgressBar(total=site.steps, completed=site.step, width=12) if site.step else Text("")
        done, lost, open_ = Text(self._marks[0], "green"), Text(self._marks[1], "red"), Text(self._marks[2], "dim")
        marks = [done if step in site.done else lost if gone else open_ for step in SHORT]
        return [
            self._plain(name, "red" if gone else ""),
            *([bar, *marks] if self._wide else [Text.assemble(*marks)]),
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
