"""How numbers, tables and plots look."""

from wellcond.display.axes import axes as axes
from wellcond.display.density_plot import plot as plot
from wellcond.display.notebook import paragraphs as paragraphs
from wellcond.display.notebook import table as table
