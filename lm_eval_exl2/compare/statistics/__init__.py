"""Paired statistics: plain numbers in, named records out. Needs numpy and scipy only.

Everything speaks of the *drop*, baseline minus candidate (positive: the candidate is worse), as a
fraction. L and U of a verdict are the bounds at `alpha=.05`, one-sided 5 % each.

| question | function |
|---|---|
| one score | `wilson_interval` |
| 0/1 metric, counts | `paired_counts`, of a group by strata `stratified_counts` |
| 0/1 metric, drop | `drop_bounds`, `drop_interval`, `score_test`; `relative=True` for relative |
| within +-margin (TOST) | `equivalence_p` |
| flips alone | `mcnemar` |
| values, or clustered documents | `mean_drop` (both 0/1 bounds and these: `wider`) |
| average of tasks | `average_drop` over `PairedCounts` and `paired_moments` |
| a function of sums, such as BLEU | `corpus_drop` |
| perplexities | `perplexity_ratio`; windows of one text: `sum_of_windows` |
| a rate that may be tiny | `clopper_pearson_interval` |
| a published score, no pairs | `unpaired_drop`, `unpaired_moments` |
| several p-values | `holm` |
| enough documents? | `certification_power`, `documents_needed`, `documents_to_settle` |

It knows nothing of files, tasks or policies.
"""

from lm_eval_exl2.compare.statistics.average import AverageDrop, average_drop
from lm_eval_exl2.compare.statistics.corpus import corpus_drop
from lm_eval_exl2.compare.statistics.counts import (
    McNemar,
    PairedCounts,
    mcnemar,
    paired_counts,
    stratified_counts,
)
from lm_eval_exl2.compare.statistics.moments import PairedMoments, paired_moments
from lm_eval_exl2.compare.statistics.neighbours import sum_of_windows
from lm_eval_exl2.compare.statistics.perplexity import PerplexityRatio, perplexity_ratio
from lm_eval_exl2.compare.statistics.power import (
    bound_power,
    certification_power,
    documents_needed,
    documents_to_settle,
)
from lm_eval_exl2.compare.statistics.proportions import (
    clopper_pearson_interval,
    holm,
    wilson_interval,
)
from lm_eval_exl2.compare.statistics.records import Bounds, StatisticsError, wider
from lm_eval_exl2.compare.statistics.score import (
    ScoreTest,
    drop_bounds,
    drop_interval,
    equivalence_p,
    score_test,
)
from lm_eval_exl2.compare.statistics.unpaired import unpaired_drop, unpaired_moments
from lm_eval_exl2.compare.statistics.values import MeanDrop, mean_drop

__all__ = [
    "AverageDrop",
    "Bounds",
    "McNemar",
    "MeanDrop",
    "PairedCounts",
    "PairedMoments",
    "PerplexityRatio",
    "ScoreTest",
    "StatisticsError",
    "average_drop",
    "bound_power",
    "certification_power",
    "clopper_pearson_interval",
    "corpus_drop",
    "documents_needed",
    "documents_to_settle",
    "drop_bounds",
    "drop_interval",
    "equivalence_p",
    "holm",
    "mcnemar",
    "mean_drop",
    "paired_counts",
    "paired_moments",
    "perplexity_ratio",
    "score_test",
    "stratified_counts",
    "sum_of_windows",
    "unpaired_drop",
    "unpaired_moments",
    "wider",
    "wilson_interval",
]
