"""An examination as a page, a terminal text, JSON."""

from wellcond.report.chart import BOUND as BOUND
from wellcond.report.chart import FIRST as FIRST
from wellcond.report.chart import SECOND as SECOND
from wellcond.report.chart import Chart as Chart
from wellcond.report.chart import plain as plain
from wellcond.report.chart import ticks as ticks
from wellcond.report.compare import Comparison as Comparison
from wellcond.report.compare import compare as compare
from wellcond.report.page import VERDICT as VERDICT
from wellcond.report.page import page as page
from wellcond.report.plots import plot as plot
from wellcond.report.saved import SavedExamination as SavedExamination
from wellcond.report.saved import check_schema as check_schema
from wellcond.report.saved import read_examination as read_examination
from wellcond.report.template import render as render
from wellcond.report.terminal import STYLES as STYLES
from wellcond.report.terminal import item as item
from wellcond.report.terminal import print_summary as print_summary
