"""Writes published.npz: what the original runtimes make of scikit-image's photos.

    pip install tensorflow-cpu pillow && npm pack @vladmandic/face-api@1.7.15   # and unpack it
    python write_published.py PHOTOS WEIGHTS FACE_API
    # scikit-image's data folder, the folder that `fastdw fetch` fills, the unpacked package

The photos are cropped and never resized, so that the input is the same everywhere.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

MARKED = 0.02
"""Default boxes of this score and more are kept."""


def centre(path: Path, size: int) -> np.ndarray:
    """The square in the middle of a photo, [size, size, 3]."""
    pixels = np.array(Image.open(path).convert("RGB"))
    top, left = ((length - size) // 2 for length in pixels.shape[:2])
    return pixels[top : top + size, left : left + size]


def tensorflow_v1(weights: Path, pixels: np.ndarray) -> np.ndarray:
    graph = tf.compat.v1.GraphDef.FromString((weights / "mobilenet_v1_1.0_224.pb").read_bytes())
    with tf.Graph().as_default() as scope, tf.compat.v1.Session() as session:
        tf.import_graph_def(graph, name="")
        image = next(op for op in scope.get_operations() if op.type == "Placeholder").outputs[0]
        x = pixels[None].astype(np.float32) / 127.5 - 1
        return session.run("MobilenetV1/Predictions/Reshape:0", {image: x})[0]


def keras_dogs(weights: Path, pixels: np.ndarray) -> np.ndarray:
    model = keras.models.load_model(weights / "dog_breed_mobilenetv2.h5", compile=False)
    return model.predict(pixels[None].astype(np.float32) / 127.5 - 1, verbose=0)[0]


def litert_open_images(weights: Path, pixels: np.ndarray) -> dict[str, np.ndarray]:
    path = weights / "object_detection_ssd_mobilenetv2_oidv4_fp16.tflite"
    interpreter = tf.lite.Interpreter(str(path))
    interpreter.allocate_tensors()
    x = pixels[None].astype(np.float32) / 127.5 - 1
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    outputs = [interpreter.get_tensor(o["index"])[0] for o in interpreter.get_output_details()]
    codes, logits = sorted(outputs, key=lambda y: y.shape[1])
    marked = (logits[:, 1:].max(1) > np.log(MARKED / (1 - MARKED))).nonzero()[0]
    return {"anchors": marked, "codes": codes[marked], "logits": logits[marked]}


def face_api(folder: Path, pixels: np.ndarray) -> dict[str, np.ndarray]:
    with tempfile.TemporaryDirectory() as scratch:
        photo, out = Path(scratch) / "photo", Path(scratch) / "out"
        photo.write_bytes(pixels.tobytes())
        script = Path(__file__).with_name("face_api.mjs")
        subprocess.run(["node", script, folder, photo, out], check=True)
        rows = np.fromfile(out, np.float32).reshape(-1, 5)
    marked = (rows[:, 0] > MARKED).nonzero()[0]
    return {"anchors": marked, "scores": rows[marked, 0], "boxes": rows[marked, 1:]}


if __name__ == "__main__":
    photos, weights, package = map(Path, sys.argv[1:4])
    found = {
        "v1_logits": tensorflow_v1(weights, centre(photos / "coffee.png", 224)),
        "dog_probabilities": keras_dogs(weights, centre(photos / "chelsea.png", 160)),
    }
    cat = litert_open_images(weights, centre(photos / "chelsea.png", 300))
    face = face_api(package, centre(photos / "astronaut.png", 512))
    found |= {f"open_images_{name}": values for name, values in cat.items()}
    found |= {f"face_{name}": values for name, values in face.items()}
    np.savez(Path(__file__).with_name("published.npz"), **found)
    print({name: values.shape for name, values in found.items()})
