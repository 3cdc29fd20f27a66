"""A plan of networks that return one tensor in several places."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from convert_models import outputs
from nn_checks import image, small_network
from torch import Tensor, nn

import fastdw
from fastdw.plan import PlannedNetwork

Ending = Callable[[Tensor, Tensor, Tensor], object]


class Returning(nn.Module):
    """Gives what `ending` makes of a feature map, its mean, and the logits."""

    def __init__(self, ending: Ending) -> None:
        super().__init__()
        *layers, self.head = small_network()
        self.features, self.ending = nn.Sequential(*layers), ending

    def forward(self, x: Tensor) -> object:
        y = self.features(x)
        return self.ending(y, y.mean((2, 3)), self.head(y))


ENDINGS: dict[str, tuple[Ending, list[int]]] = {
    # name: (ending, which output of the program stands at each place)
    "the logits twice": (lambda y, mean, logits: (logits, logits), [0, 0]),
    "a map before and behind them": (
        lambda y, mean, logits: {"aux": y, "out": logits, "features": [y]},
        [0, 1, 0],
    ),
    "a mean twice": (lambda y, mean, logits: [mean, logits, mean, y], [0, 1, 0, 2]),
    "nothing twice": (lambda y, mean, logits: (logits, y, mean), [0, 1, 2]),
}


@pytest.mark.parametrize("keep_weights", [True, False])
@pytest.mark.parametrize("name", ENDINGS)
@torch.no_grad()
def test_one_tensor_in_several_places(name: str, keep_weights: bool) -> None:
    ending, places = ENDINGS[name]
    original, x = Returning(ending).eval(), image("stem", 32)
    fast = fastdw.optimize(original, x, strict=True, keep_weights=keep_weights)
    assert isinstance(fast, PlannedNetwork)
    assert list(fast.places) == places
    expected = original(x)
    if keep_weights:
        fast = copy.deepcopy(fast)
    else:  # the ending is a lambda: only what holds no model can be pickled
        fast = pickle.loads(pickle.dumps(fast))
    found = fast(x)
    assert type(found) is type(expected)
    for ours, theirs in zip(outputs(fast, x), outputs(original, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_network_with_one_tensor_twice_is_exported() -> None:
    ending, _ = ENDINGS["a map before and behind them"]
    x = image("stem", 32)
    fast = fastdw.optimize(Returning(ending).eval(), x, strict=True)
    exported = torch.export.export(fast, (x,)).module()
    for ours, theirs in zip(outputs(exported, x), outputs(fast, x), strict=True):
        assert torch.equal(ours, theirs)
