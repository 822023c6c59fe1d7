"""What a person sees while a study runs: rounds, each site's protocol step, epsilon spent of its budget.

It listens to the events of a run and must never slow it or fail it. Without a terminal it prints one line a round.
Events hold text of others: it is shown as it stands and never read as markup, escape sequences or several lines.
"""

from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

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
        self._study: Mapping[str, Any] = {}
        self._round = 0
        self._done = 0
        self._sites: dict[str, dict[str, Any]] = {}
        self._dice: dict[str, float] = {}
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
            case "resumed":
                done = event["round"]
                self.say(
                    f"all above was before the interruption; going on after {f'round {done}' if done else 'the start'}"
                )
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
        if event["dropped"] or not self._console.is_terminal:
            self.say("; ".join(parts))

    def _draw(self) -> RenderableType:
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
        marks = [Text("●" if step in state["done"] else "✗" if gone else "·") for step in SHORT]
        for mark in marks:
            mark.stylize("green" if mark.plain == "●" else "red" if gone else "dim")
        epsilon = state.get("epsilon")
        dice = self._dice.get(name)
        return [
            self._plain(name, "red" if gone else ""),
            bar,
            *marks,
            "" if epsilon is None else f"{epsilon:.2f}",
            "" if dice is None else f"{dice:.2f}",
        ]
