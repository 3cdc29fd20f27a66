"""Networks written in darknet's ``.cfg`` form: MobileNet V1, and what else its layers make."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from torch import Tensor, nn

from fastdw.models.initialization import initialize
from fastdw.nn import ClassifierHead, ConvBNAct
from fastdw.nn.conv_bn_act import activation_module

LEAKY_SLOPE = 0.1
FUSED_ACTIVATIONS = {"linear": "none", "relu": "relu", "relu6": "relu6", "swish": "silu"}
"""Darknet's activations for which there are kernels, and our names for them."""

OTHER_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "leaky": lambda: nn.LeakyReLU(LEAKY_SLOPE, inplace=True),
    "logistic": nn.Sigmoid,
    "mish": nn.Mish,
    "tanh": nn.Tanh,
}
"""Those that run through torch."""

NETWORK = ("net", "network")
CONVOLUTIONS = ("convolutional", "conv", "depthwise_convolutional")
ENDINGS = ("softmax", "soft", "cost", "region")
"""What only scores or trains: the network gives what goes into the first of them."""

OPTIONS = {
    "convolutional": (
        "filters size stride pad padding group groups dilation batch_normalize activation"
    ),
    "depthwise_convolutional": "size stride pad padding dilation batch_normalize activation",
    "shortcut": "from activation",
    "avgpool": "",
    "dropout": "probability",
}
"""The options of each section that change what it computes."""

TRAINING_OPTIONS = ("dontload", "dontloadscales", "learning_rate", "numload", "stopbackward")


@dataclass(frozen=True)
class Section:
    """One layer as the file gives it: its kind, its options, the line where it begins."""

    kind: str
    options: dict[str, str]
    line: int

    def number(self, name: str, default: int, minimum: int = 0) -> int:
        """The option as a whole number.

        Raises:
            ValueError: it is none, or below ``minimum``.
        """
        text = self.options.get(name, str(default))
        if not text.lstrip("-").isdecimal() or int(text) < minimum:
            self.refuse(f"{name}: expected a whole number of at least {minimum}, got {text!r}")
        return int(text)

    def refuse(self, reason: str) -> NoReturn:
        """Raise ValueError with the place in the file."""
        raise ValueError(f"line {self.line}: [{self.kind}]: {reason}")


def parse_cfg(text: str) -> list[Section]:
    """Parse the text of a ``.cfg`` file.

    Raises:
        ValueError: a line is neither a section, nor an option in one, nor a comment, or an option
            comes twice.
    """
    sections: list[Section] = []
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if not line or line[0] in "#;":
            continue
        name, equals, value = (part.strip() for part in line.partition("="))
        if line[0] == "[" and line[-1] == "]":
            sections.append(Section(line[1:-1].strip(), {}, number))
        elif not equals or not name or not sections:
            raise ValueError(f"line {number}: expected a section or an option in one, got {line!r}")
        elif name in sections[-1].options:
            raise ValueError(f"line {number}: {name} comes twice in [{sections[-1].kind}]")
        else:
            sections[-1].options[name] = value
    return sections


class Shortcut(nn.Module):
    """The sum of two layers' outputs, and an activation."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor, earlier: Tensor) -> Tensor:
        return self.activation(x + earlier)


class DarknetNetwork(nn.Module):
    """The network that the sections of a ``.cfg`` file describe, untrained.

    A convolution with batch norm is a ``ConvBNAct``: one op in eval mode. A leaky, logistic, tanh
    or mish activation runs through torch behind it. An average pool with a 1x1 convolution behind
    it is a ``ClassifierHead``.

    Args:
        sections: of ``parse_cfg``; the first is ``[net]``.
        eps, momentum: of the batch norms; darknet's are 1e-5 (in some versions 1e-6 beside the
            root) and 0.01.

    Attributes:
        layers: a module for each section that computes something.
        input_size: (channels, height, width) of the images that the file names.

    Shape:
        ``[batch, channels, height, width]``, any size, to logits ``[batch, classes]`` where an
        average pool and a 1x1 convolution end it, else to the last feature map: what a ``[region]``
        would read boxes from.

    Raises:
        ValueError: an unknown section, option or activation, or one out of range; the message names
            the line.

    Source: darknet, ``src/parser.c``; the depthwise convolutions are written as ``groups``,
    ``group`` or ``[depthwise_convolutional]`` in the published files of MobileNet.
    """

    def __init__(
        self, sections: Sequence[Section], eps: float = 1e-5, momentum: float = 0.01
    ) -> None:
        super().__init__()
        if not sections or sections[0].kind not in NETWORK:
            raise ValueError(f"sections: expected [net] first, got {_kinds(sections[:1])}")
        net, *layers = sections
        channels = net.number("channels", 3, 1)
        self.input_size = (channels, net.number("height", 224, 1), net.number("width", 224, 1))
        self.layers = nn.ModuleList()
        self.earlier: list[int | None] = []
        self.norm: dict[str, Any] = {"eps": eps, "momentum": momentum}
        widths: list[int] = []
        for section in _computing(layers):
            layer, channels = self._layer(section, widths, channels)
            self.layers.append(layer)
            widths.append(channels)
        if not self.layers:
            raise ValueError("sections: expected a layer after [net], got none")
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        kept: dict[int, Tensor] = {}
        for index, (layer, earlier) in enumerate(zip(self.layers, self.earlier, strict=True)):
            x = layer(x) if earlier is None else layer(x, kept[earlier])
            if index in self.earlier:  # a shortcut adds it later
                kept[index] = x
        return x

    def _layer(
        self, section: Section, widths: Sequence[int], channels: int
    ) -> tuple[nn.Module, int]:
        """The module of a section, and the channels behind it; `widths` are those before it."""
        _check_options(section)
        self.earlier.append(None)
        if section.kind in CONVOLUTIONS:
            pooled = bool(self.layers) and isinstance(self.layers[-1], nn.AdaptiveAvgPool2d)
            filters = section.number("filters", 1, 1)
            if section.kind == "depthwise_convolutional":
                filters = channels
            if pooled and _is_linear(section):
                self.layers[-1] = nn.Identity()
                return _classifier(section, channels, filters), filters
            return self._convolution(section, channels, filters), filters
        if section.kind == "shortcut":
            place = section.number("from", 0, -len(widths))
            index = place if place >= 0 else len(widths) + place
            if index >= len(widths) or widths[index] != channels:
                section.refuse(f"from: no layer of {channels} channels stands there, got {place}")
            self.earlier[-1] = index
            name = section.options.get("activation", "linear")
            return Shortcut(_activation(section, name)), channels
        if section.kind == "dropout":
            return nn.Dropout(_probability(section)), channels
        return nn.AdaptiveAvgPool2d(1), channels

    def _convolution(self, section: Section, channels: int, filters: int) -> nn.Module:
        size, stride = section.number("size", 1, 1), section.number("stride", 1, 1)
        dilation = section.number("dilation", 1, 1)
        padding = section.number("padding", 0)
        if section.number("pad", 0):
            padding = size // 2 * dilation
        groups = section.number("groups", section.number("group", 1, 1), 1)
        if section.kind == "depthwise_convolutional":
            groups = channels
        if channels % groups or filters % groups:
            section.refuse(f"groups: {groups} do not divide {channels} and {filters} channels")
        name = section.options.get("activation", "logistic")
        window: dict[str, Any] = {
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "groups": groups,
        }
        if not section.number("batch_normalize", 0):
            plain = nn.Conv2d(channels, filters, size, **window)
            return _followed(plain, _activation(section, name))
        fused = ConvBNAct(
            channels,
            filters,
            size,
            **window,
            activation=FUSED_ACTIVATIONS.get(name, "none"),
            **self.norm,
        )
        rest = nn.Identity() if name in FUSED_ACTIVATIONS else _activation(section, name)
        return _followed(fused, rest)


def darknet(path: str | Path) -> DarknetNetwork:
    """Build the network of a darknet ``.cfg`` file, untrained.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no text, or as ``DarknetNetwork`` and ``parse_cfg`` say.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path: no file {str(path)!r}")
    try:
        return DarknetNetwork(parse_cfg(path.read_text(encoding="utf-8")))
    except UnicodeDecodeError as error:
        raise ValueError(f"path: {path} is no text: {error}") from None
    except ValueError as error:
        raise ValueError(f"path: {path}: {error}") from None


def _computing(sections: Sequence[Section]) -> Iterator[Section]:
    """The sections before the first that only scores or trains."""
    for index, section in enumerate(sections):
        if section.kind in ENDINGS:
            if behind := [later for later in sections[index:] if later.kind not in ENDINGS]:
                behind[0].refuse(f"no layer can stand behind [{section.kind}]")
            return
        yield section


def _check_options(section: Section) -> None:
    kind = "convolutional" if section.kind == "conv" else section.kind
    if kind not in OPTIONS:
        known = ", ".join(f"[{name}]" for name in (*OPTIONS, *ENDINGS))
        section.refuse(f"expected one of {known}")
    for name in section.options:
        if name not in OPTIONS[kind].split() and name not in TRAINING_OPTIONS:
            section.refuse(f"{name}: an option that is not known")


def _probability(section: Section) -> float:
    text = section.options.get("probability", "0.5")
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        section.refuse(f"probability: expected a number from 0 to 1, got {text!r}")
    return value


def _is_linear(section: Section) -> bool:
    """Whether the convolution is a linear layer on a single pixel."""
    window = (section.number("size", 1), section.number("stride", 1), section.number("padding", 0))
    ones = all(section.number(name, 1) == 1 for name in ("group", "groups"))
    return window == (1, 1, 0) and ones and not section.number("batch_normalize", 0)


def _classifier(section: Section, channels: int, classes: int) -> nn.Module:
    name = section.options.get("activation", "logistic")
    return _followed(ClassifierHead(channels, classes, 0.0), _activation(section, name))


def _activation(section: Section, name: str) -> nn.Module:
    """The torch module of one of darknet's activations."""
    if name in OTHER_ACTIVATIONS:
        return OTHER_ACTIVATIONS[name]()
    if name not in FUSED_ACTIVATIONS:
        known = ", ".join((*FUSED_ACTIVATIONS, *OTHER_ACTIVATIONS))
        section.refuse(f"activation: expected one of {known}, got {name!r}")
    return activation_module(FUSED_ACTIVATIONS[name])


def _followed(layer: nn.Module, activation: nn.Module) -> nn.Module:
    return layer if isinstance(activation, nn.Identity) else nn.Sequential(layer, activation)


def _kinds(sections: Sequence[Section]) -> str:
    return ", ".join(f"[{section.kind}]" for section in sections) or "nothing"
