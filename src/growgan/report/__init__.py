"""A run as a person sees it: its record, sheets of samples, and the page."""

from growgan.report.page import write_report
from growgan.report.run import CandidateRecord, RunRecord, SelectRecord, StatPoint, read_run
from growgan.report.sheet import contact_sheet, grid, save_sheet, write_images

__all__ = [
    "CandidateRecord",
    "RunRecord",
    "SelectRecord",
    "StatPoint",
    "contact_sheet",
    "grid",
    "read_run",
    "save_sheet",
    "write_images",
    "write_report",
]
