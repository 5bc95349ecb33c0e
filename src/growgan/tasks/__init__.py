"""Applications of GANs. Each task is one file with its data preparation, settings and metrics."""

from growgan.tasks import (
    anogan,
    cyclegan,
    data_augmentation,
    next_frame,
    pix2pix,
    semi_supervised,
    srgan,
    style_mixing,
    text2image,
)
from growgan.tasks.base import TASKS, Task, parse_task, prepare_task_data, train_task
from growgan.tasks.paired import PairedTranslationTask, PairFunction

__all__ = [
    "TASKS",
    "PairFunction",
    "PairedTranslationTask",
    "Task",
    "anogan",
    "cyclegan",
    "data_augmentation",
    "next_frame",
    "parse_task",
    "pix2pix",
    "prepare_task_data",
    "semi_supervised",
    "srgan",
    "style_mixing",
    "text2image",
    "train_task",
]
