"""What tests compare to more digits than the library of models computes."""

from contextlib import contextmanager

import pytest
import torch


@contextmanager
def in_float64():
    """Lifts softmax and norms, which the library computes in float32 whatever the weights: rounding hides errors."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "float32", torch.float64)
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        yield
