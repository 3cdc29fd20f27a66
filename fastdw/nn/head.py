"""The classifier head: global average pool, dropout, linear."""

from __future__ import annotations

from torch import Tensor, nn

from fastdw.nn.fused_module import FusedModule, LinearUnit


class ClassifierHead(FusedModule):
    """Global average pool, dropout and a linear layer: ``y = linear(dropout(mean(x, (2, 3))))``.

    Eval mode runs the op ``classifier_head``.

    Args:
        in_channels: channels of the input.
        num_classes: outputs.
        dropout: probability of dropping a pooled channel in training.

    Shape:
        ``[batch, in_channels, height, width]`` to ``[batch, num_classes]``.

    Source: Sandler et al., MobileNetV2 (2018), table 2 (the last two rows).
    """

    _fused_pattern = "classifier_head"

    def __init__(self, in_channels: int, num_classes: int, dropout: float = 0.2) -> None:
        super().__init__()
        for name, value in (("in_channels", in_channels), ("num_classes", num_classes)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(in_channels, num_classes)

    def _fused_units(self) -> tuple[LinearUnit, ...]:
        return (LinearUnit(self.linear),)

    def _unfused_forward(self, x: Tensor) -> Tensor:
        return self.linear(self.dropout(self.pool(x).flatten(1)))
