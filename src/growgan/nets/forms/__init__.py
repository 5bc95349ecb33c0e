"""How stacks begin and end."""

from growgan.nets.forms import basis, dcgan, dense, fourier, progressive, resnet, style
from growgan.nets.forms.base import FORMS, End, Form, Head, Stem

__all__ = [
    "FORMS",
    "End",
    "Form",
    "Head",
    "Stem",
    "basis",
    "dcgan",
    "dense",
    "fourier",
    "progressive",
    "resnet",
    "style",
]
