"""What GANs are used for: each task is one file of data pairing, settings and measures."""

from growgan.tasks import anogan, augment, cyclegan, frames, pix2pix, semi, srgan, style, text2image
from growgan.tasks.base import TASKS, Pairing, Task, named, prepare, train_task

__all__ = [
    "TASKS",
    "Pairing",
    "Task",
    "anogan",
    "augment",
    "cyclegan",
    "frames",
    "named",
    "pix2pix",
    "prepare",
    "semi",
    "srgan",
    "style",
    "text2image",
    "train_task",
]
