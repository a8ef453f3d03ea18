"""How numbers, names, tables and plots look. Imports nothing of ours."""

from wellcond.display.axes import axes as axes
from wellcond.display.numbers import number as number
from wellcond.display.numbers import number_to_json as number_to_json
from wellcond.display.renderer import Renderer as Renderer
from wellcond.display.table import Table as Table
from wellcond.display.table import paragraphs as paragraphs
from wellcond.display.words import begun as begun
from wellcond.display.words import capitalized as capitalized
from wellcond.display.words import listed as listed
from wellcond.display.words import short as short
