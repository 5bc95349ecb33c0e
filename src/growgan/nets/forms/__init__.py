"""How stacks begin and end."""

from growgan.nets.forms import progressive
from growgan.nets.forms.base import FORMS, End, Form, Head, Stem

__all__ = ["FORMS", "End", "Form", "Head", "Stem", "progressive"]
