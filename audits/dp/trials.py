"""The canary audits: which games are played at which depth.

Noise is the operating system's, as in a real study, so that bounds differ a little from run to run; coins are the
seed's. Of Gaussian noise over everybody the number of rounds changes no bound, because so many rounds are one Gaussian:
`quick` plays few of them, `full` the sixty that people train.
"""

from collections.abc import Iterable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from audits.base import Result, Task
from audits.dp import canary, games
from audits.dp import pipeline as through
from audits.dp.canary import Planted, Played, study_of
from audits.dp.judging import Judged, figures, judge, picture, said, together

CLAIMS = (1.0, 2.0, 4.0)


def local(task: Task, planted: Planted = nullcontext) -> Result:
    """Mechanism "local", everybody in every step; and once with half of the patients drawn."""
    full = task.depth == "full"
    sizes = {1.0: (5000, 20), 2.0: (5000, 20), 4.0: (5000, 60)} if full else dict.fromkeys(CLAIMS, (5000, 1))
    judged = []
    for claim, (m, rounds) in sizes.items():
        play = partial(canary.play_local, study_of("local", claim, rounds=rounds), m, planted=planted)
        judged.append(_judged(task, f"{claim:g}", play))
    study = study_of("local", 4.0, rounds=20 if full else 4, sample_rate=0.5)
    drawn = _judged(task, "drawn", partial(canary.play_local, study, 5000 if full else 2000, planted=planted))
    shown = picture(judged, task.out / "local.png", "local: whoever sees a site's updates")
    tried = "Of patients who were put into the training of a site, or left out, by a coin"
    says = f"{tried}, {said(judged)}; with half of the patients drawn in each step {said([drawn])}."
    told = figures(judged) | {f"{name}, half drawn": value for name, value in figures([drawn]).items()}
    rows = tuple({"game": name, **game.row} for name, game in _named(judged, drawn))
    return Result(together([*judged, drawn]), says, told, (shown,), rows)


def distributed(task: Task, planted: Planted = nullcontext) -> Result:
    """Mechanism "distributed" with both kinds of noise."""
    full = task.depth == "full"
    judged = []
    for claim in CLAIMS:
        study = study_of("distributed", claim, rounds=12 if full else 1, sites=4)
        play = partial(games.play_distributed, study, 4000, planted=planted)
        judged.append(_judged(task, f"{claim:g}", play))
    study = study_of("distributed", 4.0, rounds=6 if full else 1, sites=4, more='noise = "skellam"')
    skellam = _judged(task, "skellam", partial(games.play_distributed, study, 2000, planted=planted))
    shown = picture(judged, task.out / "distributed.png", "distributed: the server with one of four sites")
    tried = "Of patients whose sites added their shares of the noise, seen by a server that knows what 1 site of 4 sent"
    says = f"{tried} in sums of 3, {said(judged)}; with Skellam noise {said([skellam])}."
    told = figures(judged) | {f"{name}, Skellam": value for name, value in figures([skellam]).items()}
    rows = tuple({"game": name, **game.row} for name, game in _named(judged, skellam, "Skellam noise"))
    return Result(together([*judged, skellam]), says, told, (shown,), rows)


def svt(task: Task, planted: Planted = nullcontext) -> Result:
    """Mechanism "svt"."""
    sizes = {1.0: 1500, 2.0: 1500, 4.0: 4000} if task.depth == "full" else {0.5: 500, 1.0: 500}
    judged = []
    for claim, trials in sizes.items():
        study = study_of("svt", claim, rounds=1, more="released = 1.0")
        judged.append(_judged(task, f"{claim:g}", partial(games.play_svt, study, trials, planted=planted)))
    shown = picture(judged, task.out / "svt.png", "svt: whoever sees a site's releases")
    says = f"Of a patient who turns the whole update of a site, in {sum(sizes.values())} releases, {said(judged)}."
    return Result(together(judged), says, figures(judged), (shown,), tuple(game.row for game in judged))


def pipeline(task: Task, planted: Planted = nullcontext) -> Result:
    """All three mechanisms through rounds of secure aggregation, read from transcripts."""
    full = task.depth == "full"
    m, rounds = (3000, 5) if full else (1000, 2)
    plays = {
        "local": partial(through.play_local, study_of("local", 4.0, rounds=rounds), m),
        "distributed": partial(through.play_distributed, study_of("distributed", 4.0, rounds=rounds, sites=4), m),
        "svt": partial(
            through.play_svt,
            study_of("svt", 1.0 if full else 0.25, rounds=1, more="released = 1.0"),
            400 if full else 60,
        ),
    }
    judged = {name: _judged(task, name, partial(play, planted=planted)) for name, play in plays.items()}
    parts = [f"{name}: {said([game])}" for name, game in judged.items()]
    says = f"From the integer sums of rounds whose transcripts hold, {'; '.join(parts)}."
    told: dict[str, float | int | str] = {}
    for name, game in judged.items():
        told |= {f"{name}, {figure}": value for figure, value in figures([game]).items()}
    rows = tuple({"mechanism": name, **game.row} for name, game in judged.items())
    return Result(together(judged.values()), says, told, rows=rows)


def _judged(task: Task, name: str, play: "partial[Played]") -> Judged:
    folder = _folder(task, name)
    return judge(play(seed=task.seed, folder=folder, progress=task.progress))


def _folder(task: Task, name: str) -> Path:
    folder = task.out / name
    folder.mkdir()
    return folder


def _named(judged: Iterable[Judged], other: Judged, name: str = "half drawn") -> Iterable[tuple[str, Judged]]:
    return [*(("everybody in every step", game) for game in judged), (name, other)]
