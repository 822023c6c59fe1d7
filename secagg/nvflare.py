"""secagg inside NVFlare's Collab API: a mixin for sites, a mean for servers, and a FedAvg recipe of both.

    class Site(SecAggSite):
        def train(self, model): ...   # arrays, number of examples, metrics

A site's id in the roster is its name in NVFlare, whose certificates say who calls. Keys, roster, policy and marks come
from each party's own folder (`secagg.home`), never from the job. docs/howto/nvflare.md says what a job that ships code
can do.
"""

import os
import queue
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from logging import getLogger
from pathlib import Path
from threading import RLock
from typing import Any, Self

import numpy as np

try:
    from nvflare.collab import CollabRecipe, collab
    from nvflare.collab.api.context import get_call_context, set_call_context
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"secagg.nvflare needs {error.name}, which is not installed; run: pip install 'secagg[nvflare]'",
        name=error.name,
    ) from None

from secagg.arguments import kind_of, must_be
from secagg.driver import (
    ClientAction,
    ClientDriver,
    Completed,
    Exposed,
    Failed,
    NeedInput,
    Published,
    Save,
    Send,
    ServerAction,
)
from secagg.errors import ConfigError, IllegalTransitionError, InconsistentViewError
from secagg.federated import Arrays, Mean, mean_of, model_hash, values_for
from secagg.home import Home
from secagg.prg import Executor
from secagg.printable import printable
from secagg.steps import MASKED_INPUT_COLLECTION
from secagg.transcript.record import looks_like

FOLDER = "SECAGG_FOLDER"
"""Environment variable of a site: its own folder, whatever a job says; ``{site}`` in it is the site's name."""

_log = getLogger("secagg.nvflare")


class SecAggSite(ABC):
    """A site's side: inherit from it, and write `train`.

    Args:
        folder: of the site, for simulations; ``{site}`` in it is the site's name. A site whose environment has
            ``SECAGG_FOLDER`` takes that one and no other.
    """

    def __init__(self, folder: str = "") -> None:
        self.folder = folder
        self._lock = RLock()
        self._home: Home | None = None
        self._driver: ClientDriver | None = None

    @abstractmethod
    def train(self, model: Arrays) -> tuple[Arrays, float, Mapping[str, float]]:
        """Train the model here: the arrays afterwards, the number of examples, and metrics by name."""

    @collab.publish  # type: ignore[untyped-decorator]
    def secagg(self, parts: list[bytes], model: dict[str, Any] | None) -> dict[str, Any]:
        """What the server calls: protocol messages in, protocol messages out.

        Args:
            parts: of the server, in their order.
            model: arrays by name, in the step that wants the update.

        Returns:
            ``parts``; where the site takes part in no sum yet, ``exposed``, the rounds, and ``reason`` (C-05, C-26).
        """
        with self._lock:
            if self._driver is None or self._home is None:
                self._home = Home.read(_own_folder(os.environ.get(FOLDER) or self.folder, collab.site_name))
                self._store = self._home.store()
                self._driver = self._home.client(self._store)
            answer: dict[str, Any] = {"parts": [], "exposed": [], "reason": ""}
            for part in _bytes_in(parts):
                for action in self._actions(self._driver, self._home, part, model):
                    match action:
                        case Send():
                            answer["parts"].append(bytes(action.data))
                        case Exposed():
                            rounds = [round_id.hex() for round_id in action.round_ids]
                            answer |= {"exposed": rounds, "reason": action.reason}
                        case Failed():
                            answer["reason"] = action.reason
            return answer

    def _actions(
        self, driver: ClientDriver, home: Home, part: bytes, model: dict[str, Any] | None
    ) -> list[ClientAction]:
        actions = home.receive(driver, self._store, part)
        if any(isinstance(action, NeedInput) for action in actions):
            if model is None:
                raise InconsistentViewError("C-23", "the server sent no model with the reports of this round")
            home.takes(driver, model, model_hash(model))
            made = self.train(dict(model))
            if not isinstance(made, tuple) or len(made) != 3:
                raise ConfigError(f"train returned {kind_of(made)}: return arrays, number of examples, and metrics")
            arrays, weight, metrics = made
            base = model if home.task.changes else None
            actions += driver.provide(values_for(home.policy.fields, arrays, weight, metrics, base))
        return actions


def _own_folder(folder: str, site: str) -> str:
    if not folder:
        raise ConfigError(f"this site has no secagg folder; name it in its environment, {FOLDER}")
    try:
        return folder.format(site=site)
    except (KeyError, IndexError, ValueError):
        raise ConfigError(f"the folder {folder!r}: in braces stands {{site}} and nothing else") from None


def _bytes_in(parts: object) -> list[bytes]:
    """Of what somebody sent whatever is bytes: `bytes` of a number would be as many zeros."""
    return [part for part in parts if isinstance(part, bytes)] if isinstance(parts, list) else []


def _said(answer: object) -> tuple[list[bytes], list[str], object]:
    """Parts, rounds and reason of a site's answer, whatever else it sent: one site must not end the server."""
    said = answer if isinstance(answer, dict) else {}
    rounds = said.get("exposed")
    named = [each for each in rounds if isinstance(each, str)] if isinstance(rounds, list) else []
    return _bytes_in(said.get("parts")), named, said.get("reason")


class SecAggServer:
    """The server's side, within a ``@collab.main``: `mean` is a round. A context manager, which ends its threads.

    Args:
        folder: of the server (`secagg.home`).
        step_seconds: how long a step waits for a site, training apart.
        input_seconds: how long training may take.
        attempts: how often a round is tried.
        executor: what expands masks, such as a `secagg.ray.RayExecutor`.

    Raises:
        ConfigError: the folder lacks something.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        step_seconds: float = 60.0,
        input_seconds: float = 3600.0,
        attempts: int = 3,
        executor: Executor | None = None,
    ) -> None:
        self._home, self._seconds = Home.read(folder), (step_seconds, input_seconds)
        self._driver = self._home.server(
            executor=executor, step_seconds=step_seconds, input_seconds=input_seconds, attempts=attempts
        )
        self._answers: queue.Queue[tuple[str, list[bytes], Any]] = queue.Queue()
        self._calls = ThreadPoolExecutor(len(self._driver.pinned), "secagg")
        self._calling: list[str] = []  # a site twice where a call to it is late and the next one is out
        self._later: dict[str, list[bytes]] = {}
        self._model: Arrays = {}
        self._ended: Completed | Failed | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._calls.shutdown(wait=False)

    def mean(self, model: Arrays) -> Mean | None:
        """One round of training on this model; None where there is no sum.

        Call it from the thread of ``@collab.main``.
        """
        self._begin(model)
        while self._ended is None:
            self._listen()
            self._do(self._driver.tick(time.monotonic()))
        session = self._driver.session
        if not isinstance(self._ended, Completed) or session is None or session.result is None:
            return None
        try:
            return mean_of(
                session.result, self._driver.policy, session.included, model, changes=self._home.task.changes
            )
        except ConfigError as error:  # all sites together have no example
            _log.warning("a sum without a mean: %s", error)
            return None

    def _begin(self, model: Arrays) -> None:
        """Open a round; first, without privacy, the last result is sent: T-02 wants confirmations."""
        if self._driver.running:
            raise IllegalTransitionError("a round is under way")
        self._ended, self._model = None, model
        if self._driver.deadline is not None:
            self._call({site: [] for site in self._later})
            until = time.monotonic() + self._seconds[0]
            while self._calling and self._driver.deadline is not None and time.monotonic() < until:
                self._listen()
        here = {client.name for client in collab.clients} & self._driver.pinned.keys()
        self._do(self._driver.begin(model_hash(model), here, now=time.monotonic()))

    def _listen(self) -> None:
        """Hear the next site, and give up on those that no call is out to."""
        with suppress(queue.Empty):
            site, brought, answer = self._answers.get(timeout=0.1)
            self._calling.remove(site)
            if isinstance(answer, Exception):  # what went with that call goes with the next one; twice does no harm
                self._later[site] = [*brought, *self._later.get(site, [])]
                _log.warning("%s does not answer: %s", site, printable(answer))
            else:
                parts, rounds, reason = _said(answer)
                for part in parts:
                    self._do(self._driver.receive(site, part, time.monotonic()))
                if reason:
                    _log.warning("%s: %s", site, printable(reason))
                kept = self._home.transcripts(self._driver.book.receipts, rounds)
                self._later.setdefault(site, []).extend(kept)
        for site in sorted(self._driver.awaited - set(self._calling)):
            if self._ended is None:
                self._do(self._driver.gone(site, time.monotonic()))
                self._do(self._driver.over(site, time.monotonic()))  # and it will not be back

    def _do(self, actions: list[ServerAction]) -> None:
        sends: dict[str, list[bytes]] = {}
        for action in actions:
            match action:
                case Send():
                    sends.setdefault(action.to, []).append(bytes(action.data))
                case Save():
                    self._home.save_book(action.book)
                case Published() if action.transcript is not None:
                    data = Path(action.transcript).read_bytes()
                    for site in self._driver.pinned:  # the newest alone: a site that lacks an older one names it
                        waits = [part for part in self._later.get(site, []) if not looks_like(part)]
                        self._later[site] = [*waits, data]
                case Completed() | Failed():
                    self._ended = action
                    _log.info("%s", action)
                case _:
                    _log.warning("%s", action)
        if isinstance(self._ended, Completed) and self._home.task.private:
            return  # sites see the next model and, in the next start, the receipt: nobody needs the sum itself
        if self._ended is not None:
            for site, parts in sends.items():
                self._later.setdefault(site, []).extend(parts)
        elif sends:
            self._call(sends)

    def _call(self, sends: dict[str, list[bytes]]) -> None:
        session = self._driver.session
        training = session is not None and not session.finished and session.step == MASKED_INPUT_COLLECTION
        model = dict(self._model) if training else None
        proxies, context = {client.name: client for client in collab.clients}, get_call_context()
        seconds = self._seconds[1] if training else self._seconds[0]

        def call(site: str, brought: list[bytes], parts: list[bytes]) -> None:
            """Ask one site, in a thread of its own."""
            set_call_context(context)
            try:
                answer = proxies[site](timeout=seconds).secagg([*brought, *parts], model)
            except Exception as error:
                answer = error
            self._answers.put((site, brought, answer))

        for site, parts in sends.items():
            if site in proxies:
                self._calling.append(site)
                self._calls.submit(call, site, self._later.pop(site, []), parts)


class FedAvgServer:
    """What `SecAggFedAvgRecipe` runs at the server.

    Args:
        folder: of the server (`secagg.home`).
        initial: the model to begin with, an .npz file of arrays by name, in that folder.
        rounds: how many.
        result: where the last model goes, as .npz, in that folder.
        step_seconds, input_seconds: as `SecAggServer` takes them.
    """

    def __init__(
        self,
        folder: str,
        initial: str,
        rounds: int,
        result: str,
        step_seconds: float = 60.0,
        input_seconds: float = 3600.0,
    ) -> None:
        self.folder, self.rounds = folder, rounds
        self.initial, self.result = str(Path(folder, initial)), str(Path(folder, result))
        self.step_seconds, self.input_seconds = step_seconds, input_seconds

    @collab.main  # type: ignore[untyped-decorator]
    def run(self) -> None:
        """All rounds; one without a sum leaves the model as it was."""
        with np.load(self.initial, allow_pickle=False) as arrays:
            model = dict(arrays)
        with SecAggServer(self.folder, step_seconds=self.step_seconds, input_seconds=self.input_seconds) as server:
            for number in range(1, self.rounds + 1):
                if mean := server.mean(model):
                    model = mean.arrays
                    _log.info("round %s: %s examples, %s", number, mean.weight, mean.metrics)
        np.savez(self.result, **model)


class SecAggFedAvgRecipe(CollabRecipe):  # type: ignore[misc]
    """Federated averaging of which the server sees the mean only: a drop-in for NVFlare's FedAvg recipe.

    Args:
        job_name: as for any recipe.
        site: a `SecAggSite` of yours.
        folder: of the server (`secagg.home`).
        initial: the model to begin with, an .npz file of arrays by name, in that folder.
        result: where the last model goes, in that folder.
        min_clients: the job starts when so many are connected, and NVFlare ends it when fewer are left. At least the
            policy's `min_survivors`; fewer than all, where one that is killed shall not end the job.
        rounds: how many.
        step_seconds: how long a step waits for a site, training apart.
        input_seconds: how long training may take. NVFlare may not notice that a site is gone: then so long is waited.
        more: as `CollabRecipe` takes it.
    """

    def __init__(
        self,
        job_name: str,
        site: SecAggSite,
        folder: str,
        initial: str,
        result: str,
        *,
        min_clients: int,
        rounds: int = 3,
        step_seconds: float = 60.0,
        input_seconds: float = 3600.0,
        **more: Any,
    ) -> None:
        must_be(site, SecAggSite, "site", "give an object of your own class, such as Site()")
        server = FedAvgServer(folder, initial, rounds, result, step_seconds, input_seconds)
        super().__init__(job_name, server, site, min_clients=min_clients, **more)
