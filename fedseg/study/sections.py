"""The sections of a study file: every field with its type, its limits, its default and what it means.

One class a section. A check that needs two sections is `Study`'s.
"""

import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from fedseg.mechanisms.table import MECHANISMS
from fedseg.privacy.delta import SMALLEST_DELTA
from fedseg.sharing.table import METHODS
from secagg.policy import Suite
from secagg.printable import printable


def _shown(text: str) -> str:
    if not text.isprintable():
        raise ValueError(f"name '{printable(text)}': use letters that can be seen, in one line")
    return text


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Label = Annotated[str, Field(min_length=1, max_length=64), AfterValidator(_shown)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Labels = tuple[Annotated[tuple[Annotated[int, Field(ge=1, le=65535)], ...], Field(min_length=1)], ...]
Side = Annotated[int, Field(ge=16, le=512)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


BRIGHTEST = 1.5
"""Of an image that is normalised by percentiles, of which the 99th is 1."""
FARTHEST = 5.0
"""Standard deviations of an image that is normalised by its own: what lies beyond is cut."""
RANGES = {"percentiles": (0.0, BRIGHTEST), "z-score": (-FARTHEST, FARTHEST), "ct": (0.0, 1.0)}

PICTURES = ("images", "radiographs", "medmnist")
"""Layouts of pictures with classes; the others but 'phantom' are of label maps."""


class Section(BaseModel):
    """A table of the file: unknown fields are errors, and nothing is converted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def regions(labels: Labels) -> tuple[tuple[int, ...], ...]:
    """Of each structure the numbers, from 1, of those whose label values it contains: BraTS' tumour contains its core.

    Structures are disjoint or one within the other, the outer first: of a voxel the last one counts.
    """
    found = []
    for number, values in enumerate(map(set, labels), 1):
        inner = [other for other, those in enumerate(map(set, labels), 1) if those <= values]
        parts = [set(labels[other - 1]) for other in range(1, len(labels) + 1) if values & set(labels[other - 1])]
        if min(inner) != number or any(not (part <= values or part >= values) for part in parts):
            raise ValueError(
                "labels: two structures share a label value and neither holds the other's after it; "
                "list the outer one first, such as [[1, 2, 4], [1, 4], [4]]"
            )
        found.append(tuple(inner))
    return tuple(found)


class StudySection(Section):
    """`[study]`: what is trained, and for how long."""

    name: Name = Field(description="a short name of ASCII letters, digits, '.', '_' or '-'")
    task: Literal["segmentation", "classification"] = Field(
        default="segmentation",
        description="what is asked of an image: an outline of each structure, or which class it is of",
    )
    structures: tuple[Label, ...] = Field(
        default=(),
        max_length=254,
        description="names of the label values 1, 2, ... in this order; 0 is background; only with 'segmentation'",
    )
    classes: tuple[Label, ...] = Field(
        default=(),
        max_length=254,
        description="names of the classes, in this order; an image is of one; only with 'classification'",
    )
    class_weights: tuple[Positive, ...] = Field(
        default=(),
        description="what an image of each class counts in the loss, public constants and not counted from data; "
        "[] for 1 each",
    )
    rounds: Count = Field(description="how many sums; after each, every site has the next model")
    spare_rounds: Annotated[int, Field(ge=0)] = Field(
        default=0,
        description="rounds more that the noise is planned for: a burned one stays charged and does not end the study",
    )
    local_steps: Count = Field(description="gradient steps of a site in one round; 1 with 'distributed'")
    lr: Positive = Field(description="learning rate of the gradient steps")
    optimizer: Literal["sgd", "adam"] = Field(
        default="sgd", description="what steps by the sums of 'distributed': SGD with momentum, or Adam"
    )
    seed: Seed | None = Field(
        default=None,
        description="makes a run reproducible; noise that can be repeated protects nobody: no privacy claim",
    )

    @property
    def names(self) -> tuple[str, ...]:
        """What an image is scored on: its structures or its classes."""
        return self.structures or self.classes

    @model_validator(mode="after")
    def _named(self) -> Self:
        mine, other = ("structures", "classes") if self.task == "segmentation" else ("classes", "structures")
        fields = type(self).model_fields
        if getattr(self, other):
            raise ValueError(f"{other} goes with another task than '{self.task}'; remove it, or correct task")
        if not self.names:
            raise ValueError(f"{mine} is missing; add {mine}: {fields[mine].description}")
        if len(set(self.names)) != len(self.names):
            each = "label value" if mine == "structures" else "class"
            raise ValueError(f"{mine}: two have the same name; give every {each} its own")
        if self.task == "classification" and len(self.classes) < 2:
            raise ValueError("classes lists one: there is nothing to tell apart; add the other, such as 'normal'")
        if len(self.class_weights) not in (0, len(self.classes)):
            raise ValueError(
                f"class_weights lists {len(self.class_weights)} numbers and classes {len(self.classes)}; give one each"
            )
        return self


class DataSection(Section):
    """`[data]`: what a site's folder holds, and how images become batches."""

    layout: Literal[
        "feta",
        "bids",
        "decathlon",
        "nnunet",
        "brats",
        "table",
        "dicom",
        "images",
        "radiographs",
        "medmnist",
        "phantom",
    ] = Field(description="how a site's folder is organised: see Layouts")
    modality: tuple[Label, ...] = Field(
        min_length=1, description="names of the image's channels in order, such as ['T2w']"
    )
    labels: Labels = Field(
        default=(),
        description="each structure's label values in the files, such as [[1, 2, 4], [1, 4], [4]]; [] for 1, 2, ...",
    )
    dims: Literal[2, 3] = Field(description="2 trains on slices, 3 on volumes")
    size: Side | tuple[Side, ...] = Field(
        description="voxels of the working grid a side: one number, or one an axis (x, y, z; with dims = 2 without the "
        "axis of the slices); with spacing the fewest"
    )
    spacing: tuple[Positive, ...] = Field(
        default=(),
        max_length=3,
        description="millimetres of the working grid's voxels, one number or one an axis; [] for a square or cube "
        "around the image, which is stretched to size",
    )
    patch: tuple[Side, ...] = Field(
        default=(),
        max_length=3,
        description="voxels an axis of what the network sees at once: training takes a random such part, prediction "
        "slides it over the image; [] for size",
    )
    slices_per_patient: Count = Field(
        default=1, description="slices that a drawn patient gives to a step; 1 with dims = 3"
    )
    normalisation: tuple[Literal["percentiles", "z-score", "ct"], ...] = Field(
        min_length=1,
        default=("percentiles",),
        description="how intensities are made alike: one for all modalities, or one for each",
    )
    statistics: Literal["none", "public", "secure"] = Field(
        default="none",
        description="the network sees each channel less a mean, over a deviation, alike at all sites: none, 'public' "
        "constants (mean, sd), or 'secure', what the first sum says of all patients in training: see Statistics",
    )
    mean: tuple[float, ...] = Field(
        default=(), description="of each channel of a normalised image, with statistics = 'public'"
    )
    sd: tuple[Positive, ...] = Field(default=(), description="the same channel's standard deviation")
    window: tuple[float, float] | None = Field(
        default=None, description="lowest and highest Hounsfield unit that 'ct' tells apart, such as [-160, 240]"
    )
    holdout: float = Field(
        default=0.2, ge=0, lt=1, description="share of patients kept for testing, each by its identifier"
    )
    rows: Literal["own", "dealt"] = Field(
        default="own",
        description="of 'medmnist': 'own' where a site's file has its rows only; 'dealt' where all sites have one "
        "file, of which each row is at the one site that its own pixels say",
    )
    tested: Literal["test", "val"] = Field(
        default="test",
        description="of 'medmnist': which part of the file is held out, 'val' to choose settings by; the other takes "
        "no part",
    )
    patient: str = Field(
        default="",
        description="regular expression whose group 'patient' is found in an image's path: who it is: see Patients",
    )
    patients: str = Field(
        default="", description="table in each site's folder with the columns file and patient: see Patients"
    )

    @property
    def sides(self) -> tuple[int, ...]:
        """Voxels of the working grid along each axis that is resampled: two with dims = 2, else three."""
        return (self.size,) * self.dims if isinstance(self.size, int) else self.size

    @property
    def view(self) -> tuple[int, ...]:
        """Voxels of what the network sees at once, along the same axes."""
        return self.patch or self.sides

    @property
    def cube(self) -> int:
        """Side of the square or cube on which images are made, a multiple of 16."""
        return -(-max(self.sides) // 16) * 16

    @property
    def methods(self) -> tuple[str, ...]:
        """How each modality is normalised."""
        return self.normalisation * len(self.modality) if len(self.normalisation) == 1 else self.normalisation

    @property
    def ranges(self) -> tuple[tuple[float, float], ...]:
        """The lowest and the highest value that each channel of a normalised image can have."""
        return tuple(RANGES[method] for method in self.methods)

    @model_validator(mode="after")
    def _standardised(self) -> Self:
        for name in ("mean", "sd"):
            wanted, given = len(self.modality) if self.statistics == "public" else 0, len(getattr(self, name))
            if given != wanted:
                said = f"{name} lists {given} numbers with statistics = '{self.statistics}'"
                raise ValueError(f"{said}; give {wanted or 'none'}{', one for each modality' if wanted else ''}")
        return self

    @model_validator(mode="after")
    def _intensities(self) -> Self:
        if len(self.methods) != len(self.modality):
            said = f"normalisation lists {len(self.normalisation)} methods and modality {len(self.modality)} channels"
            raise ValueError(f"{said}; give one for all, or one for each")
        if ("ct" in self.normalisation) == (self.window is None):
            wish = "add window = [lowest, highest] in Hounsfield units" if self.window is None else "remove window"
            raise ValueError(f"window goes with normalisation = 'ct' and nothing else; {wish}")
        if self.window is not None and self.window[0] >= self.window[1]:
            raise ValueError(f"window = {list(self.window)}: the lowest Hounsfield unit comes first")
        return self

    @model_validator(mode="after")
    def _whose(self) -> Self:
        if self.patient:
            try:
                groups = re.compile(self.patient).groupindex
            except re.error as error:
                raise ValueError(
                    f"patient = {self.patient!r}: not a regular expression ({error}); correct it"
                ) from None
            if "patient" not in groups:
                raise ValueError(f"patient = {self.patient!r}: must have a group (?P<patient>...), which is who it is")
        if self.patient and self.patients:
            raise ValueError("patient and patients both say who is a patient; remove one")
        if self.patients and Path(self.patients).name != self.patients:
            raise ValueError(f"patients = {self.patients!r}: must be the name of a file in the site's folder")
        return self

    @model_validator(mode="after")
    def _grid(self) -> Self:
        for name, sides, step in (
            ("size", self.sides, 16 if isinstance(self.size, int) else 8),
            ("patch", self.view, 8),
        ):
            if bad := [side for side in sides if side % step]:
                near = bad[0] // step * step + step
                raise ValueError(f"{name} = {bad[0]}: must be a multiple of {step}, such as {near}")
        for name, given in (("size", self.sides), ("spacing", self.spacing), ("patch", self.view)):
            if len(given) not in ({0, 1, self.dims} if name == "spacing" else {self.dims}):
                raise ValueError(f"{name} lists {len(given)} numbers with dims = {self.dims}; give one for each axis")
        if any(part > side for part, side in zip(self.view, self.sides, strict=True)):
            raise ValueError(f"patch = {list(self.view)}: is larger than size = {list(self.sides)}; raise size")
        if self.dims == 3 and self.slices_per_patient != 1:
            raise ValueError("slices_per_patient: with dims = 3 a patient contributes the whole volume; set it to 1")
        return self


class ModelSection(Section):
    """`[model]`: the network and where it starts."""

    name: Literal["unet-small", "unet", "segresnet", "dynunet", "monet", "unet-resnet18", "cnn-small", "resnet18"] = (
        Field(default="unet-small", description="the network; small ones bear noise better; the last two classify")
    )
    channels: tuple[Count, ...] = Field(
        default=(), max_length=6, description="features per level; [] for the network's own"
    )
    blocks: tuple[Annotated[int, Field(ge=1, le=8)], ...] = Field(
        default=(), max_length=6, description="residual blocks per level, of 'segresnet'; [] for [1, 1, 2]"
    )
    start: str = Field(
        default="scratch",
        min_length=1,
        description="weights before round 1: 'scratch', 'phantom' (trained on made images) or a .safetensors file",
    )


class TrainingSection(Section):
    """`[training]`: how a site makes its local steps, and how the model is asked."""

    optimizer: Literal["sgd", "adamw"] = Field(
        default="sgd",
        description="of the local steps, fresh in every round: SGD with momentum 0.9, or AdamW, which is corrected for "
        "the noise of 'local'; not 'distributed'",
    )
    weight_decay: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="share of lr by which each local step shrinks all weights; not 'distributed'",
    )
    schedule: Literal["constant", "cosine"] = Field(
        default="constant",
        description="how lr goes over the local steps of all rounds: stays, or falls along half a cosine; not "
        "'distributed'",
    )
    warm_up: Annotated[int, Field(ge=0)] = Field(
        default=0,
        description="local steps, counted over all rounds, over which lr grows to its value; not 'distributed'",
    )
    batch: Annotated[int, Field(ge=0, le=512)] = Field(
        default=0,
        description="slices or patches of a local step, each of a patient drawn at random ('none' only); 0 draws whole "
        "patients by sample_rate",
    )
    augmentation: Literal["none", "light", "full"] = Field(
        default="none",
        description="random views of training images: small turns, scales and intensities ('light'), or with larger "
        "ones, elastic bends, blur, noise, gamma and low resolution as nnU-Net's ('full')",
    )
    mirror: tuple[Literal["x", "y", "z"], ...] = Field(
        default=(),
        max_length=3,
        description="axes along which training images are mirrored at random: x is left to right, y back to front, z "
        "upwards; none where a structure's side has a meaning",
    )
    mixup: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="two views of one patient are mixed, and what is said of them, by a share drawn from "
        "Beta(mixup, mixup); never those of two patients; 0 mixes nothing",
    )
    test_flips: bool = Field(
        default=False, description="predictions are the mean over the image and its mirror images along mirror"
    )
    deep_supervision: bool = Field(
        default=False, description="lower levels of 'dynunet' and 'segresnet' have a loss of their own in training"
    )
    trainable: Annotated[str, Field(pattern=r"^(all|norm-bias-head|head|lora:[1-9][0-9]?)$")] = Field(
        default="all",
        description="what is trained on the start: 'all', 'norm-bias-head', 'head' (the last layer), or 'lora:R', thin "
        "matrices of rank R beside every weight, and the head",
    )
    weight_standardisation: bool = Field(
        default=False, description="filters of convolutions have mean 0 and one size, whatever they are trained to"
    )

    @model_validator(mode="after")
    def _mirrored(self) -> Self:
        if len(set(self.mirror)) != len(self.mirror):
            raise ValueError(f"mirror = {list(self.mirror)}: an axis is there twice; name each once")
        if self.test_flips and not self.mirror:
            raise ValueError(
                "test_flips: mirror names no axis along which images may be flipped; name some, such as ['x']"
            )
        if self.mixup and self.batch:
            raise ValueError(
                f"mixup = {self.mixup:g} with batch = {self.batch}: what is mixed is one patient's, and a batch is of "
                "several; leave either at 0"
            )
        return self


class FederationSection(Section):
    """`[federation]`: what every party makes of the mean of the updates, and which sites are in a round."""

    algorithm: Literal["fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi"] = Field(
        default="fedavg", description="how sites learn together: see the page Algorithms"
    )
    server_lr: Positive | None = Field(
        default=None, description="what the step of all is multiplied by; none is 1, with 'fedadam' and 'fedyogi' 0.01"
    )
    momentum: float = Field(default=0.9, ge=0, lt=1, description="'fedavgm': share of the last round's step that stays")
    betas: tuple[Share, Share] = Field(
        default=(0.9, 0.99), description="'fedadam' and 'fedyogi': share of either moment that stays in a round"
    )
    adaptivity: Positive = Field(
        default=1e-3,
        description="'fedadam' and 'fedyogi': added to each value's usual size, so that small ones stay so",
    )
    corrected: bool = Field(
        default=False, description="'fedadam': the noise's own variance, which is public, is not taken for usual size"
    )
    proximal: float = Field(
        default=0.0, ge=0, description="'fedprox': how strongly a site's steps are pulled back to the round's weights"
    )
    participation: Annotated[int, Field(ge=0)] = Field(
        default=0, description="sites of a round, by a public draw that is the same at every party; 0 for all"
    )
    personal: Literal["none", "norm"] = Field(
        default="none",
        description="what is trained at each site and never leaves it: nothing, or scale and shift of every 'norm'; "
        "not 'distributed' or 'svt'",
    )
    ema: Share = Field(
        default=0.0,
        description="share of the running average of all rounds' models that stays in a round, such as 0.9; it is what "
        "is scored and given out. 0 gives out the last model",
    )

    @model_validator(mode="after")
    def _used(self) -> Self:
        if (self.algorithm == "fedprox") != (self.proximal > 0):
            wish = "add it, such as 0.1" if self.algorithm == "fedprox" else "remove it"
            raise ValueError(f"proximal above 0 goes with algorithm = 'fedprox' and nothing else; {wish}")
        if self.corrected and self.algorithm != "fedadam":
            raise ValueError("corrected goes with algorithm = 'fedadam' and nothing else; remove it")
        return self


def _known(mechanism: str) -> str:
    if mechanism not in MECHANISMS:
        raise ValueError(f"mechanism = {mechanism!r}: use {' or '.join(map(repr, MECHANISMS))}")
    return mechanism


class PrivacySection(Section):
    """`[privacy]`: the promise to every patient; where no epsilon is claimed the rest only shapes the batches."""

    mechanism: Annotated[str, AfterValidator(_known)] = Field(
        description=" or ".join(f"{name!r} ({one.trust.short})" for name, one in MECHANISMS.items()),
        json_schema_extra={"enum": list(MECHANISMS)},
    )
    unit: Literal["patient"] = Field(default="patient", description="whom the promise speaks for")
    epsilon: Positive | None = Field(
        default=None, description="budget of a site's patients over the whole study; smaller is safer"
    )
    delta: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None, description="it has no default: choose it below 1/patients, for example 1/(10 patients)"
    )
    sample_rate: float = Field(gt=0, le=1, description="probability that a patient is drawn in a local step")
    clip_norm: Positive | None = Field(default=None, description="L2 length to which one patient's gradient is cut")
    denominator: Count = Field(
        description="public constant that divides a step's sum: about the patients that a site draws in a step"
    )
    multiplicity: Annotated[int, Field(ge=1, le=64)] = Field(
        default=1, description="views of a drawn patient whose gradients are averaged before the patient's is clipped"
    )
    statistics: float = Field(
        default=0.05,
        gt=0,
        lt=1,
        description="share of epsilon and delta that is set aside for [data] statistics = 'secure'; else not used",
    )
    noise: Literal["discrete-gaussian", "skellam"] = Field(
        default="discrete-gaussian", description="whole-number noise of 'distributed'; no other mechanism adds such"
    )
    excess_noise: Literal["stays", "removed"] = Field(
        default="stays",
        description="noise of 'distributed' in a sum of more than min_survivors sites: 'removed' takes off what such a "
        "sum does not need, by seeds that sites disclose; it costs a draw for each site that may drop out",
    )
    released: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None, description="'svt': share of an update's values that a site sends at most"
    )
    threshold: float = Field(
        default=0.0, ge=0, description="'svt': what a value's magnitude has to reach, with noise on both, to be sent"
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        for name in MECHANISMS[self.mechanism].needs:
            if getattr(self, name) is None:
                needs = f"{name} is missing and mechanism = {self.mechanism!r} needs it"
                raise ValueError(f"{needs}; add {name}: {type(self).model_fields[name].description}")
        if self.excess_noise == "removed" and self.mechanism != "distributed":
            raise ValueError("excess_noise = 'removed' goes with mechanism = 'distributed' and nothing else; remove it")
        if MECHANISMS[self.mechanism].trust.claims_epsilon:
            largest = MECHANISMS[self.mechanism].largest_epsilon
            if self.epsilon is not None and self.epsilon > largest:
                raise ValueError(
                    f"epsilon = {self.epsilon:g} promises nothing; choose at most {largest:g}, and at most 10 "
                    "for a promise that means something"
                )
            if self.delta is not None and self.delta < SMALLEST_DELTA:
                least = f"choose at least {SMALLEST_DELTA:g}"
                raise ValueError(f"delta = {self.delta:g} is smaller than the accountants resolve; {least}")
        return self


class SharingSection(Section):
    """`[sharing]`: what of an update is sent, and in how few bytes; the default sends all of it."""

    method: Literal["full", "random-mask", "low-rank", "sketch", "percentile", "exclude"] = Field(
        default="full", description="which part of an update is sent: see Sharing"
    )
    share: float = Field(
        default=1.0, gt=0, le=1, description="how much of an update's values is sent: 0.1 for every tenth"
    )
    rank: Annotated[int, Field(ge=0)] = Field(
        default=0, description="'low-rank': rows of the factor that is sent; the more, the closer to the whole update"
    )
    rotation: bool = Field(
        default=False, description="'sketch': an update is spread evenly over its values before they are drawn"
    )
    bits: int = Field(
        default=0, ge=0, le=12, description="of a site's value, rounded at random to 2^bits levels; 0 for all it has"
    )
    error_feedback: bool = Field(
        default=False,
        description="what was not sent of an update is added to the site's next one",
    )
    leave_out: tuple[Label, ...] = Field(
        default=(), description="'exclude': patterns of tensors' names that are not sent, such as ['*.bias']"
    )

    @model_validator(mode="after")
    def _used(self) -> Self:
        uses = METHODS[self.method].uses
        for name in ("share", "rank", "rotation", "bits", "error_feedback", "leave_out"):
            given = getattr(self, name) != type(self).model_fields[name].default
            if given and name not in uses:
                fitting = " or ".join(f"'{one.name}'" for one in METHODS.values() if name in one.uses)
                raise ValueError(f"{name} goes with method = {fitting} and not with '{self.method}'; remove it")
            if not given and (name, self.method) in (("rank", "low-rank"), ("leave_out", "exclude")):
                raise ValueError(f"{name} is missing and method = '{self.method}' needs it; add {name}")
        return self


class SecAggSection(Section):
    """`[secagg]`: how updates are added; parameters of `secagg.Policy`."""

    suite: Suite = Field(
        default=Suite.MLKEM768_X25519, description="key agreement; the default outlasts quantum computers"
    )
    max_corrupt: int = Field(default=1, description="how many sites may collude with the coordinator")
    min_survivors: int = Field(
        default=0, ge=0, description="sites that a sum must have; 0 for the smallest safe number"
    )
    bits: int = Field(default=32, description="bits of a masked value; as many as the sum of all sites needs")
    clip_range: Positive | None = Field(
        default=None,
        description="bound of every value of an update, fixed and never taken from data; 'distributed' needs none",
    )


class ReportSection(Section):
    """`[report]`: what leaves a site beside its updates."""

    share_metrics: bool = Field(
        default=False, description="sites send the Dice of their held-out patients; not covered by epsilon"
    )
    tolerance: Positive = Field(
        default=2.0, description="millimetres that a surface may be off in normalised surface Dice (NSD)"
    )


class RunSection(Section):
    """`[run]`: how fast, never what."""

    device: Literal["cpu", "cuda"] = Field(
        default="cpu",
        description="where a site trains and scores; 'cuda' where there is none is refused before anything begins",
    )
    mixed_precision: bool = Field(
        default=False, description="networks compute in bfloat16 where they can; gradients are clipped as ever"
    )
    channels_last: bool = Field(
        default=False, description="images lie in memory with their channels last, which some GPUs are faster with"
    )
    threads: Count = Field(default=1, description="threads of torch in one process")
    workers: Count = Field(default=1, description="sites of a simulation that train at the same time")
    evaluate_every: Count = Field(default=1, description="rounds after which the model is scored, and after the last")
    hold_seconds: float = Field(
        default=0.0,
        ge=0,
        description="seconds before which a site hands over no update: how long it trained tells of patients",
    )


class Site(Section):
    """`[[sites]]`: who takes part; one table a site."""

    id: Name = Field(description="a short name of ASCII letters, digits, '.', '_' or '-'")
    weight: Positive = Field(default=1.0, description="what its update counts in the mean, a public constant")
    patients: Count | None = Field(default=None, description="layout 'phantom' only: patients to make")
    labels: Labels = Field(default=(), description="its own label values, where they are not those of [data] labels")
