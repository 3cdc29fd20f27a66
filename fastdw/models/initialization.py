"""Weights before training."""

from __future__ import annotations

from torch import nn


def initialize(model: nn.Module) -> None:
    """Draw the weights: He normal (fan out) for convolutions, N(0, 0.01) for linear layers.

    Batch norms start as the identity, biases at 0.

    Source: He et al., Delving Deep into Rectifiers (2015), section 2.2.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
            nn.init.zeros_(module.bias)
