"""How stacks begin and end."""

from growgan.nets.forms import dcgan, dense, progressive
from growgan.nets.forms.base import FORMS, End, Form, Head, Stem

__all__ = ["FORMS", "End", "Form", "Head", "Stem", "dcgan", "dense", "progressive"]
