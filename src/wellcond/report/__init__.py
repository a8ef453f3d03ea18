"""What people see of an examination: the page, the terminal, plots; and what changed between two."""

from wellcond.report.chart import BOUND as BOUND
from wellcond.report.chart import FIRST as FIRST
from wellcond.report.chart import LOG as LOG
from wellcond.report.chart import SECOND as SECOND
from wellcond.report.chart import Chart as Chart
from wellcond.report.chart import new_figure as new_figure
from wellcond.report.compare import Comparison as Comparison
from wellcond.report.compare import compare as compare
from wellcond.report.page import page as page
from wellcond.report.page import verdict as verdict
from wellcond.report.plots import curves as curves
from wellcond.report.plots import plot as plot
from wellcond.report.template import render as render
from wellcond.report.terminal import STYLES as STYLES
from wellcond.report.terminal import item as item
from wellcond.report.terminal import print_summary as print_summary
