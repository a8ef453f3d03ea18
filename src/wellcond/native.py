"""C functions of ours, compiled by the machine's own compiler in the process that first calls them."""

from __future__ import annotations

import ctypes
import functools
import os
import shlex
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC")
_REALS = {torch.float32: "float", torch.float64: "double"}


@functools.cache
def compiled(source: Path, name: str, arguments: tuple[Any, ...], dtype: torch.dtype, **flags: int) -> Any:
    """A function of a C file, for one dtype, float32 or float64; None, with a warning, where no compiler works.

    It takes about a tenth of a second, once a process: $CC, else cc, with OpenMP, whose threads are torch's own.

    Args:
        source: the file.
        name: of the function, which returns nothing.
        arguments: their ctypes.
        dtype: what REAL is.
        flags: further names that the file is compiled with.
    """
    defines = [f"-DREAL={_REALS[dtype]}", *(f"-D{flag}={int(value)}" for flag, value in flags.items())]
    try:
        with tempfile.TemporaryDirectory() as folder:
            library = str(Path(folder) / f"{name}.so")
            command = [*shlex.split(os.environ.get("CC", "cc")), *_FLAGS, *defines, str(source), "-o", library, "-lm"]
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
            function: Callable[..., None] = getattr(ctypes.CDLL(library), name)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        warnings.warn(
            f"no C compiler works here ({said[0][:120] if said else type(error).__name__}); steps through a "
            "preconditioner take several passes over memory in the place of one, which is slower",
            stacklevel=2,
        )
        return None
    function.argtypes, function.restype = arguments, None  # type: ignore[attr-defined]
    return function
