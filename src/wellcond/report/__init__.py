"""An examination as a page, a terminal text, JSON."""

from wellcond.report.compare import Comparison as Comparison
from wellcond.report.compare import compare as compare
from wellcond.report.json import SCHEMA as SCHEMA
from wellcond.report.json import to_json as to_json
from wellcond.report.page import page as page
from wellcond.report.saved import SavedExamination as SavedExamination
from wellcond.report.saved import read_examination as read_examination
from wellcond.report.terminal import print_summary as print_summary
