"""How names and sentences are written."""

from __future__ import annotations

import re
from collections.abc import Sequence


def listed(names: Sequence[object], most: int = 6) -> str:
    """The first `most` names, and how many more there are.

    >>> listed(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    return ", ".join(map(str, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


def begun(names: Sequence[object], most: int) -> str:
    """The first `most` names, with a sign if there are more.

    >>> begun(["a", "b", "c"], 2)
    'a, b …'
    """
    return ", ".join(map(str, names[:most])) + " …" * (len(names) > most)


def capitalized(text: str) -> str:
    """The text with a capital letter first, the others as they are."""
    return text[0].upper() + text[1:]


def short(name: str, most: int = 30) -> str:
    """A layer's name in at most `most` characters, its numbers and its last word kept as long as possible.

    >>> [short("model.encoder.layers.17.self_attn.out_proj", n) for n in (30, 14)]
    ['mod.enc.lay.17.sel.out_proj', '17.out_proj']
    >>> short("encoder_block_17.dense", 12)
    'enc17.dense'
    >>> short("a" * 50, 11)
    'aaaaa…aaaaa'
    """
    *path, last = name.split(".")
    for length in (12, 8, 5, 3, 2, 1, 0):
        if len(name) <= most:
            return name
        # The start of each part, and the numbers of its rest.
        cut = [part[:length] + "_".join(re.findall(r"\d+", part[length:])) for part in path]
        name = ".".join([*(part for part in cut if part), last])
    return name if len(name) <= most else f"{name[: most // 2]}…{name[-(most - most // 2 - 1) :]}"
