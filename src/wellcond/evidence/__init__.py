"""The claims of the theory as experiments, through the public interface alone."""

from wellcond.evidence.claim import Claim as Claim
from wellcond.evidence.claim import Runs as Runs
from wellcond.evidence.claims import CLAIMS as CLAIMS
from wellcond.evidence.page import pages as pages
from wellcond.evidence.result import Evidence as Evidence
from wellcond.evidence.result import Result as Result
from wellcond.evidence.result import Verdict as Verdict
from wellcond.evidence.result import read_evidence as read_evidence
from wellcond.evidence.run import run_claims as run_claims
from wellcond.evidence.terminal import print_claims as print_claims
from wellcond.evidence.terminal import print_table as print_table
from wellcond.evidence.workloads import WORKLOADS as WORKLOADS
from wellcond.evidence.workloads import Workload as Workload
from wellcond.evidence.workloads import workload as workload
