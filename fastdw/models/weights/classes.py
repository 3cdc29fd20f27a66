"""The class names of ImageNet."""

from __future__ import annotations


def imagenet_classes(num_classes: int = 1000) -> list[str]:
    """Return the names of the 1000 ImageNet classes, in the order of the logits.

    With 1001, the first is ``"background"``, as in TensorFlow's heads. The names are torchvision's.

    Raises:
        ValueError: ``num_classes`` is neither 1000 nor 1001.
        ImportError: torchvision is not installed.
    """
    if num_classes not in (1000, 1001):
        raise ValueError(f"num_classes: expected 1000 or 1001, got {num_classes}")
    try:
        from torchvision.models import MobileNet_V2_Weights
    except ImportError as error:
        raise ImportError(
            f"the class names come from torchvision, which cannot be imported ({error}): "
            "pip install torchvision"
        ) from error
    names = list(MobileNet_V2_Weights.IMAGENET1K_V1.meta["categories"])
    return names if num_classes == 1000 else ["background", *names]
