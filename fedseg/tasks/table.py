"""All tasks, and which one a study has."""

from collections.abc import Callable, Mapping

import numpy as np
import torch

from fedseg.data.cases import Case, draw_view
from fedseg.study import Study
from fedseg.tasks.classification import Classification
from fedseg.tasks.segmentation import Segmentation
from fedseg.tasks.task import Task
from secagg.prg import Stream

TASKS: Mapping[str, Callable[[Study], Task]] = {"segmentation": Segmentation, "classification": Classification}


def task_of(study: Study) -> Task:
    """The study's task."""
    return TASKS[study.study.task](study)


def batch_of(case: Case, study: Study, stream: Stream) -> tuple[torch.Tensor, torch.Tensor]:
    """What one sampled patient contributes to one step, drawn anew.

    Returns:
        Images (k, C, *size) float32, and the targets of the study's task (k, ...) int64.

    Raises:
        CaseError: the case has no label.
    """
    view = draw_view(case, study, stream)
    images = torch.from_numpy(np.ascontiguousarray(view(case.image)))
    return images, task_of(study).targets(case, view)
