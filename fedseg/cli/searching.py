"""`fedseg search`: settings of a study, by trials."""

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedseg.cli.terminal import DataFolder, StudyFile, app, reading
from fedseg.errors import ConfigError
from secagg.terminal import say

if TYPE_CHECKING:
    from fedseg.compare.rows import Cohort
    from fedseg.search import Space, Tried
    from fedseg.study import Study


@app.command()
def search(
    study: StudyFile,
    space: Annotated[Path, typer.Option(help="TOML with the settings to search over.", show_default=False)],
    data: DataFolder = None,
    trials: Annotated[int, typer.Option(min=1, help="That are to complete.")] = 20,
    public: Annotated[bool, typer.Option("--public", help="The images are public: nobody pays for trials.")] = False,
    charge: Annotated[
        bool, typer.Option("--charge", help="Charge every trial in the ledgers that these images have for life.")
    ] = False,
    epsilon: Annotated[float | None, typer.Option(help="Of one trial, with --charge.", show_default=False)] = None,
    budget: Annotated[
        float | None,
        typer.Option(help="Of all trials together, with --charge.", show_default="the study's epsilon"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of what is proposed, and of trials that nobody pays for.")] = 1,
    folder: Annotated[Path, typer.Option("--out", help="Where trials and the best study go.")] = Path("search"),
) -> None:
    """Search for settings of a study by trials.

    On made patients or with --public for free, with --charge for epsilon. Trials are scored on patients set aside from
    those in training; who is held out has no part in it. The same command goes on after an interruption.
    """
    from fedseg.data.layouts.table import layout_of
    from fedseg.data.loading import load_cohort
    from fedseg.search import SAID, Images, Wanted, read_space
    from fedseg.search import search as searched
    from fedseg.study import load_study

    loaded, settings = load_study(study), read_space(space)
    images: Images = "public" if public else "charged" if charge else "made"
    if layout_of(loaded).needs_folder == (images == "made") or (public and charge):
        raise ConfigError(
            "whose images are these? give --public where they are, or --charge where patients pay for each trial"
            if layout_of(loaded).needs_folder
            else f"layout = '{loaded.data.layout}': its patients are made; leave --public and --charge away"
        )
    if charge != (epsilon is not None) or (budget is not None and not charge):
        raise ConfigError("--charge, and --epsilon for what one trial may spend, go together; --budget goes with both")
    for name, given in (("epsilon", epsilon), ("budget", budget)):
        if given is not None and not 0 < given < math.inf:
            raise ConfigError(f"--{name} {given:g}: is no epsilon; give a number above 0")
    with reading(data):
        cohort = load_cohort(data, loaded)
    best, began = [-1.0], [time.monotonic()]

    def told(tried: "Tried") -> None:
        """A line a trial."""
        took, began[0] = time.monotonic() - began[0], time.monotonic()
        values = ", ".join(f"{field} {value:g}" if isinstance(value, float) else f"{field} {value}"
                           for field, value in tried.values.items())  # fmt: skip
        if tried.score is None:
            say(f"trial {tried.number}: failed ({tried.why}); {values}")
            return
        best[0] = max(best[0], tried.score)
        say(f"trial {tried.number}: {tried.score:.4f} (best here {best[0]:.4f}), {took:.0f} s; {values}")

    wanted = Wanted(
        trials=trials,
        images=images,
        out=folder,
        seed=seed,
        epsilon=epsilon or 0.0,
        budget=(loaded.privacy.epsilon or 0.0) if budget is None else budget,
        data=data,
    )
    minutes = _dearest(loaded, settings, cohort) / 60
    say(f"by estimate the dearest trial takes {minutes:.2g} CPU minutes, {trials} of them {minutes * trials:.2g}")
    path = searched(loaded, cohort, settings, wanted, told)
    say(f"{path}: the best of them; chosen on {SAID[images]}")


def _dearest(study: "Study", space: "Space", cohort: "Cohort") -> float:
    """CPU seconds of a trial with the most rounds and steps that a space has; the rest is the study's."""
    from fedseg.compare.cost import Prices
    from fedseg.compare.rows import Cell, Row

    most = {}
    for name in ("rounds", "local_steps"):
        given = space.get(f"study.{name}", {})
        ends = given if isinstance(given, list) else [given.get("high")]
        if numbers := [end for end in ends if isinstance(end, int)]:
            most[name] = max(numbers)
    row = Row("search", "a trial", "federation", study.privacy.mechanism)
    cell = Cell(row, study.model_copy(update={"study": study.study.model_copy(update=most)}), 1)  # fit or not
    return Prices(cohort, [cell]).of(cell)
