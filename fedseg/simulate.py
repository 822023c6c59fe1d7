"""All sites of a federation in one process, or on a Ray cluster, through the same protocol code as the executables.

It runs where the data is, so it may show everything. What it spends is in ledgers of the run folder only, unless it is
charged in the ledgers that the images have for life (`Options.charged`). A simulation trusts its own process: secure
aggregation is there to be exercised and measured, and `plain` replaces it by a plain sum with the bit-identical model.
"""

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from fedseg.aggregate import PlainSum, SecureSum
from fedseg.budget.charge import charge, spent
from fedseg.course import Course, own_of
from fedseg.data.cases import SiteData
from fedseg.data.layouts.table import layout_of
from fedseg.data.roles import FOLDER as ROLES
from fedseg.data.roles import going_on
from fedseg.device import device_of
from fedseg.errors import EARLIER, BudgetExceededError, ConfigError, LedgerError, RoundFailedError
from fedseg.evaluation import (
    Scores,
    assess,
    classes_of,
    dice_table,
    evaluate,
    joined,
    mean_interval,
    measure_tables,
    overall_mean,
    shown,
    structure_means,
)
from fedseg.events import Burned, Ended, EpsilonSpent, Left, Note, RoundEnded, RoundStarted, Scored, Trained
from fedseg.exposure import MARKS, data_set_ledger
from fedseg.ledger import Ledger
from fedseg.ledger.home import Home
from fedseg.models.standardising import follow
from fedseg.parties import Agreed, InProcess, Sites, Train, identity, rounding_of
from fedseg.records import Validated
from fedseg.runfolder import FEDERATION, LIFETIME, POLICY, TRANSCRIPTS, RunFolder
from fedseg.sharing.sending import LOST, Owed
from fedseg.start import starting_model
from fedseg.statistics import answer
from fedseg.study import Study
from fedseg.summary import before_training, found_in, metrics_of, study_event
from fedseg.train import train_round
from fedseg.update import Update, model_hash
from secagg import ExposureError, PinnedRoster, ProtocolError, RoundBook, SqliteStore
from secagg.files import Federation, federation_text, policy_text
from secagg.writing import PRIVATE_FOLDER, write_whole

if TYPE_CHECKING:
    from fedseg.cluster import OnRay

ATTEMPTS = 3
"""Failed attempts in a row after which a simulation gives up: in one process nothing mends itself."""


@dataclass(frozen=True)
class Options:
    """How to simulate; none of it changes what the study means.

    Attributes:
        plain: a plain sum in place of secure aggregation.
        alone: train on this site's data only; the baseline of a hospital that does not take part.
        leave_out: the site that does not train: its patients are new to the model. Goes with `plain`.
        transcripts: keep every round's public transcript, and roster and policy to verify it with.
        charged: folder of the images, one subfolder a site: rounds are charged in the ledgers that these have for life,
            as `fedseg site` does. None keeps ledgers of this run alone.
        ray: address of a Ray cluster whose actors are the sites, see `fedseg.cluster`; "" for this process.
        data: with `ray`, the folder of the images, one subfolder a site; None for made ones.
        silent: site to protocol step that it never sends in every round named by `silent_round`, as if killed there.
        silent_round: the round number of `silent`; 0 for none.
        command: how the run was started, for the record.
    """

    plain: bool = False
    alone: str = ""
    leave_out: str = ""
    transcripts: bool = False
    charged: Path | None = None
    ray: str = ""
    data: Path | None = None
    silent: Mapping[str, str] | None = None
    silent_round: int = 0
    command: str = ""


def simulate(folder: RunFolder, cohort: Mapping[str, SiteData], options: Options) -> Path:
    """Train a study to its end, or go on with an interrupted run.

    Args:
        folder: fresh from `RunFolder.create`, or `RunFolder.reopen`ed after an interruption.
        cohort: every site's data by site id.
        options: see `Options`.

    Returns:
        The complete run folder.

    Raises:
        RoundFailedError: no sum after several attempts.
        ConfigError, CaseError, LedgerError, PrivacyError: as loading, training and charging.
    """
    torch.set_num_threads(folder.study.run.threads)
    device_of(folder.study)
    if options.alone and options.alone not in cohort:
        raise ConfigError(f"site '{options.alone}' is not in the study; use one of {', '.join(cohort)}")
    if options.alone:
        trainable_alone(folder.study)
    if options.leave_out:
        trainable_without(folder.study, options.leave_out)
    if options.charged is not None:
        chargeable(folder.study)
    if options.ray and (options.plain or options.alone or options.charged):
        raise ConfigError(
            "--ray: on a cluster a site sends masked updates only and has the ledger of this run, so it goes with none "
            "of --plain, --alone and --charge; leave one of them away"
        )
    if options.ray and folder.study.asked is not None:
        raise ConfigError("--ray with [data] statistics = 'secure': actors answer with updates only; leave either away")
    if options.ray and folder.study.sharing.error_feedback:
        raise ConfigError("--ray with [sharing] error_feedback: actors keep nothing between rounds; leave either away")
    if options.ray and folder.study.federation.personal != "none":
        raise ConfigError("--ray with [federation] personal: actors keep nothing between rounds; leave either away")
    with ExitStack() as closing:
        return _Simulation(folder, cohort, options, closing).run()


def trainable_alone(study: Study) -> None:
    """Refuse to train one site with its share of the noise only: it is less than the epsilon of the study needs.

    Raises:
        ConfigError: the noise of the study is in the sum of its sites.
    """
    if study.trust.claims_epsilon and not study.trust.each_update_private:
        raise ConfigError(
            f"--alone with mechanism = '{study.privacy.mechanism}': one site has its share of the noise only, which "
            "protects too little; compare with --set privacy.mechanism=local"
        )
    if study.federation.participation:
        raise ConfigError(
            f"--alone with participation = {study.federation.participation}: a site that is alone is in every round, "
            "and its noise is planned for fewer; compare with --set federation.participation=0"
        )


def trainable_without(study: Study, site: str) -> None:
    """Refuse to train without a site where there is none such, or where its share of the noise would be missing.

    Raises:
        ConfigError: not a site of the study, or too few are left for the noise of the sum.
    """
    if site not in study.site_ids:
        raise ConfigError(f"site '{site}' is not in the study; use one of {', '.join(study.site_ids)}")
    least = study.policy(1).min_survivors
    shared = study.trust.claims_epsilon and not study.trust.each_update_private
    if shared and len(study.site_ids) - 1 < least:
        raise ConfigError(
            f"--leave-out {site}: the noise of the sum is that of {least} sites, and fewer are left; compare with "
            "mechanism = 'local'"
        )


def chargeable(study: Study) -> None:
    """Refuse to charge a run for life that can be repeated, or that has no patients.

    Raises:
        ConfigError: the study has a seed, or its patients are made.
    """
    if study.study.seed is not None:
        raise ConfigError(
            f"--charge with seed {study.study.seed}: noise that can be repeated protects nobody, so that no epsilon "
            "could be promised to these patients any more; train what you publish without a seed"
        )
    if not layout_of(study).needs_folder:
        raise ConfigError(
            f"--charge with layout = '{study.data.layout}': its patients are made, and nobody's; leave --charge away"
        )


class _Simulation:
    def __init__(self, folder: RunFolder, cohort: Mapping[str, SiteData], options: Options, closing: ExitStack) -> None:
        self.folder, self.options, self.study = folder, options, folder.study
        self.sites = [options.alone] if options.alone else [s for s in self.study.site_ids if s != options.leave_out]
        self.told: dict[str, str] = {}
        resumed = (folder.path / "state.json").is_file()
        mode = f"--alone {options.alone}" if options.alone else "--plain" if options.plain else "secure aggregation"
        mode = f"--leave-out {options.leave_out}" if options.leave_out else mode
        mode += "" if options.charged is None else " and --charge"
        if resumed and folder.tally.mode != mode:
            raise ConfigError(
                f"{folder.path}: was started with {folder.tally.mode}, not {mode}; resume it the same way"
            )
        folder.tally.mode = mode
        self.cohort = self._as_before(cohort)
        if options.charged is None:
            self.ledgers = {site: Ledger(folder.path / "ledger" / f"{site}.jsonl") for site in self.sites}
        else:
            self.ledgers = self._for_life(options.charged, closing, resumed)
        self.owed = {site: Owed() for site in self.sites} if self.study.sharing.error_feedback else {}
        if resumed and self.owed:
            folder.emit(Note(text=LOST))
        self.model = folder.model() if resumed else starting_model(self.study)
        self.course = Course(self.study, self.model)
        self.parameters = self.course.parameters
        self.own = {site: own for site in self.sites if (own := own_of(self.study, self.model)) is not None}
        self.state = self.course.opened(self.model)
        if resumed:
            self._go_on(folder.kept())
        server_key = identity(folder.path, "server")
        self.policy = self.course.policy(server_key.verify_key)
        self.book = RoundBook(folder.path.name, self.study.hash(), server_key, self.policy.max_corrupt)
        self.aggregator: PlainSum | SecureSum
        self.cluster: OnRay | None = None
        if options.plain or options.alone or options.leave_out:
            rounding = rounding_of(self.study.study.seed)
            self.aggregator = PlainSum(self.policy, rounding, folder.tally.completed + 1)
        else:
            if resumed:
                self.book.restore(folder.state()["book"])
            keys = {site: identity(folder.path, site) for site in self.study.site_ids}
            pinned = PinnedRoster({site: key.verify_key for site, key in keys.items()})
            private, marks = self.study.trust.each_update_private, folder.path / "marks"
            agreed = Agreed(self.policy, pinned, folder.path.name, self.study.hash(), private)
            kept = self._kept(pinned) if options.transcripts else None
            parties: Sites
            if options.ray:
                parties = self.cluster = self._on_ray(pinned)
            else:
                parties = InProcess(agreed, keys, marks, rounding_of(self.study.study.seed))
            closing.callback(parties.close)
            self.aggregator = SecureSum(agreed, self.book, parties, marks, kept)
        if not resumed:
            self._begin()

    def _on_ray(self, pinned: PinnedRoster) -> "OnRay":
        """Every site as an actor; Ray is imported here and nowhere else."""
        from fedseg.cluster import OnRay, Place

        data = self.options.data
        places = {
            site: Place(
                study=self.study.toml(),
                run=str(self.folder.path.resolve()),
                data=None if data is None else str((data / site).resolve()),
                training_run=self.book.training_run,
                server_key=self.policy.server_key,
                pinned=dict(pinned),
            )
            for site in self.study.site_ids
        }
        return OnRay(self.options.ray, places, self.folder.emit)

    def _kept(self, pinned: PinnedRoster) -> Path:
        """The folder for transcripts; roster and policy, which whoever verifies them brings, lie beside it."""
        federation = Federation(self.book.training_run, self.book.signing_key.verify_key, pinned)
        write_whole(self.folder.path / FEDERATION, federation_text(federation))
        write_whole(self.folder.path / POLICY, policy_text(self.policy))
        folder = self.folder.path / TRANSCRIPTS
        folder.mkdir(PRIVATE_FOLDER, exist_ok=True)
        return folder

    def _for_life(self, images: Path, closing: ExitStack, resumed: bool) -> dict[str, Ledger]:
        """The ledgers that the images have for life; the run folder says where they are."""
        home, runs, run = Home(), self.folder.path.parent, self.folder.path.name
        if missing := [str(images / site) for site in self.study.site_ids if not (images / site).is_dir()]:
            raise ConfigError(f"{missing[0]}: there is no such folder, and what is charged is charged by folder")
        states = {
            site: home.state_of(site, images / site, None, runs / f"{site}-state") for site in self.study.site_ids
        }
        ledgers = {}
        for site in self.sites:
            states[site].mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
            store = SqliteStore(states[site] / MARKS, site)
            closing.callback(store.close)
            others = [state for other, state in states.items() if other != site]
            ledgers[site] = data_set_ledger(states[site], store, None, self.cohort[site], others)
            if not resumed and any(entry.training_run == run for entry in ledgers[site].entries()):
                raise LedgerError(f"{ledgers[site].path}: has a training run '{run}' already; start this one again")
        where = {site: str(states[site]) for site in self.sites}
        write_whole(self.folder.path / LIFETIME, json.dumps(where, indent=1))
        return ledgers

    def _as_before(self, cohort: Mapping[str, SiteData]) -> Mapping[str, SiteData]:
        """The patients, without those who had the other role before an interruption; who came and went is told."""
        kept = {}
        for site, data in cohort.items():
            kept[site], told = going_on(self.folder.path / ROLES / f"{site}.json", data)
            for sentence in told:
                self.folder.emit(Note(text=sentence))
        return kept

    def _begin(self) -> None:
        secure = isinstance(self.aggregator, SecureSum)
        self.folder.emit(study_event(self.study, self.parameters, secure=secure))
        scores = self._judged(assess)
        self.folder.tally.baselines[before_training(self.study)] = mean_interval(scores.pooled())
        self._checkpoint()

    def run(self) -> Path:
        """Rounds until the study is complete or too few sites have budget left."""
        failed, reason = 0, "the study is complete"
        if self.folder.tally.last_round and not self._scored():
            self._score()
        while self.folder.tally.completed < self.study.study.rounds:
            sites = self._charged()
            if len(sites) < (1 if self.options.alone or self.options.leave_out else self.policy.min_survivors):
                reason = "too few sites have budget left for another round"
                break
            number, attempt = self.aggregator.number, self.book.attempt
            try:
                self._round(sites)
                failed = 0
            except (RoundFailedError, ProtocolError) as error:
                failed += 1
                self._checkpoint()  # a restart forgets no complaint
                self.folder.emit(Burned(round=number, attempt=attempt, reason=str(error)))
                if failed == ATTEMPTS or isinstance(error, ProtocolError) or isinstance(error.__cause__, ExposureError):
                    # S-20 and C-05: another attempt ends in the same way.
                    raise
        return self._finish(reason)

    def _drawn(self) -> list[str]:
        """Who is in the next round."""
        chosen = self.study.in_round(self.aggregator.number)
        return [site for site in self.sites if site in chosen]

    def _charged(self) -> list[str]:
        """Charge the next whole round at every site; a site whose budget it would pass has left."""
        staying = []
        for site in self._drawn():
            try:
                run, asking = self.book.training_run, self.study.asks(self.state)
                charge(self.ledgers[site], self.study, site, run, self.aggregator.number, asking=asking)
            except BudgetExceededError as error:
                self.folder.emit(Left(site=site, reason=str(error)))
                continue
            staying.append(site)
            payers = self.ledgers[site].payers
            if payers is not None and (told := payers.left_out) not in ("", self.told.get(site)):
                self.told[site] = told
                self.folder.emit(Note(text=f"{site}: {told}"))
        return staying

    def _round(self, sites: list[str]) -> None:
        number, attempt, emit = self.aggregator.number, self.book.attempt, self.folder.emit
        started = model_hash(self.state)
        emit(RoundStarted(round=number, attempt=attempt, model_hash=started.hex()))
        silent = dict(self.options.silent or {}) if number == self.options.silent_round else {}
        with self._training(sites, number) as train:
            outcome = self.aggregator.round(started, sites, train, emit, silent)
        asked = self.study.asks(self.state)
        included, seeds = outcome.ended.included, outcome.excess_seeds
        self.state = self.course.following(self.state, outcome.total, included, self.policy, seeds)
        for site, owed in self.owed.items():
            owed.settle(included=site in outcome.ended.included)
        for site, own in self.own.items():
            own.settle(included=site in outcome.ended.included)
        follow(self.model, self.state, self.study)
        if asked:
            emit(Note(text=found_in(self.study, self.state)))
        self._record(sites, outcome.ended)

    @contextmanager
    def _training(self, sites: list[str], number: int) -> Iterator[Train]:
        """All sites begin to train; what waits for the update of one. On a cluster a site trains by itself."""
        if self.cluster is not None:
            self.cluster.begin(number, self.state)
            yield lambda site: self._train(site, number)
            return
        with ThreadPoolExecutor(self.study.run.workers) as pool:
            updates = {site: pool.submit(self._train, site, number) for site in sites}
            try:
                yield lambda site: updates[site].result()
            finally:
                for update in updates.values():
                    update.cancel()

    def _train(self, site: str, number: int) -> Update:
        if self.study.asks(self.state):
            return answer(
                *(self.cohort[site], self.study),
                site=site,
                training_run=self.book.training_run,
                round_number=number,
                ledger=self.ledgers[site],
            )

        def on_step(step: int, steps: int) -> None:
            """Tell that a step was made."""
            self.folder.emit(Trained(round=number, site=site, step=step, steps=steps))

        on_step(0, self.study.study.local_steps)
        model = copy.deepcopy(self.model)
        return train_round(
            model,
            self.cohort[site],
            self.study,
            site=site,
            training_run=self.book.training_run,
            round_number=number,
            ledger=self.ledgers[site],
            on_step=on_step,
            owed=self.owed.get(site),
            own=self.own.get(site),
        )

    def _record(self, sites: list[str], ended: RoundEnded) -> None:
        for site in sites:
            epsilon = spent(self.ledgers[site], self.study) if self.study.trust.claims_epsilon else None
            self.folder.emit(EpsilonSpent(round=ended.round, site=site, spent=epsilon))
        self.folder.end_round(self._given_out, self.book, ended, self._kept_beside)
        if not self._scored():
            self._score()

    @property
    def _given_out(self) -> torch.nn.Module:
        return self.course.given_out(self.model, self.state)

    @property
    def _kept_beside(self) -> NDArray[np.float32]:
        """The state, and what each site has of its own."""
        return np.concatenate([self.state, *(own.kept for own in self.own.values())])

    def _go_on(self, kept: NDArray[np.float32]) -> None:
        if len(kept) != len(self._kept_beside):
            raise ConfigError(f"{self.folder.path}: {EARLIER}")
        self.state, *parts = np.split(
            kept, np.cumsum([len(self.state), *(len(o.kept) for o in self.own.values())])[:-1]
        )
        follow(self.model, self.state, self.study)
        for own, part in zip(self.own.values(), parts, strict=True):
            own.kept = part

    def _judged(self, judge: Callable[[torch.nn.Module, Mapping[str, SiteData], Study], Scores]) -> Scores:
        """Scores of the model that is given out, or of each site's own."""
        model = self._given_out
        if not self.own:
            return judge(model, self.cohort, self.study)
        models = {site: self.own[site].model(model) if site in self.own else model for site in self.cohort}
        return joined([judge(models[site], {site: data}, self.study) for site, data in self.cohort.items()])

    def _checkpoint(self) -> None:
        self.folder.checkpoint(self._given_out, self.book, self._kept_beside)

    def _scored(self) -> bool:
        """Whether the last whole round has its figures, or is one that gets none."""
        tally = self.folder.tally
        due = self.study.scored_after(tally.completed)
        return not due or (bool(tally.history) and tally.history[-1].round == tally.last_round)

    def _score(self) -> None:
        """Dice of the last whole round's model, once it can no longer be lost."""
        folder, tally, number = self.folder, self.folder.tally, self.folder.tally.last_round
        scores = self._judged(evaluate)
        for site, values in scores.values.items():
            means = structure_means(values, self.study)
            folder.emit(Scored(round=number, site=site, values=means, n=len(values)))
        pooled = scores.pooled()
        epsilon = max(spent(ledger, self.study) for ledger in self.ledgers.values())
        tally.history.append(
            Validated(
                round=number,
                dice=structure_means(pooled, self.study),
                mean=overall_mean(pooled),
                epsilon=epsilon if self.study.trust.claims_epsilon else None,
            )
        )
        self._checkpoint()

    def _finish(self, reason: str) -> Path:
        self.folder.tally.burned = self.aggregator.number - 1 - self.folder.tally.completed
        scores = self._judged(assess)
        trained = {site: len(self.cohort[site].patients) if site in self.sites else 0 for site in self.cohort}
        per_site = {site: spent(ledger, self.study) for site, ledger in self.ledgers.items()}
        table, others = dice_table(scores, trained, self.study), measure_tables(scores, self.study)
        classes = None if self.own else classes_of(self._given_out, self.cohort, self.study)
        for site, own in self.own.items():
            self.folder.keep_own(site, own.model(self._given_out))
        self.folder.emit(Ended(seconds=self.folder.seconds))
        metrics = metrics_of(
            self.folder, self.parameters, self.options.command, table, per_site, reason, others, classes
        )
        if layout_of(self.study).needs_folder:
            metrics = metrics.model_copy(update={"charged_for_life": self.options.charged is not None})
        return self.folder.complete(metrics, shown(self._given_out, scores, self.study))
