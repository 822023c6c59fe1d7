"""The study file: what it accepts, what it hashes, and one sentence for each mistake."""

import re
from pathlib import Path

import pytest

from fedseg.errors import ConfigError
from fedseg.study import Study, load_study, parse_study
from secagg.policy import Suite

STUDIES = Path(__file__).parents[2] / "studies"
PHANTOM = (STUDIES / "phantom.toml").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def study() -> Study:
    return load_study(STUDIES / "phantom.toml")


@pytest.mark.parametrize("path", sorted(STUDIES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_study_of_the_repository_is_legal_and_survives_toml(path: Path) -> None:
    study = load_study(path)
    assert study.study.name == path.stem
    names = "structures" if study.structures else "classes"
    study = study.replace(study={names: [*study.names[:-1], 'a "quoted" ä 🧠']})
    again = parse_study(study.toml(), "again")
    assert again == study
    assert again.hash() == study.hash()


SECAGG = "[secagg]\n"
BAD = {
    "unknown field": ("rounds = ", "rouns = ", "[study] rouns is not a field of a study; did you mean 'rounds'?"),
    "unknown section": (SECAGG, "[secag]\n", "secag is not a field of a study; did you mean 'secagg'?"),
    "missing field": (r"rounds = \d+\n", "", "[study] rounds is missing; add rounds"),
    "missing section": (r"\[secagg\][^[]*", "", "section [secagg] is missing; add it"),
    "missing delta": (r"delta = .*\n", "", "[privacy] delta is missing and mechanism = 'local' needs it; add delta"),
    "missing epsilon": (r"epsilon = .*\n", "", "[privacy] epsilon is missing"),
    "missing clip norm": (r"clip_norm = .*\n", "", "[privacy] clip_norm is missing"),
    "delta of one": (r"delta = .*\n", "delta = 1.0\n", "[privacy] delta = 1.0: must be less than 1"),
    "delta of a half": (r"delta = .*\n", "delta = 0.5\n", "[privacy] delta = 0.5 is not below 1/"),
    "delta out of reach": (
        r"delta = .*\n",
        "delta = 1e-18\n",
        "[privacy] delta = 1e-18 is smaller than",
    ),
    "epsilon of a million": (
        r"epsilon = .*\n",
        "epsilon = 1e6\n",
        "[privacy] epsilon = 1e+06 promises nothing",
    ),
    "unknown mechanism": (
        '"local"',
        '"laplace"',
        "[privacy] mechanism = 'laplace': use 'local' or 'distributed' or 'svt' or 'none' or 'clipped'",
    ),
    "weaker unit": ('unit = "patient"', 'unit = "slice"', "[privacy] unit = 'slice': use 'patient'"),
    "sampling above one": (r"sample_rate = .*\n", "sample_rate = 1.5\n", "[privacy] sample_rate = 1.5"),
    "bits overflow": (SECAGG, "[secagg]\nbits = 20\n", "[secagg] bits = 20 can overflow"),
    "too few survivors": (SECAGG, "[secagg]\nmin_survivors = 2\n", "[secagg] min_survivors = 2"),
    "too many corrupt": (SECAGG + "max_corrupt = 1", "[secagg]\nmax_corrupt = 4", "[secagg] max_corrupt = 4"),
    "unknown suite": (SECAGG, '[secagg]\nsuite = "RSA"\n', "[secagg] suite = 'RSA'"),
    "two sites": ("", None, "[[sites]] clients = 2: secure aggregation needs 3"),
    "duplicate site": ('id = "site-b"', 'id = "site-a"', "[[sites]] id = 'site-a' is there 2 times; rename"),
    "bad site id": ('id = "site-b"', 'id = "site b"', "[[sites]] number 2 id = 'site b': must be a short name"),
    "negative weight": ('id = "site-b"', 'id = "site-b"\nweight = -1.0', "[[sites]] number 2 weight = -1.0"),
    "no patients to make": (r'(?s)(id = "site-e".*?)patients = \d+', r"\1", "[[sites]] site-e: patients"),
    "unknown layout": ('layout = "phantom"', 'layout = "mgz"', "[data] layout = 'mgz': use 'feta'"),
    "odd size": (r"size = \d+", "size = 65", "[data] size = 65: must be a multiple of 16"),
    "odd side": (r"size = \d+", "size = [64, 60]", "[data] size = 60: must be a multiple of 8, such as 64"),
    "three sides of a slice": (r"size = \d+", "size = [64, 64, 64]", "[data] size lists 3 numbers with dims = 2"),
    "patch beyond the grid": ("dims = 2", "dims = 2\npatch = [64, 72]", "[data] patch = [64, 72]: is larger than size"),
    "spacing of made images": ("dims = 2", "dims = 2\nspacing = [1.0]", "[data] layout = 'phantom': made images"),
    "private AdamW within a part": (
        r"\[privacy\]",
        '[training]\noptimizer = "adamw"\n[sharing]\nmethod = "random-mask"\nshare = 0.5\n[privacy]',
        "[training] optimizer = 'adamw' with [sharing] method = 'random-mask'",
    ),
    "twice corrected": (
        r"\[privacy\]",
        '[training]\noptimizer = "adamw"\n[federation]\nalgorithm = "fedadam"\ncorrected = true\n[privacy]',
        "[federation] corrected with [training] optimizer = 'adamw'",
    ),
    "private batch": (
        r"\[privacy\]",
        "[training]\nbatch = 8\n[privacy]",
        "[training] batch = 8 with mechanism = 'local'",
    ),
    "flips of no axis": (r"\[privacy\]", "[training]\ntest_flips = true\n[privacy]", "[training] test_flips: mirror"),
    "axis twice": (r"\[privacy\]", '[training]\nmirror = ["x", "x"]\n[privacy]', "[training] mirror = ['x', 'x']"),
    "deep unet": (r"\[privacy\]", "[training]\ndeep_supervision = true\n[privacy]", "[training] deep_supervision with"),
    "blocks of a unet": (r"\[model\]", "[model]\nblocks = [1, 2]", "[model] blocks goes with name = 'segresnet'"),
    "slices of a volume": ("dims = 2", "dims = 3", "[data] slices_per_patient: with dims = 3"),
    "text for a number": (r"rounds = \d+", 'rounds = "many"', "[study] rounds = 'many': must be a valid integer"),
    "not a number": (r"lr = [\d.]+", "lr = nan", "[study] lr = nan: must be a finite number"),
    "name twice": ('"brainstem"', '"cerebellum"', "[study] structures: two have the same name"),
    "broken TOML": (r"\[study\]", "[study", "not valid TOML"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_mistake_is_one_sentence_with_file_field_and_remedy(case: str, tmp_path: Path) -> None:
    pattern, replacement, expected = BAD[case]
    if replacement is None:
        text = "[[sites]]".join(PHANTOM.split("[[sites]]")[:3])
    else:
        text = re.sub(re.escape(pattern) if pattern.startswith("[sec") else pattern, replacement, PHANTOM, count=1)
    assert text != PHANTOM
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_study(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: {expected}")
    assert "\n" not in message
    assert "pydantic" not in message


def test_a_missing_file_a_folder_and_bytes_are_named(tmp_path: Path) -> None:
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    for name in ("absent.toml", "", "bytes.toml"):
        with pytest.raises(ConfigError, match=re.escape(str(tmp_path / name))):
            load_study(tmp_path / name)


def test_hash_covers_results_and_privacy_and_nothing_else(study: Study) -> None:
    assert study.replace(run={"threads": 7, "device": "cuda", "hold_seconds": 9.5}).hash() == study.hash()
    assert study.replace(report={"share_metrics": True}).hash() == study.hash()
    changed = [
        study.replace(privacy={"delta": 1e-7}),
        study.replace(study={"lr": 0.0123}),
        study.replace(data={"holdout": 0.25}),
        study.replace(secagg={"suite": "X25519"}),
        study.replace(study={"seed": 12345}),
    ]
    assert len({study.hash(), *(other.hash() for other in changed)}) == 6
    assert len(study.hash()) == 32


def test_hash_is_the_same_today_and_tomorrow() -> None:
    """Changes only with the schema: then all sites of a running study have to agree on a version."""
    text = """
    [study]\nname = "s"\nstructures = ["ä"]\nrounds = 1\nlocal_steps = 1\nlr = 1
    [data]\nlayout = "feta"\nmodality = ["T2w"]\ndims = 2\nsize = 32
    [privacy]\nmechanism = "none"\nsample_rate = 1\ndenominator = 1
    [secagg]\nclip_range = 0.1
    [[sites]]\nid = "a"\n[[sites]]\nid = "b"\n[[sites]]\nid = "c"
    """
    assert parse_study(text, "s").hash().hex() == "27e706d37db8fbae5e09141d498f515fa530e7bfdcc0c66417bd26b8bffda00a"


def test_replace_is_checked_again(study: Study) -> None:
    with pytest.raises(ConfigError, match="bits = 8 can overflow"):
        study.replace(secagg={"bits": 8})
    assert not study.replace(privacy={"mechanism": "none", "epsilon": None, "delta": None}).trust.claims_epsilon


def test_policy_carries_the_study(study: Study) -> None:
    policy = study.replace(secagg={"clip_range": 0.25}).policy(1000, server_key=b"k" * 32)
    assert policy.clients == len(study.site_ids) == 5
    assert (policy.length, policy.clip_range, policy.value_bits, policy.bits) == (1000, 0.25, 20, 32)
    assert policy.suite is Suite.MLKEM768_X25519
    assert policy.server_key == b"k" * 32
    assert set(policy.weights) == set(study.site_ids)
