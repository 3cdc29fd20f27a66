"""The report, and what convert is asked to do or not to do."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings

import pytest
import torch
from convert_models import build, outputs, photo
from nn_checks import fused_ops
from torch import nn

import fastdw
from fastdw.convert import NothingConverted, Reason

ROW_KEYS = [
    *("name", "class", "pattern", "action", "backend"),
    *("reason_code", "reason", "parameters", "multiply_adds"),
]


def test_rows_and_totals() -> None:
    report = fastdw.explain(build("torchvision:mobilenet_v3_small"))
    plain = json.loads(json.dumps(report.to_dict()))
    assert all(list(row) == ROW_KEYS for row in plain["rows"])
    by_name = {row["name"]: row for row in plain["rows"]}
    assert by_name["features.0"]["pattern"] == "stem_conv"
    assert by_name["features.0"]["action"] == "fused"
    assert by_name["features.0"]["multiply_adds"] == 112 * 112 * 16 * 27
    assert by_name["features.0"]["parameters"] == 16 * 27 + 2 * 16
    assert by_name["features.1"]["action"] == "left"
    assert by_name["features.1"]["backend"] == "torch"
    assert by_name["features.1"]["reason"] == Reason.SQUEEZE_EXCITE.sentence
    totals = plain["totals"]
    assert totals["candidates"] == len(plain["rows"]) == totals["fused"] + totals["left"]
    assert totals["patterns"]["inverted_residual"] == 2
    assert plain["input_size"] == [3, 224, 224]


def test_multiply_adds_are_those_of_the_paper() -> None:
    totals = fastdw.explain(build("torchvision:mobilenet_v2")).totals
    assert totals["multiply_adds_fused"] + 1280 * 1000 == 300_774_272
    assert totals["parameters_fused"] + 1281 * 1000 == 3_504_872


def test_multiply_adds_do_not_depend_on_the_conversion() -> None:
    model = build("timm:lcnet_050")
    before = [row.multiply_adds for row in fastdw.explain(model).rows]
    fastdw.convert(model)
    after = [row.multiply_adds for row in fastdw.explain(model).rows]
    assert before == after and None not in before


def test_text_and_html() -> None:
    report = fastdw.explain(build("timm:lcnet_050"))
    lines = str(report).splitlines()
    assert len(lines) == len(report) + 2
    assert lines[0].split()[:4] == ["name", "class", "pattern", "action"]
    assert lines[-1] == "26 of 33 candidates fused: 11 blocks, 13 depthwise convolutions" or lines[
        -1
    ].endswith("11 blocks, 13 depthwise convolutions")
    assert report._repr_html_().count("<tr>") == len(report) + 1


def test_explain_changes_nothing() -> None:
    model = build("timm:lcnet_050")
    types = [type(module) for module in model.modules()]
    explained = fastdw.explain(model)
    dry = fastdw.convert(model, dry_run=True)
    assert [type(module) for module in model.modules()] == types
    assert explained.rows == dry.rows == fastdw.convert(model).rows


def test_converting_twice() -> None:
    model = build("timm:lcnet_050")
    first, second = fastdw.convert(model), fastdw.convert(model)
    codes = {row.reason for row in second.fused}
    assert codes == {Reason.ALREADY_FUSED}
    assert second.totals["fused"] == first.totals["fused"]
    assert second.totals["parameters_fused"] == first.totals["parameters_fused"]


def test_level_depthwise() -> None:
    for name, sites in (("torchvision:mobilenet_v2", 17), ("timm:mobilenetv1_100", 13)):
        model = build(name)
        expected = outputs(model, photo(1, 32, 32))[0]
        totals = fastdw.convert(model, level="depthwise").totals
        assert totals["patterns"] == {"depthwise_conv": sites}
        actual = outputs(model, photo(1, 32, 32))[0]
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
        calls = fused_ops(lambda m=model: outputs(m, photo(1, 32, 32)))  # type: ignore[misc]
        assert calls == {"depthwise_conv_packed": sites}


def test_depthwise_first_then_blocks() -> None:
    """A block with a fused site inside is left until revert."""
    model = build("torchvision:mobilenet_v2")
    fastdw.convert(model, level="depthwise")
    assert fastdw.convert(model).totals["blocks_fused"] == 0
    fastdw.revert(model)
    assert fastdw.convert(model).totals["blocks_fused"] == 17


def test_include_exclude_filter() -> None:
    def fused(**settings: object) -> set[str]:
        report = fastdw.explain(build("torchvision:mobilenet_v2"), **settings)  # type: ignore[arg-type]
        return {row.name for row in report.fused}

    everything = {f"features.{index}" for index in range(19)}
    assert fused() == everything
    assert fused(include="features.3") == {"features.3"}
    assert fused(include=["features.1?"]) == {f"features.1{index}" for index in range(9)}
    assert fused(exclude=["features.0", "features.18"]) == everything - {
        "features.0",
        "features.18",
    }
    assert fused(exclude="features") == set()
    big = fused(filter_fn=lambda name, module: name not in ("features.5", "features.6"))
    assert big >= everything - {"features.5", "features.6"}
    assert "features.5" not in big


def test_nothing_to_convert() -> None:
    model = nn.Sequential(nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16)).eval()
    with pytest.warns(UserWarning, match="can fuse nothing in Sequential: 1 dense_convolution"):
        fastdw.convert(model)
    with pytest.raises(NothingConverted, match="1 dense_convolution") as caught:
        fastdw.convert(model, strict=True)
    assert caught.value.report.left[0].name == "0"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastdw.explain(model)


def test_bad_arguments() -> None:
    model = build("torchvision:mobilenet_v2")
    with pytest.raises(TypeError, match="model: expected a torch.nn.Module, got str"):
        fastdw.convert("mobilenet")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='level: expected "block" or "depthwise"'):
        fastdw.convert(model, level="layer")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="backend: expected one of auto"):
        fastdw.convert(model, backend="cuda")


def test_import_is_lazy_and_unpickling_finds_the_classes(tmp_path: object) -> None:
    """`import fastdw` loads no model library; a pickled model loads where nothing was imported."""
    model = build("timm:mobilenetv1_100")
    fastdw.convert(model)
    torch.save(model, f"{tmp_path}/model.pt")
    program = (
        "import sys, fastdw\n"
        "assert not {'torchvision', 'timm', 'fastdw.convert'} & set(sys.modules)\n"
        "import torch\n"
        f"model = torch.load({f'{tmp_path}/model.pt'!r}, weights_only=False)\n"
        "assert type(model.blocks[0][0]).__module__ == 'fastdw.convert.timm'\n"
        "assert fastdw.convert(model).totals['blocks_fused'] == 13\n"
        "print(model(torch.ones(1, 3, 32, 32)).sum().item())\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    expected = outputs(model, torch.ones(1, 3, 32, 32))[0].sum().item()
    assert float(result.stdout) == pytest.approx(expected, rel=1e-4)
