"""T-16: every model of the run is the one before it and the published sum, and the last one is the file that is there.

Nobody keeps the models in between: they are made again from the start of the study on, in one pass over the sums, and
with them what an optimiser remembers.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedseg.course import Course
from fedseg.errors import ConfigError
from fedseg.evidence import HELD, NOT_CHECKED, VIOLATED, Finding, State
from fedseg.models import build_model, load_model
from fedseg.models.standardising import MEAN, SD, follow
from fedseg.start import same_everywhere, starting_model
from fedseg.update import flatten, model_hash
from fedseg.verifying.material import Material, Run
from secagg.context import GENESIS
from secagg.quantize import dequantize


class Reached(NamedTuple):
    """How far the sums lead: the last round, the state after it, and what ended it early.

    A state is d weights, and behind them what the mechanism's optimiser keeps.
    """

    round: int
    state: NDArray[np.float32]
    outcome: State
    why: str


def t16_next_model(given: Material) -> Iterator[Finding]:
    """T-16: from the start to the last model, bit for bit."""
    reached = reached_in(given)
    if reached.round:
        told = f"made again from the start over {reached.round} rounds, as each round's transcript names it"
        yield Finding("T-16", HELD, "models", told, reached.round)
    if reached.outcome != HELD:
        yield Finding("T-16", reached.outcome, "models", reached.why)
        return
    for run in given.runs:
        yield _last(run, reached, given.course)


def reached_in(given: Material) -> Reached:
    """Add sum after sum to the start, for as long as each round began from the state that the last one led to."""
    nothing = np.empty(0, np.float32)
    if not given.rounds:
        why = "a plain sum leaves none" if given.runs[0].plain else "none with a sum was kept here"
        return Reached(0, nothing, NOT_CHECKED, f"no transcripts: {why}, so no model was made again")
    try:
        model = starting_model(given.study)
    except ConfigError as error:
        return Reached(0, nothing, NOT_CHECKED, f"the start of the study is not here: {error}")
    state, head, last = given.course.opened(model), GENESIS, 0
    for number, (path, told) in given.rounds.items():
        if told.context.previous_head != head:
            said = f"transcripts are missing between rounds {last} and {number}: models after them were not made again"
            return Reached(last, state, NOT_CHECKED, said)
        if told.context.model_hash != model_hash(state):
            if not last and not same_everywhere(given.study):
                said = "the public start was trained here, and may have been rounded otherwise elsewhere"
                return Reached(last, state, NOT_CHECKED, said)
            what = f"the model after round {last}" if last else "the start of the study"
            return Reached(last, state, VIOLATED, f"{path.name}: round {number} did not begin from {what}")
        if strangers := sorted(set(told.included) - given.study.in_round(number)):
            said = f"{path.name}: {', '.join(strangers)} in the sum of round {number}, which is not drawn into it"
            return Reached(last, state, VIOLATED, said)
        total = dequantize(told.total, given.policy)
        state = given.course.following(state, total, told.included, given.policy, told.excess_seeds)
        head, last = told.receipt.head, number
    return Reached(last, state, HELD, "")


def _last(run: Run, reached: Reached, course: Course) -> Finding:
    """The model file of a run against the last model that was made again."""
    if not run.model.is_file():
        return Finding("T-16", NOT_CHECKED, str(run), f"{run.model.name} is not there")
    try:
        model = load_model(run.model, run.study)
        vector = flatten(model)
    except ConfigError as error:
        return Finding("T-16", VIOLATED, str(run), str(error))
    last = max(run.ended, default=0)
    if last > reached.round:
        said = f"the transcripts end with round {reached.round} and this model is of round {last}"
        return Finding("T-16", NOT_CHECKED, str(run), said)
    if last < reached.round:
        said = f"broke off after round {last}: its model is not the last one"
        return Finding("T-16", NOT_CHECKED, str(run), said)
    made = course.weights(reached.state)
    seen, scale = dict(model.named_buffers()), build_model(run.study)
    follow(scale, reached.state, run.study)
    if any(name in (MEAN, SD) and seen[name].tolist() != one.tolist() for name, one in scale.named_buffers()):
        says = "the study" if run.study.asked is None else "the sum of statistics"
        said = f"mean and deviation in {run.model.name} are not those that {says} says"
        return Finding("T-16", VIOLATED, str(run), said)
    if vector.tobytes() == made.tobytes():
        which = "the running average of the models up to" if course.study.federation.ema else "the model after"
        told = f"{run.model.name} is {which} round {last}, bit for bit"
        return Finding("T-16", HELD, str(run), told, len(vector))
    differing = int(np.count_nonzero(vector.view(np.uint32) != made.view(np.uint32)))
    said = f"{differing} of {len(vector)} values of {run.model.name} are not those of the last model plus the last sum"
    return Finding("T-16", VIOLATED, str(run), said, len(vector))
