"""A `with problem:` block."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from torch import Tensor


class Block(contextlib.ExitStack):
    """An open `with problem:`, inside which the parameters stay as they are.

    Rooms above, which keep things for it, register here what is to be done when it ends.

    Args:
        parameters: of the problem.

    Attributes:
        depth: how many blocks are open, one inside the other; only the outermost one counts.
    """

    def __init__(self, parameters: Sequence[Tensor]):
        super().__init__()
        self.depth, self._parameters = 0, parameters
        self._versions = self._current_versions()

    def check_unchanged(self) -> None:
        """Refuse parameters that changed since the block began.

        Raises:
            RuntimeError: if they did.
        """
        if self._current_versions() != self._versions:
            raise RuntimeError("the parameters changed inside `with problem:`; leave the block before training on")

    def _current_versions(self) -> list[tuple[int, int]]:
        return [(p.data_ptr(), p._version) for p in self._parameters]
