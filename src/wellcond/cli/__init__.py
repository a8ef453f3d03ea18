"""The command."""

from wellcond.cli.command import app as app
from wellcond.cli.command import main as main
