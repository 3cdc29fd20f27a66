"""The text of a planned network: read, written, refused, and the shapes and FLOPs it implies."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
import torch
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils.flop_counter import FlopCounterMode

from fastdw.ops.program import STEP_KEYS, Program, Step, parse_program

TEXT = """\
fastdw-program version=1 channels=3 outputs=3,6
stem_conv in=x out=0 channels_in=3 channels_out=8 kernel=3,3 stride=2,2 padding=same \
activation=relu6 weights=64
depthwise_conv in=0 out=1 channels_in=8 channels_out=16 kernel=3,5 stride=1,2 padding=2,2,1,1 \
dilation=1,1 activation=silu weights=1000
separable_block in=1 out=2 channels_in=16 channels_out=24 kernel=3,3 stride=1,1 padding=2,2,2,2 \
dilation=2,2 depthwise_activation=relu pointwise_activation=none weights=2000
inverted_residual in=2 out=3 channels_in=24 channels_hidden=48 channels_out=24 expand=1 residual=1 \
kernel=3,3 stride=1,1 padding=1,1,1,1 dilation=1,1 expand_activation=relu6 \
depthwise_activation=relu6 project_activation=none weights=3000
pointwise_conv in=3 out=4 channels_in=24 channels_out=24 residual=2 activation=none weights=4000
global_pool in=4 out=5 channels=24
classifier_head in=4 out=6 channels_in=24 channels_out=10 weights=5000
"""

CPU_TEXT = """\
fastdw-program version=1 channels=16 outputs=6,8
dense_conv in=x out=0 channels_in=16 channels_out=32 kernel=3,3 stride=2,2 padding=1,1,1,1 \
dilation=1,1 activation=relu weights=64
resize in=0 out=1 channels=32 like=x scale=1,1 mode=bilinear_aligned
resize in=0 out=2 channels=32 like=- scale=2,2 mode=nearest
concat in=1,2 out=3 channels=64
global_pool in=3 out=4 channels=64
pointwise_conv in=4 out=5 channels_in=64 channels_out=24 residual=- activation=none weights=18560
biased_pointwise_conv in=3 out=6 channels_in=64 channels_out=24 bias=5 activation=relu weights=27008
max_pool in=1 out=7 channels=32 kernel=3,3 stride=2,2 padding=1,1,0,1 dilation=1,1
concat in=7 out=8 channels=24 groups=2 first=8
"""


def test_text_is_read_and_written_back_unchanged() -> None:
    program = parse_program(TEXT)
    assert str(program) == TEXT
    assert program.channels == 3 and program.outputs == ("3", "6")
    assert program.steps[0].padding == () and program.steps[2].dilation == (2, 2)
    joined = parse_program(CPU_TEXT)
    assert str(joined) == CPU_TEXT and joined.steps[3].reads == ("1", "2")
    assert {step.op for step in (*program.steps, *joined.steps)} == set(STEP_KEYS)


def test_shapes_of_all_values() -> None:
    shapes = parse_program(TEXT).value_shapes(2, 33, 31)
    assert shapes == {
        "x": (2, 3, 33, 31),
        "0": (2, 8, 17, 16),
        "1": (2, 16, 17, 8),
        "2": (2, 24, 17, 8),
        "3": (2, 24, 17, 8),
        "4": (2, 24, 17, 8),
        "5": (2, 24),
        "6": (2, 10),
    }
    assert parse_program(TEXT).output_shapes(2, 33, 31) == [shapes["3"], shapes["6"]]


def test_shapes_of_joined_values() -> None:
    program = parse_program(CPU_TEXT)
    assert program.value_shapes(2, 8, 10) == {
        "x": (2, 16, 8, 10),
        "0": (2, 32, 4, 5),
        "1": (2, 32, 8, 10),
        "2": (2, 32, 8, 10),
        "3": (2, 64, 8, 10),
        "4": (2, 64),
        "5": (2, 24),
        "6": (2, 24, 8, 10),
        "7": (2, 32, 4, 5),
        "8": (2, 24, 4, 5),
    }
    dense, joined = 2 * 4 * 5 * 32 * 16 * 9, 2 * 8 * 10 * 64 * 24
    assert program.multiply_adds(2, 8, 10) == dense + 2 * 64 * 24 + joined


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("in=1,2", "in=1,7", "concat: in=1,7: expected a value of 64 channels, got none"),
        ("in=1,2", "in=1", "concat: channels: expected 1 to 32 from 0, got 64"),
        ("first=8", "first=16", "concat: channels: expected 1 to 16 from 16, got 24"),
        ("groups=2", "groups=5", "concat: groups: expected a divisor of 32, got 5"),
        ("mode=nearest", "mode=cubic", "mode: expected one of nearest, bilinear, bilinear_aligned"),
        ("bias=5", "bias=9", "bias=9: no step before computes it"),
        ("like=x", "like=9", "like=9: no step before computes it"),
        ("outputs=6,8", "outputs=6,8 target=cuda_fp16", "dense_conv: only the CPU runs this step"),
    ],
)
def test_bad_joins_are_refused(old: str, new: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_program(CPU_TEXT.replace(old, new, 1))


def test_multiply_adds() -> None:
    pixels = 2 * 17 * 8
    assert parse_program(TEXT).multiply_adds(2, 33, 31) == (
        2 * 17 * 16 * 8 * 3 * 9
        + pixels * 16 * 15
        + pixels * 16 * (9 + 24)
        + pixels * 48 * (24 + 9 + 24)
        + pixels * 24 * 24
        + 2 * 24 * 10
    )


def test_sizes_may_be_symbolic() -> None:
    from torch._dynamo.source import ConstantSource
    from torch.fx.experimental.symbolic_shapes import DimDynamic

    environment = ShapeEnv()

    def symbol(name: str, value: int) -> torch.SymInt:
        source = ConstantSource(name)
        expression = environment.create_symbol(value, source, DimDynamic.DYNAMIC)
        return environment.create_symintnode(expression, hint=value, source=source)

    batch, height, width = symbol("batch", 2), symbol("height", 33), symbol("width", 31)
    feature, logits = parse_program(TEXT).output_shapes(batch, height, width)
    assert isinstance(feature[0], torch.SymInt) and isinstance(feature[2], torch.SymInt)
    assert ([int(n) for n in feature], int(logits[0])) == ([2, 24, 17, 8], 2)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("fastdw-program ", "", "program: expected .fastdw-program"),
        ("version=1", "version=2", "line 1: expected version=1"),
        ("channels=3", "channels=three", "line 1: channels: expected a number"),
        ("outputs=3,6", "outputs=3,7", "no step computes the outputs 7"),
        ("stem_conv", "steam_conv", "line 2: expected one of .* got 'steam_conv'"),
        ("kernel=3,5", "kernel=3", "line 3: kernel: expected 2 numbers, got '3'"),
        ("stride=1,2", "stride=0,2", "line 3: stride"),
        ("padding=2,2,1,1", "padding=2,2", "line 3: padding: expected 4 numbers"),
        ("activation=silu", "activation=gelu", "line 3: activation: .*'gelu'"),
        ("dilation=2,2 ", "", "line 4: separable_block: expected the keys"),
        ("weights=2000", "weights=-1", "line 4: weights: expected a number"),
        ("in=2 out=3", "in=9 out=3", "line 5: .*in=9: expected a value of 24 channels, got none"),
        ("channels_in=24 channels_hidden", "channels_in=23 channels_hidden", "line 5: .*got 24"),
        ("residual=2", "residual=8", "line 6: .*residual=8"),
        ("in=4 out=5", "in=4 out=4", "line 7: .*out=4: this value exists already"),
    ],
)
def test_a_bad_text_is_refused_with_its_line(old: str, new: str, message: str) -> None:
    assert old in TEXT
    with pytest.raises(ValueError, match=message):
        parse_program(TEXT.replace(old, new, 1))


def test_a_program_can_be_built_from_steps() -> None:
    pool = Step("global_pool", input="x", output="0", channels=7)
    program = Program(channels=7, outputs=("0",), steps=(pool,))
    assert parse_program(str(program)) == program
    assert str(replace(program, outputs=("0", "0"))).startswith(
        "fastdw-program version=1 channels=7 outputs=0,0\nglobal_pool in=x out=0 channels=7"
    )


PROGRAM = """\
fastdw-program version=1 channels=3 outputs=0,1
stem_conv in=x out=0 channels_in=3 channels_out=8 kernel=3,3 stride=2,2 padding=same \
activation=relu6 weights=64
classifier_head in=0 out=1 channels_in=8 channels_out=5 weights={head}
"""


def planned_call() -> tuple[torch.Tensor, torch.Tensor, str]:
    stem = torch.ops.fastdw.pack_stem_conv(torch.randn(8, 3, 3, 3), None, None)
    head = torch.ops.fastdw.pack_classifier_head(torch.randn(5, 8), None)
    header = struct.pack("<4sIII", b"FDWP", 1, 0, 2).ljust(64, b"\0")
    plan = torch.frombuffer(bytearray(header), dtype=torch.uint8)
    program = PROGRAM.format(head=64 + stem.numel())
    return torch.randn(2, 3, 9, 8), torch.cat([plan, stem, head]), program


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck_of_the_planned_network(dtype: torch.dtype) -> None:
    x, packed, program = planned_call()
    call = (x.to(dtype), packed, program)
    torch.library.opcheck(torch.ops.fastdw.planned_network.default, call)


def test_autocast_of_the_planned_network() -> None:
    x, packed, program = planned_call()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = torch.ops.fastdw.planned_network(x, packed, program)
    expected = torch.ops.fastdw.planned_network(x.bfloat16(), packed, program)
    for output, same in zip(outputs, expected, strict=True):
        assert output.dtype == torch.bfloat16
        assert torch.equal(output, same)


def test_planned_network_counts_flops_and_has_no_gradient() -> None:
    x, packed, program = planned_call()
    with FlopCounterMode(display=False) as counter:
        outputs = torch.ops.fastdw.planned_network(x.requires_grad_(), packed, program)
    wanted = 2 * parse_program(program).multiply_adds(2, 9, 8)
    assert counter.get_total_flops() == wanted == 2 * (2 * 5 * 4 * 8 * 27 + 2 * 8 * 5)
    with pytest.raises(NotImplementedError, match="planned_network .* has no gradient"):
        outputs[1].sum().backward()


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.ones(2, 4, 9, 8), ValueError, "x: expected 3 channels"),
        (torch.ones(2, 3, 9, 8).double(), TypeError, "x: expected fp32, fp16 or bf16"),
        (torch.ones(3, 9, 8), ValueError, "x: expected .batch, channels"),
    ],
)
def test_the_fake_refuses_what_does_not_fit(
    x: torch.Tensor, error: type[Exception], message: str
) -> None:
    _, packed, program = planned_call()
    with pytest.raises(error, match=message):
        torch.ops.fastdw.planned_network(x.to("meta"), packed.to("meta"), program)
