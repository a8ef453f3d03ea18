"""Measurements → findings → prescriptions."""

from wellcond.examination.examination import Examination as Examination
from wellcond.examination.examination import examine as examine
from wellcond.examination.finding import Finding as Finding
from wellcond.examination.finding import Severity as Severity
from wellcond.examination.measurements import Measurements as Measurements
from wellcond.examination.run import TrainingRun as TrainingRun
