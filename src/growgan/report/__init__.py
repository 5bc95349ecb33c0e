"""Reads the record of a run, and writes image grids and the HTML report."""

from growgan.report.image_files import make_grid, save_contact_sheet, save_image_grid, write_images
from growgan.report.page import write_report
from growgan.report.run_record import (
    CandidateRecord,
    RunRecord,
    SelectionRecord,
    StatPoint,
    read_run,
)

__all__ = [
    "CandidateRecord",
    "RunRecord",
    "SelectionRecord",
    "StatPoint",
    "make_grid",
    "read_run",
    "save_contact_sheet",
    "save_image_grid",
    "write_images",
    "write_report",
]
