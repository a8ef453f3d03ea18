"""What all tests share."""

import signal
import sys
from pathlib import Path

import pytest
import torch

# The problems are tiny: a second thread costs more than it brings, and far more on a busy machine.
torch.set_num_threads(1)

# A shell lets what it starts in the background ignore Ctrl-C, and so would the processes that the tests send it to.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Where the test runs; what it imports from there is forgotten after it."""
    monkeypatch.chdir(tmp_path)
    before = dict(sys.modules), list(sys.path)
    yield tmp_path
    for name in set(sys.modules) - set(before[0]):
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]
    sys.path[:] = before[1]
