"""Measurements → findings → remedies."""

from wellcond.examination.examination import Examination as Examination
from wellcond.examination.examination import examine as examine
from wellcond.examination.figures import CURVATURES as CURVATURES
from wellcond.examination.figures import KAPPAS as KAPPAS
from wellcond.examination.figures import OF_THETA as OF_THETA
from wellcond.examination.figures import headline as headline
from wellcond.examination.figures import interruption as interruption
from wellcond.examination.finding import Find as Find
from wellcond.examination.finding import Finding as Finding
from wellcond.examination.finding import Severity as Severity
from wellcond.examination.findings import FINDINGS as FINDINGS
from wellcond.examination.json import plain as plain
from wellcond.examination.measurements import Measurements as Measurements
from wellcond.examination.measurements import first_order as first_order
from wellcond.examination.saved_examination import SavedExamination as SavedExamination
from wellcond.examination.saved_examination import check_schema as check_schema
from wellcond.examination.saved_examination import read_examination as read_examination
from wellcond.examination.step_sizes import QUANTILES as QUANTILES
from wellcond.examination.step_sizes import Distribution as Distribution
from wellcond.examination.step_sizes import Histogram as Histogram
from wellcond.examination.subject import Settings as Settings
from wellcond.examination.subject import Subject as Subject
