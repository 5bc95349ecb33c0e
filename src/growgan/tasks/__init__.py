"""What GANs are used for: each task is one file of data pairing, settings and measures."""

from growgan.tasks import pix2pix, srgan
from growgan.tasks.base import TASKS, Pairing, Task, prepare, train_task

__all__ = ["TASKS", "Pairing", "Task", "pix2pix", "prepare", "srgan", "train_task"]
