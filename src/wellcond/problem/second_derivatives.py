"""What torch can't differentiate twice, and what to do about it."""

from __future__ import annotations

import re

_REMEDIES = {
    "_embedding_bag": "nn.EmbeddingBag has no second derivative in torch; use nn.Embedding followed by a sum or mean",
    "_ctc_loss": "CTC loss has no second derivative in torch; measure the same network with another loss, or write the "
    "alignment sum with torch.logsumexp",
    "cudnn": "a cuDNN kernel has no second derivative; measure with torch.backends.cudnn.enabled = False",
}


def remedy_of(message: str) -> str | None:
    """One line with what to do about an error of torch with this message; None for one of another kind."""
    if re.search(r"derivative for .* (is )?not implemented|double backward", message, re.IGNORECASE):
        for mark, remedy in _REMEDIES.items():
            if mark in message.lower():
                return remedy
        return f"a part of the network can't be differentiated twice: {message.splitlines()[0]}"
    if "Expected more than 1 value per channel" in message:
        return "batch norm in train mode has no statistics of a batch of one; give larger batches, or mode='eval'"
    return None
