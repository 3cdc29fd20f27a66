"""transformers' classifiers as one op: called by keyword, and answering in their own dataclass."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from typing import Any

import pytest
import torch
from convert_models import assert_same_answer, photo
from nn_checks import ops_of, randomize
from test_convert_transformers import v1, v2
from torch import Tensor, nn

import fastdw


@pytest.mark.parametrize("make", [v1, v2])
def test_planned_as_a_whole(make: Any) -> None:
    model = make()
    fast = fastdw.optimize(model, photo(2, 64, 64), strict=True)
    assert fast.report.planned
    x = photo(1, 65, 97)
    calls: dict[str, int] = {}
    with torch.no_grad():
        answer = fast(x)
        by_name = pickle.loads(pickle.dumps(fast))(pixel_values=x)
        calls = ops_of(lambda: fast(pixel_values=x))
        states = fast(pixel_values=x, output_hidden_states=True).hidden_states
        expected = model(x, output_hidden_states=True).hidden_states
    assert type(answer) is type(by_name) is type(model(x))
    assert answer.hidden_states is None and torch.equal(by_name.logits, answer.logits)
    assert [op for op in calls if op.startswith("fastdw::")] == ["fastdw::planned_network"]
    assert_same_answer(fast, model, x)
    assert len(states) == len(expected)
    torch.testing.assert_close(states[-1], expected[-1], rtol=1e-3, atol=1e-3)


def test_settings_need_the_weights() -> None:
    fast = fastdw.optimize(v1(), photo(2, 64, 64), keep_weights=False)
    with torch.no_grad():
        fast(pixel_values=photo())
        with pytest.raises(TypeError, match="expected the image and nothing else"):
            fast(pixel_values=photo(), output_hidden_states=True)
        with pytest.raises(TypeError, match="expected a Tensor, got NoneType"):
            fast()


@pytest.mark.parametrize("kind", [tuple, list, dict, OrderedDict])
def test_containers_of_the_answer(kind: Any) -> None:
    class Container(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8)
            self.last = nn.Conv2d(8, 4, 1)

        def forward(self, image: Tensor) -> Any:
            y = self.norm(self.conv(image))
            z = self.last(y)
            return kind({"first": y, "second": z}.items() if named else [y, z])

    named = kind in (dict, OrderedDict)
    torch.manual_seed(0)
    model = randomize(Container()).eval()
    fast = fastdw.optimize(model, photo(), strict=True)
    with torch.no_grad():
        expected, answer = model(photo()), fast(image=photo())
    assert type(answer) is type(expected)
    assert_same_answer(fast, model, photo())
