"""The sites of a simulation as actors of a Ray cluster: `fedseg simulate --ray ADDRESS`.

An actor *is* a site: it holds the site's images, key and marks, charges the site's ledger, trains, and masks in its own
session. So an update never leaves it; what travels are the global model and the protocol's messages. Every node reads
the images and the run folder under the same path, such as on one machine or on a shared disk. An actor that dies is a
site that was killed: the round goes on without it, and Ray starts it again for the next one.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedseg.attempt import Emit
from fedseg.course import Course
from fedseg.data.loading import load_site
from fedseg.errors import ConfigError
from fedseg.events import Note, Trained
from fedseg.ledger import Ledger
from fedseg.models import build_model
from fedseg.parties import Agreed, Party, Train, identity, rounding_of
from fedseg.study import parse_study
from fedseg.train import train_round
from fedseg.update import Update, adopt, model_hash
from secagg import PinnedRoster, wire

try:
    import ray
    from ray.exceptions import RayActorError, RayError
except ImportError:
    raise ConfigError("--ray needs Ray, which is not installed; run: pip install 'secagg[ray]'") from None

LOCAL = "local"
"""In place of an address: a cluster of this machine's cores, which ends with the run."""


@dataclass(frozen=True)
class Place:
    """What tells an actor which site it is; it reads everything else itself.

    Attributes:
        study: as TOML.
        run: the run folder, where its key, marks and ledger lie.
        data: the site's images; None for made ones.
        training_run: the run's name.
        server_key: the server's verify key, 32 bytes.
        pinned: every site's verify key.
    """

    study: str
    run: str
    data: str | None
    training_run: str
    server_key: bytes
    pinned: Mapping[str, bytes]


class _Site:
    """The actor."""

    def __init__(self, site: str, place: Place) -> None:
        self._site, self._place, self._study = site, place, parse_study(place.study, "the study of the run")
        torch.set_num_threads(self._study.run.threads)
        study, run = self._study, Path(place.run)
        self._model = build_model(study)
        policy = Course(study, self._model).policy(place.server_key)
        private = study.trust.each_update_private
        agreed = Agreed(policy, PinnedRoster(place.pinned), place.training_run, study.hash(), private)
        marks = run / "marks"
        marks.mkdir(parents=True, exist_ok=True)
        self._party = Party(site, agreed, identity(run, site), marks, rounding_of(study.study.seed))
        self._data = load_site(None if place.data is None else Path(place.data), site, study)
        self._ledger = Ledger(run / "ledger" / f"{site}.jsonl")
        self._number = 0

    @ray.method(max_task_retries=-1)  # type: ignore[untyped-decorator]
    def ready(self) -> None:
        """Nothing; whoever asks waits until an actor that died is there again."""

    def open(self, start: bytes, number: int, state: NDArray[np.float32]) -> bytes:
        """The first message of a round, about the model that it was given (C-23)."""
        adopt(self._model, np.array(state))
        self._number = number
        return wire.encode(self._party.open(wire.decode_from_server(start), model_hash(state)))

    def hear(self, reply: bytes) -> tuple[bytes | None, list[int]]:
        """What it answers, and the steps that it trained for it."""
        steps: list[int] = []

        def train(site: str) -> Update:
            """See `train_round`."""
            return train_round(
                self._model,
                self._data,
                self._study,
                site=site,
                training_run=self._place.training_run,
                round_number=self._number,
                ledger=self._ledger,
                on_step=lambda step, of: steps.append(step),
            )

        answer = self._party.hear(wire.decode_from_server(reply), train)
        return None if answer is None else wire.encode(answer), steps

    def clip_rate(self) -> float | None:
        """See `Party.clip_rate`."""
        return self._party.clip_rate

    def replay(self, transcript: str, round_id: bytes) -> None:
        """See `Party.replay`."""
        self._party.replay(Path(transcript), round_id)


class OnRay:
    """All sites as actors; a `fedseg.parties.Sites`.

    Args:
        address: of a running cluster as `ray.init` takes it, or `LOCAL`.
        place: by site, where it is and what it reads.
        emit: takes `Trained`, and `Note` where an actor died.

    Raises:
        ConfigError: no cluster answers there.
    """

    quantised = None
    """What a site masked stays there."""

    def __init__(self, address: str, place: Mapping[str, Place], emit: Emit) -> None:
        self._emit = emit
        self._mine = not ray.is_initialized()
        if self._mine:
            local = address == LOCAL
            try:
                ray.init(
                    address=None if local else address, include_dashboard=False if local else None, log_to_driver=False
                )
            except (ConnectionError, RayError, ValueError, RuntimeError) as error:
                raise ConfigError(f"--ray {address}: no cluster answers there ({error})") from None
        # No core is kept for a site that waits: there may be more sites than cores.
        actor = ray.remote(num_cpus=0, max_restarts=-1)(_Site)
        self._actors = {site: actor.remote(site, where) for site, where in place.items()}
        self._state: Any = None
        self._number = 0
        self._opened: tuple[str, ...] = ()

    def begin(self, number: int, state: NDArray[np.float32]) -> None:
        """Which round comes next, and the state that it is about: it lies in the object store once for all sites."""
        self._number, self._state = number, ray.put(state)

    def open(self, sites: Collection[str], start: bytes, model_hash: bytes) -> Mapping[str, bytes]:
        """See `fedseg.parties.Sites`."""
        self._opened = tuple(sorted(sites))
        self._each(self._opened, lambda site, actor: actor.ready.remote())
        answers = self._each(self._opened, lambda site, actor: actor.open.remote(start, self._number, self._state))
        return dict(answers)

    def hear(self, replies: Mapping[str, bytes], train: Train) -> Mapping[str, bytes]:
        """See `fedseg.parties.Sites`; `train` is not called, for each actor trains by itself."""
        answers = {}
        heard = self._each(replies, lambda site, actor: actor.hear.remote(replies[site]))
        for site, (answer, steps) in heard.items():
            for step in steps:
                self._emit(Trained(round=self._number, site=site, step=step, steps=len(steps)))
            if answer is not None:
                answers[site] = answer
        return answers

    @property
    def clip_rate(self) -> Mapping[str, float]:
        """See `fedseg.parties.Sites`."""
        rates = self._each(self._opened, lambda site, actor: actor.clip_rate.remote())
        return {site: rate for site, rate in rates.items() if rate is not None}

    def replay(self, transcript: Path, round_id: bytes) -> None:
        """See `fedseg.parties.Party.replay`; each site verifies it for itself."""
        self._each(self._actors, lambda site, actor: actor.replay.remote(str(transcript), round_id))

    def close(self) -> None:
        """End every actor, and the cluster where it was started for this run."""
        for actor in self._actors.values():
            ray.kill(actor)
        if self._mine:
            ray.shutdown()

    def _each(self, sites: Collection[str], ask: Callable[[str, Any], Any]) -> dict[str, Any]:
        """Ask these sites at once; what each said, less those whose actor died.

        Raises:
            SecAggError, FedSegError: what a site raised.
        """
        asked = {site: ask(site, self._actors[site]) for site in sorted(sites)}
        said = {}
        for site, answer in asked.items():
            try:
                said[site] = ray.get(answer)
            except RayActorError:
                self._emit(Note(text=f"the actor of {site} died; Ray starts it again"))
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
        return said
