"""Measurements → findings → prescriptions."""

from wellcond.examination.examination import Examination as Examination
from wellcond.examination.examination import examine as examine
from wellcond.examination.figures import CURVATURES as CURVATURES
from wellcond.examination.figures import OF_THETA as OF_THETA
from wellcond.examination.figures import SYMBOLS as SYMBOLS
from wellcond.examination.figures import candidates as candidates
from wellcond.examination.figures import conditioning_figures as conditioning_figures
from wellcond.examination.figures import counts as counts
from wellcond.examination.figures import eigenvalue_bound as eigenvalue_bound
from wellcond.examination.figures import headline as headline
from wellcond.examination.figures import interruption as interruption
from wellcond.examination.figures import rows as rows
from wellcond.examination.figures import shown_spectra as shown_spectra
from wellcond.examination.figures import theta as theta
from wellcond.examination.finding import Finding as Finding
from wellcond.examination.finding import Severity as Severity
from wellcond.examination.findings import FINDINGS as FINDINGS
from wellcond.examination.json import SCHEMA as SCHEMA
from wellcond.examination.json import to_json as to_json
from wellcond.examination.measurements import Measurements as Measurements
from wellcond.examination.measurements import first_order as first_order
from wellcond.examination.step_sizes import QUANTILES as QUANTILES
from wellcond.examination.step_sizes import Distribution as Distribution
from wellcond.examination.subject import Settings as Settings
from wellcond.examination.subject import Subject as Subject
