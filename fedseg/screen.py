"""What a person sees while a study runs: rounds, each site's protocol step, epsilon spent of its budget.

It listens to the events of a run and must never slow it or fail it. Without a terminal it prints one line a round.
Events hold text of others: it is shown as it stands and never read as markup, escape sequences or several lines.
"""

from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from secagg.state import STEPS
from secagg.terminal import plain

SHORT = dict(zip(STEPS[:-1], ("keys", "shares", "report", "masked", "attest", "unmask"), strict=True))
MESSAGES = 6


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
        self._study: Mapping[str, Any] = {}
        self._round = 0
        self._done = 0
        self._sites: dict[str, dict[str, Any]] = {}
        self._dice: dict[str, float] = {}
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

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Take one event of the run."""
        site = self._sites.get(event.get("site", ""), {})
        match event["kind"]:
            case "study":
                self._study = event
                self._sites = {name: {"state": "waiting", "done": set()} for name in event["sites"]}
                self._introduce(event)
            case "round":
                self._round = event["round"]
                for state in self._sites.values():
                    state.update(done=set(), train=None, state="out" if state["state"] == "out" else "joining")
            case "train":
                site.update(train=(event["step"], event["steps"]))
            case "step":
                site["done"].add(event["step"])
                site["state"] = "in"
            case "dropped":
                site["state"] = "dropped"
                after = event["after"] or "joining"
                self.say(f"round {event['round']}: {event['site']} dropped after {after}; the round goes on without it")
            case "rejoined":
                site["state"] = "in"
                self.say(f"round {event['round']}: {event['site']} is back")
            case "left":
                site["state"] = "out"
                self.say(event["reason"])
            case "burned":
                self.say(f"round {event['round']} ended without a sum: {event['reason']}")
            case "epsilon":
                site["epsilon"] = event["spent"]
            case "dice":
                self._note_dice(event)
            case "end_round":
                self._finish_round(event)
            case "note":
                self.say(event["text"])

    def _plain(self, text: object, style: str = "") -> Text:
        return plain(text, style, console=self._console)

    def _introduce(self, event: Mapping[str, Any]) -> None:
        privacy = "mechanism = 'none': NO DIFFERENTIAL PRIVACY"
        if event["mechanism"] != "none":
            privacy = (
                f"epsilon at most {event['budget']:g} per {event['unit']}, delta {event['delta']:g}, trusting nobody"
            )
            if event["seed"] is not None:
                privacy += f"; seed {event['seed']}: reproducible, no privacy claim"
        masks = f"secure aggregation {event['suite']}, {event['threshold']} of {event['n']} open a sum"
        if not event["secure"]:
            masks = "PLAIN SUM: no secure aggregation"
        self.say(
            f"{event['name']}: {len(event['sites'])} sites, {event['parameters']} parameters, {event['rounds']} rounds"
        )
        self.say(f"{privacy}; {masks}")

    def _note_dice(self, event: Mapping[str, Any]) -> None:
        known = [value for value in event["values"].values() if value is not None]
        if known:
            self._dice[event["site"]] = sum(known) / len(known)

    def _finish_round(self, event: Mapping[str, Any]) -> None:
        self._done += 1
        parts = [f"round {event['round']}: sum of {len(event['included'])} of {self._study['n']} sites"]
        if event["dropped"]:
            without = f"without {', '.join(event['dropped'])}"
            parts.append(f"{without}, the exact sum of the survivors" if event["exact"] else without)
        spent = [state["epsilon"] for state in self._sites.values() if state.get("epsilon") is not None]
        if spent:
            parts.append(f"epsilon {max(spent):.2f} of {self._study['budget']:g}")
        if self._dice:
            parts.append(f"Dice {sum(self._dice.values()) / len(self._dice):.2f} in the round before")
        if event["dropped"] or not self._drawn:
            self.say("; ".join(parts))

    def _draw(self) -> RenderableType:
        if not self._study and self._start:
            step, steps = self._start
            bar = Table.grid(padding=(0, 1))
            bar.add_row("training the public start on made patients", ProgressBar(steps, step, 40), f"{step}/{steps}")
            return bar
        if not self._study:
            return Text("starting: loading torch and MONAI takes some seconds a process ...")
        table = Table(box=None, pad_edge=False, header_style="dim")
        for heading in ("site", "training", *SHORT.values(), f"epsilon of {self._study['budget'] or '-'}", "Dice"):
            table.add_column(self._plain(heading))
        for name, state in self._sites.items():
            table.add_row(*self._row(name, state))
        rounds = self._study["rounds"]
        head = Table.grid(padding=(0, 1))
        head.add_row(f"round {self._round} of {rounds}", ProgressBar(total=rounds, completed=self._done, width=40))
        said = Text("\n", style="dim", overflow="fold").join(self._said)
        return Panel(Group(head, table, said), title=self._plain(self._study["name"]), border_style="blue")

    def _row(self, name: str, state: Mapping[str, Any]) -> list[RenderableType]:
        gone = state["state"] in ("dropped", "out")
        train = state.get("train")
        bar: RenderableType = (
            ProgressBar(total=train[1], completed=train[0], width=12) if train and train[0] else Text("")
        )
        done, lost, open_ = Text(self._marks[0], "green"), Text(self._marks[1], "red"), Text(self._marks[2], "dim")
        marks = [done if step in state["done"] else lost if gone else open_ for step in SHORT]
        epsilon = state.get("epsilon")
        dice = self._dice.get(name)
        return [
            self._plain(name, "red" if gone else ""),
            bar,
            *marks,
            "" if epsilon is None else f"{epsilon:.2f}",
            "" if dice is None else f"{dice:.2f}",
        ]
