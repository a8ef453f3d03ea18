"""From what a user types to the training run that it names."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from wellcond.problem import TrainingRun, first_line

_OURS = (str(Path(__file__).parents[1]), "<frozen importlib", importlib.__file__, contextlib.__file__)


class TargetError(Exception):
    """The target can't be examined: one line for the user, and their own traceback where their code raised.

    Attributes:
        details: their traceback, or empty.
    """

    def __init__(self, message: str, details: str = ""):
        super().__init__(message)
        self.details = details


def load_target(target: str) -> TrainingRun:
    """Import a file or module and call its function.

    Args:
        target: "file.py", "file.py:function", "package.module" or "package.module:function"; by default `setup`.

    Raises:
        TargetError: for anything that keeps the function from returning a `TrainingRun`.
    """
    where, _, function = target.partition(":")
    if not where.strip("./"):
        raise TargetError(f"got the target {target!r}; give file.py[:function] or package.module[:function]")
    function = function or "setup"
    module = _call(f"importing {where}", lambda: _import(where))
    found = getattr(module, function, None)
    if not callable(found):
        others = [n for n, f in vars(module).items() if inspect.isfunction(f) and f.__module__ == module.__name__]
        hint = f"; it defines {', '.join(others[:6])}" if others else ""
        raise TargetError(f"{where} has no function {function}(){hint}: name one with {where}:function")
    try:
        inspect.signature(found).bind()
    except TypeError:
        raise TargetError(f"{function}() in {where} needs arguments; wellcond calls it without any") from None
    run = _call(f"{function}() in {where}", found)
    if not isinstance(run, TrainingRun):
        raise TargetError(
            f"{function}() in {where} returned {type(run).__name__}; it should return "
            "wc.TrainingRun(model, loss_fn, data, optimizer)"
        )
    return run


def load_checkpoint(run: TrainingRun, path: Path) -> None:
    """Load a checkpoint into the run: a model's state dict, or a dictionary that holds one, and the optimizer's.

    Only tensors and plain containers are read (`weights_only=True`).

    Raises:
        TargetError: if the file is missing, not a checkpoint, or does not fit the model.
    """
    if not path.is_file():
        raise TargetError(f"the checkpoint {path} does not exist")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise TargetError(
            f"{path} can't be read as a checkpoint: it should hold tensors in plain dictionaries (weights_only=True)"
        ) from error
    if not isinstance(state, dict):
        raise TargetError(f"{path} holds a {type(state).__name__}, not a state dict")
    model = next((state[k] for k in ("model", "model_state_dict", "state_dict") if k in state), state)
    optimizer = next((state[k] for k in ("optimizer", "optimizer_state_dict") if k in state), None)
    try:
        run.model.load_state_dict(model)
        if optimizer is not None and run.optimizer is not None:
            run.optimizer.load_state_dict(optimizer)
    except Exception as error:
        raise TargetError(f"{path} does not fit the model or its optimizer: {' '.join(str(error).split())}") from error


def move_run(run: TrainingRun, device: str) -> None:
    """Move the model, a loss with tensors of its own, and the optimizer's state to a device.

    Raises:
        TargetError: if torch does not have it.
    """
    try:
        run.model.to(torch.device(device))
        if isinstance(run.loss_fn, torch.nn.Module):
            run.loss_fn.to(torch.device(device))
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise TargetError(f"can't move the model to device {device!r}: {first_line(error)}") from error
    if run.optimizer is not None:
        run.optimizer.load_state_dict(run.optimizer.state_dict())


def user_traceback(error: BaseException) -> str:
    """The part of a traceback that is not ours, as text; empty if the error is ours alone."""
    told = traceback.TracebackException.from_exception(error)
    theirs = [frame for frame in told.stack if not frame.filename.startswith(_OURS)]
    if not theirs and not isinstance(error, SyntaxError):  # which has no frame in the file that it is about
        return ""
    told.stack = traceback.StackSummary.from_list(theirs)
    return "".join(told.format(chain=False))


def _import(where: str) -> ModuleType:
    path = Path(where)
    if path.suffix == ".py" or "/" in where or "\\" in where:
        if not path.is_file():
            raise TargetError(f"the file {where} does not exist")
        # The file's own folder comes first, as when Python runs it.
        sys.path.insert(0, str(path.resolve().parent))
        spec = importlib.util.spec_from_file_location(path.stem, path)
        if spec is None or spec.loader is None:
            raise TargetError(f"{where} is not a Python file")
        module = importlib.util.module_from_spec(spec)
        # By its name, so that what it defines can be pickled; but never instead of a module that others use.
        sys.modules.setdefault(path.stem, module)
        spec.loader.exec_module(module)
        return module
    sys.path.insert(0, "")
    try:
        return importlib.import_module(where)
    except ModuleNotFoundError as error:
        if error.name and where.split(".")[: len(error.name.split("."))] == error.name.split("."):
            raise TargetError(f"there is no module {where}; for a file, give its path with .py") from None
        raise


def _call(what: str, function: Callable[[], Any]) -> Any:
    try:
        return function()
    except (TargetError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise TargetError(f"{what} raised {first_line(error)}", user_traceback(error)) from error
