"""The same measurements while training runs."""

from wellcond.monitor.charts import plot as plot
from wellcond.monitor.history import History as History
from wellcond.monitor.history import read_history as read_history
from wellcond.monitor.monitor import Monitor as Monitor
from wellcond.monitor.page import page as page
from wellcond.monitor.record import Record as Record
from wellcond.monitor.terminal import watch as watch
