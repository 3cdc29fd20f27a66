"""Models by name."""

from __future__ import annotations

import pytest
from torch import nn

import fastdw.models


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("fastdw:mobilenet_v1", "MobileNetV1"),
        ("fastdw:mobilenet_v2", "MobileNetV2"),
        ("torchvision:mobilenet_v2", "MobileNetV2"),
        ("timm:mobilenetv1_100", "EfficientNet"),
        ("torch.nn:Identity", "Identity"),
    ],
)
def test_create(name: str, kind: str) -> None:
    assert type(fastdw.models.create(name)).__name__ == kind


def test_settings_go_to_the_constructor() -> None:
    assert fastdw.models.create("fastdw:mobilenet_v1", num_classes=5).head.linear.out_features == 5
    assert fastdw.models.create("timm:mobilenetv2_050", num_classes=5).num_classes == 5
    assert fastdw.models.create("torch.nn:Linear", in_features=2, out_features=3).out_features == 3


def test_torchvision_models_with_a_backbone_download_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("tried to download")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", refuse)
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    model = fastdw.models.create("torchvision:lraspp_mobilenet_v3_large")
    assert isinstance(model, nn.Module)


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("mobilenet_v2", ValueError, "expected fastdw:NAME.*did you mean fastdw:mobilenet_v2"),
        (
            "fastdw:mobilnet_v2",
            ValueError,
            "fastdw has no model called 'mobilnet_v2'; did you mean",
        ),
        ("torchvision:mobilenetv2", ValueError, "did you mean mobilenet_v2"),
        ("timm:mobilenetv2_1000", ValueError, "did you mean mobilenetv2_100"),
        ("nopackage.nomodule:f", ValueError, "no module called 'nopackage.nomodule'"),
        ("torch.nn:Identitty", ValueError, "did you mean Identity"),
        ("torch.nn:modules", TypeError, "is a module, not a callable"),
        ("math:pi", TypeError, "is a float, not a callable"),
        ("time:time", TypeError, "returned a float, not an nn.Module"),
        ("fastdw:", ValueError, "expected fastdw:NAME"),
        ("", ValueError, "expected fastdw:NAME"),
    ],
)
def test_bad_names(name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fastdw.models.create(name)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match="pip install timm"):
        fastdw.models.create("timm:mobilenetv1_100")
