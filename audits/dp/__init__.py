"""Lower bounds of epsilon: what an attacker who looks at the worst patients really proves, against what is claimed.

`estimators` are the bounds, and `published` what they have to reproduce. `canary`, `games` and `pipeline` put the worst
patients through the real code, `judging` comes to a verdict, `trials` are the audits. `alarms` asks whether right
mechanisms are blamed, and whether planted bugs are found.
"""

from audits.base import Audit, later

AUDITS = (
    Audit(
        "dp.estimators",
        "Lower bounds of epsilon reproduce published and derived numbers",
        ("local-epsilon", "distributed-epsilon", "svt-epsilon"),
        {"quick": 2, "full": 2},
        later("dp.published"),
    ),
    Audit(
        "dp.canary.local",
        "Canaries in the updates of mechanism local prove less than is claimed",
        ("local-epsilon",),
        {"quick": 30, "full": 240},
        later("dp.trials", "local"),
    ),
    Audit(
        "dp.canary.distributed",
        "Canaries in the sum of the fewest honest sites prove less than is claimed",
        ("distributed-epsilon",),
        {"quick": 30, "full": 120},
        later("dp.trials", "distributed"),
    ),
    Audit(
        "dp.canary.svt",
        "Canaries in the releases of mechanism svt prove less than is claimed",
        ("svt-epsilon",),
        {"quick": 20, "full": 70},
        later("dp.trials", "svt"),
    ),
    Audit(
        "dp.pipeline",
        "Canaries in the sums of verified transcripts prove less than is claimed",
        ("local-epsilon", "distributed-epsilon", "svt-epsilon", "sum-only"),
        {"quick": 35, "full": 150},
        later("dp.trials", "pipeline"),
    ),
    Audit(
        "dp.false-alarms",
        "Right mechanisms are blamed at most 5 % of the time, and planted bugs are found",
        ("local-epsilon", "distributed-epsilon", "svt-epsilon"),
        {"quick": 30, "full": 140},
        later("dp.alarms"),
    ),
)
