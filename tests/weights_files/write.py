"""Writes the files beside it, each with its format's own tools; the tests only read them.

    pip install tensorflow-cpu tf-keras grpcio-tools && pip install --no-deps tensorflowjs
    python write.py CAFFE_PROTO     # caffe.proto of BVLC/caffe

All hold one network: Keras' MobileNet V1 of width 1/32 for 32x32 images and 5 classes, with random
weights and batch norms. Its logits for two images stand in expected.npz.
"""

import gzip
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

HERE = Path(__file__).parent
RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.uniform(-1, 1, (2, 32, 32, 3)).astype(np.float32)
STRIDES = {1: 1, 2: 2, 3: 1, 4: 2, 5: 1, 6: 2, 7: 1, 8: 1, 9: 1, 10: 1, 11: 1, 12: 2, 13: 1}


def network() -> keras.Model:
    model = keras.applications.MobileNet(
        (32, 32, 3), 1 / 32, dropout=0, weights=None, classes=5, classifier_activation=None
    )
    for layer in model.layers:
        values = []
        for weight in layer.weights:
            kind, shape = weight.path.rpartition("/")[2], weight.shape
            if kind in ("moving_variance", "gamma"):
                values.append(RANDOM.uniform(0.5, 1.5, shape))
            elif kind in ("beta", "moving_mean", "bias"):
                values.append(RANDOM.normal(0.3, 0.3, shape))
            else:
                inputs = shape[0] * shape[1] * (1 if "dw" in layer.name else shape[2])
                values.append(RANDOM.normal(0, (2 / inputs) ** 0.5, shape))
        layer.set_weights(values)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0  # the statistics become those of the next batch: a live signal
    model(RANDOM.uniform(-1, 1, (16, 32, 32, 3)).astype(np.float32), training=True)
    return model


def write_keras(model: keras.Model) -> None:
    """HDF5 spends most of a small file on nothing: it is kept compressed."""
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / "v1.h5")
        (HERE / "v1.h5.gz").write_bytes(
            gzip.compress((Path(folder) / "v1.h5").read_bytes(), 9, mtime=0)
        )


def write_tflite(model: keras.Model) -> None:
    def images():
        yield from ([IMAGES[i : i + 1]] for i in range(2))

    for name in ("fp32", "fp16", "int8"):
        converter = tf.lite.TFLiteConverter.from_keras_model(model)
        if name != "fp32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if name == "fp16":
            converter.target_spec.supported_types = [tf.float16]
        if name == "int8":
            converter.representative_dataset = images
        (HERE / f"v1_{name}.tflite").write_bytes(converter.convert())


def write_padded() -> None:
    """A strided convolution that pads one row and column on every side, as torch's networks do."""
    layers = [
        keras.Input((8, 8, 3)),
        keras.layers.ZeroPadding2D(1),
        keras.layers.Conv2D(2, 3, strides=2, padding="valid", activation="relu"),
    ]
    converter = tf.lite.TFLiteConverter.from_keras_model(keras.Sequential(layers))
    (HERE / "padded.tflite").write_bytes(converter.convert())


def write_tfjs(model: keras.Model) -> None:
    # The package imports converters that need JAX; the writer does not.
    sys.modules["tensorflowjs.converters"] = types.ModuleType("converters")
    from tensorflowjs.write_weights import write_weights

    weights = [
        {"name": "/".join(weight.path.split("/")[-2:]), "data": weight.numpy()}
        for weight in model.weights
    ]
    types_of = {"uint8": "conv_pw_*/kernel", "uint16": "conv_dw_*", "float16": "conv1_bn*"}
    folder = HERE / "tfjs"
    folder.mkdir(exist_ok=True)
    # Two shards, so that weights lie across their border.
    write_weights([weights], str(folder), shard_size_bytes=8192, quantization_dtype_map=types_of)


def slim_values(model: keras.Model) -> dict[str, np.ndarray]:
    """The weights under TF-slim's names."""
    kinds = {"gamma", "beta", "moving_mean", "moving_variance"}
    values = {}
    for weight in model.weights:
        layer, kind = weight.path.split("/")[-2:]
        part, number, *_ = (*layer.removesuffix("_bn").split("_")[1:], "", "")
        scope = f"Conv2d_{number}_{'depthwise' if part == 'dw' else 'pointwise'}"
        if layer.startswith("conv1"):
            scope = "Conv2d_0"
        if layer == "conv_preds":
            name = "Logits/Conv2d_1c_1x1/" + ("biases" if kind == "bias" else "weights")
        elif kind in kinds:
            name = f"{scope}/BatchNorm/{kind}"
        else:
            name = f"{scope}/{'depthwise_weights' if part == 'dw' else 'weights'}"
        values[f"MobilenetV1/{name}"] = weight.numpy()
    return values


def write_graphs(model: keras.Model) -> None:
    """A checkpoint as TF-slim writes it, and the same network as a frozen graph."""
    v1, values = tf.compat.v1, slim_values(model)
    expected = model.predict(IMAGES, verbose=0)
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, (None, 32, 32, 3), "input")
        variables = {
            name: v1.get_variable(name, initializer=value) for name, value in values.items()
        }
        v1.get_variable("global_step", initializer=np.int64(7))

        def layer(y, scope: str, stride: int):
            depthwise = "depthwise" in scope
            kernel = variables[f"{scope}/{'depthwise_' if depthwise else ''}weights"]
            conv = tf.nn.depthwise_conv2d if depthwise else tf.nn.conv2d
            y = conv(y, kernel, [1, stride, stride, 1], "SAME")
            norm = [
                variables[f"{scope}/BatchNorm/{kind}"]
                for kind in ("moving_mean", "moving_variance", "beta", "gamma")
            ]
            return tf.nn.relu6(tf.nn.batch_normalization(y, *norm, 1e-3))

        y = layer(x, "MobilenetV1/Conv2d_0", 2)
        for number, stride in STRIDES.items():
            y = layer(y, f"MobilenetV1/Conv2d_{number}_depthwise", stride)
            y = layer(y, f"MobilenetV1/Conv2d_{number}_pointwise", 1)
        y = tf.reduce_mean(y, (1, 2), keepdims=True)
        head = "MobilenetV1/Logits/Conv2d_1c_1x1"
        y = tf.nn.conv2d(y, variables[f"{head}/weights"], 1, "SAME") + variables[f"{head}/biases"]
        logits = tf.identity(tf.squeeze(y, (1, 2)), "logits")
        session.run(v1.global_variables_initializer())
        np.testing.assert_allclose(session.run(logits, {x: IMAGES}), expected, atol=1e-4)
        v1.train.Saver().save(
            session, str(HERE / "slim" / "model.ckpt"), write_meta_graph=False, write_state=False
        )
        frozen = v1.graph_util.convert_variables_to_constants(
            session, session.graph_def, ["logits"]
        )
        (HERE / "v1.pb").write_bytes(frozen.SerializeToString())


def write_caffe(model: keras.Model, proto: Path) -> None:
    """A network as MobileNet-SSD's authors trained it: convolution, BatchNorm and Scale layers."""
    values = slim_values(model)
    lines = ['name: "MobileNet"']

    def layer(name: str, kind: str, *blobs: np.ndarray) -> None:
        lines.append(f'layer {{ name: "{name}" type: "{kind}"')
        for blob in blobs:
            shape = " ".join(f"dim: {size}" for size in blob.shape)
            data = " ".join(f"data: {value:.9g}" for value in blob.ravel())
            lines.append(f"blobs {{ shape {{ {shape} }} {data} }}")
        lines.append("}")

    for scope in dict.fromkeys(name.split("/")[1] for name in values if "Logits" not in name):
        number = scope.split("_")[1]
        depthwise = scope.endswith("depthwise")
        name = f"conv{number}/dw" if depthwise else f"conv{number}"
        kernel = values[f"MobilenetV1/{scope}/{'depthwise_' if depthwise else ''}weights"]
        order = (2, 3, 0, 1) if depthwise else (3, 2, 0, 1)
        norm = {
            kind: values[f"MobilenetV1/{scope}/BatchNorm/{kind}"]
            for kind in ("gamma", "beta", "moving_mean", "moving_variance")
        }
        layer(name, "Convolution", kernel.transpose(order))
        factor = np.float32(2)  # Caffe keeps sums, and what to divide them by
        layer(
            f"{name}/bn",
            "BatchNorm",
            norm["moving_mean"] * factor,
            norm["moving_variance"] * factor,
            np.array([factor]),
        )
        layer(f"{name}/scale", "Scale", norm["gamma"], norm["beta"])
    head = "MobilenetV1/Logits/Conv2d_1c_1x1"
    layer(
        "fc7",
        "Convolution",
        values[f"{head}/weights"].transpose(3, 2, 0, 1),
        values[f"{head}/biases"],
    )
    command = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        "--encode=caffe.NetParameter",
        f"--proto_path={proto.parent}",
        str(proto),
    ]
    encoded = subprocess.run(command, input="\n".join(lines).encode(), stdout=-1, check=True)
    (HERE / "v1.caffemodel").write_bytes(encoded.stdout)


if __name__ == "__main__":
    built = network()
    np.savez(HERE / "expected.npz", images=IMAGES, logits=built.predict(IMAGES, verbose=0))
    write_keras(built)
    write_tflite(built)
    write_padded()
    write_tfjs(built)
    write_graphs(built)
    write_caffe(built, Path(sys.argv[1]))
