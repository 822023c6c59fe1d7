"""Exact tests of the parts on which every epsilon rests, on the real code; lower bounds see gross bugs only.

Each audit also runs on planted bugs, and has no power where it misses one. `testing` says how often they blame a right
product.
"""

from audits.base import Audit, later

AUDITS = (
    Audit(
        "conformance.sampler",
        "Patients are drawn by coins of their own",
        ("dpsgd-conforms", "one-patient-moves-nobody"),
        {"quick": 6, "full": 20},
        later("conformance.sampler"),
    ),
    Audit(
        "conformance.clip",
        "One patient moves what leaves a site by at most the clip norm, whatever its images are",
        ("dpsgd-conforms", "local-epsilon", "distributed-epsilon"),
        {"quick": 5, "full": 5},
        later("conformance.clip"),
    ),
    Audit(
        "conformance.noise",
        "Noise is as large as is accounted, within 1 %",
        ("dpsgd-conforms", "local-epsilon", "distributed-epsilon", "svt-epsilon"),
        {"quick": 12, "full": 12},
        later("conformance.noise"),
    ),
    Audit(
        "conformance.seeds",
        "No two sites, rounds, steps or patients share a stream of randomness",
        ("dpsgd-conforms", "local-epsilon"),
        {"quick": 12, "full": 12},
        later("conformance.seeds"),
    ),
    Audit(
        "conformance.denominators",
        "Divisor and noise do not move with one patient more",
        ("one-patient-moves-nobody", "dpsgd-conforms"),
        {"quick": 6, "full": 6},
        later("conformance.denominators"),
    ),
    Audit(
        "conformance.autocorrelation",
        "Noise of values, rounds and sites has nothing in common",
        ("dpsgd-conforms", "local-epsilon", "distributed-epsilon"),
        {"quick": 4, "full": 15},
        later("conformance.autocorrelation"),
    ),
    Audit(
        "conformance.accountants",
        "Accountants agree within 1 %, and ledgers add up to the budget",
        ("accounting",),
        {"quick": 10, "full": 90},
        later("conformance.accountants"),
    ),
)
