"""Photos in, class names and pictures out: what the commands about photos share."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdw.commands.output import InputError, one_line

if TYPE_CHECKING:
    import torch
    from PIL import Image, ImageDraw

SHIPPED = {
    "skimage": [
        "data/chelsea.png",
        "data/coffee.png",
        "data/astronaut.png",
        "data/rocket.jpg",
        "data/motorcycle_left.png",
        "data/camera.png",
    ],
    "sklearn": ["datasets/images/china.jpg", "datasets/images/flower.jpg"],
}
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def shipped_photos() -> list[Path]:
    """The photos that scikit-image and scikit-learn bring along, where these are installed."""
    photos = []
    for package, names in SHIPPED.items():
        spec = find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            photos += [path for name in names if (path := Path(folder) / name).is_file()]
    return photos


def load_photo(path: Path) -> Image.Image:
    """The photo as RGB, turned upright by its EXIF orientation.

    Raises:
        InputError: there is no such file, or Pillow cannot read it as an image.
    """
    try:
        from PIL import Image, ImageOps
    except ModuleNotFoundError:
        raise InputError("photos need Pillow: pip install 'fastdw[vision]'") from None
    if not path.is_file():
        raise InputError(f"{path}: no such photo")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return _eight_bits(ImageOps.exif_transpose(image), path).convert("RGB")
    except InputError:
        raise
    except Image.UnidentifiedImageError:
        raise InputError(f"{path}: not a photo: no image format that Pillow knows") from None
    except Exception as error:  # Pillow's decoders raise whatever their format's code raises
        raise InputError(f"{path}: the photo cannot be read: {one_line(error)}") from None


def _eight_bits(image: Image.Image, path: Path) -> Image.Image:
    """Greys of 16 bits cut to 8, which Pillow would clip at 255; others as they are.

    Raises:
        InputError: its greys have no range that is known: floating point, or 32 bits.
    """
    if image.mode in ("I", "F"):
        raise InputError(f"{path}: its pixels are of mode {image.mode}, expected 8 or 16 bits")
    if not image.mode.startswith("I;16"):
        return image
    import numpy as np
    from PIL import Image as Pillow

    return Pillow.fromarray((np.asarray(image) >> 8).astype(np.uint8))


def save_picture(picture: Image.Image, path: Path, option: str) -> None:
    """Write a picture in the format that its name ends with.

    Raises:
        InputError: it cannot be written; begins with the option that named it.
    """
    try:
        picture.save(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{option}: {path} cannot be written: {one_line(error)}") from None


def write_label(
    pen: ImageDraw.ImageDraw,
    corner: tuple[float, float],
    text: str,
    size: int,
    ground: str | tuple[int, int, int],
    margin: int,
) -> None:
    """White text on a ground that is a margin larger; `corner`: the text's upper left."""
    left, top, right, bottom = pen.textbbox(corner, text, font_size=size)
    pen.rectangle((left - margin, top - margin, right + margin, bottom + margin), fill=ground)
    pen.text(corner, text, fill="white", font_size=size)


def preprocess(
    image: Image.Image,
    model: Any = None,
    resolution: int = 224,
    statistics: tuple[Sequence[float], Sequence[float]] | None = None,
) -> torch.Tensor:
    """The usual evaluation transform: shorter side to resolution * 8/7, centre crop, normalize.

    Mean and standard deviation are `statistics`, or those that timm's models carry
    (`pretrained_cfg`), or ImageNet's.

    Returns:
        fp32 [1, 3, resolution, resolution], channels_last.
    """
    import numpy as np
    import torch
    from PIL import Image

    side = resolution * 8 // 7
    scale = side / min(image.size)
    width, height = (max(side, int(length * scale)) for length in image.size)
    left, top = round((width - resolution) / 2), round((height - resolution) / 2)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    crop = resized.crop((left, top, left + resolution, top + resolution))
    config = getattr(model, "pretrained_cfg", None) or {}
    carried = config.get("mean", IMAGENET_MEAN), config.get("std", IMAGENET_STD)
    mean, std = (torch.tensor(values) for values in statistics or carried)
    pixels = torch.from_numpy(np.array(crop, dtype=np.float32))
    return ((pixels / 255 - mean) / std).permute(2, 0, 1).unsqueeze(0)


def class_names(number: int, labels: Path | None = None) -> list[str]:
    """The names of a classifier's outputs: from `labels`, one a line, or ImageNet's.

    Raises:
        InputError: the file cannot be read, or has not as many lines as the model has classes.
    """
    if labels is not None:
        try:
            names = labels.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--labels: {labels}: {one_line(error)}") from None
        if len(names) != number:
            raise InputError(
                f"--labels: {labels} has {len(names)} lines, the model has {number} classes"
            )
        return names
    if number in (1000, 1001) and find_spec("torchvision"):
        from fastdw.models.weights import imagenet_classes

        return imagenet_classes(number)
    return [f"class {index}" for index in range(number)]


def class_index(name: str, names: Sequence[str]) -> int:
    """Where the class stands, by name (any case).

    Raises:
        InputError: no class has that name; the nearest names are told.
    """
    lower = [candidate.lower() for candidate in names]
    if name.lower() in lower:
        return lower.index(name.lower())
    near = difflib.get_close_matches(name.lower(), lower, n=3)
    hint = f": did you mean {' or '.join(near)}?" if near else ""
    raise InputError(f"--class: no class is named {name!r} among {len(names)}{hint}")


def top_classes(logits: torch.Tensor, names: Sequence[str], count: int = 5) -> list[dict[str, Any]]:
    """The likeliest classes of one photo, best first: index, name, probability, logit."""
    probabilities = logits.double().softmax(0)
    best = logits.topk(min(count, len(names))).indices.tolist()
    return [
        {
            "index": index,
            "name": names[index],
            "probability": probabilities[index].item(),
            "logit": logits[index].item(),
        }
        for index in best
    ]
