"""README.md tells the truth: its tables are the generated ones, its torch lines equal the op."""

import re
from pathlib import Path

import torch

import fastdw.ops
from fastdw.benchmark import readme

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_tables_are_the_generated_ones() -> None:
    """Mend with `make readme`."""
    assert readme.part_of(README, "support") == readme.support_markdown()
    assert readme.part_of(README, "measured") == readme.measured_markdown(ROOT / "bench/results")


def test_a_part_is_replaced_between_its_markers_only() -> None:
    text = "a\n<!-- support:begin -->\nold\n<!-- support:end -->\nz\n"
    changed = readme.replace_part(text, "support", "new\nlines")
    assert changed == "a\n<!-- support:begin -->\nnew\nlines\n<!-- support:end -->\nz\n"
    assert readme.replace_part(changed, "support", "new\nlines") == changed


def test_the_lines_of_torch_equal_the_op() -> None:
    [lines] = [
        block
        for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL)
        if "def unit" in block
    ]
    torch.manual_seed(0)
    shapes = ((48, 8, 1, 1), (48, 1, 3, 3), (8, 48, 1, 1))
    convs = [(torch.randn(s), torch.rand(s[0]) + 0.5, torch.randn(s[0])) for s in shapes]
    x = torch.randn(2, 8, 9, 10)
    functions = (torch.nn.functional.relu6, torch.nn.functional.relu6, torch.nn.Identity())
    names = ("expand", "depthwise", "project")
    scope = {"torch": torch, "x": x} | {
        name: (*conv, function)
        for name, conv, function in zip(names, convs, functions, strict=True)
    }
    exec(lines, scope)
    expand, depthwise, project = (
        (*conv, activation)
        for conv, activation in zip(convs, ("relu6", "relu6", "none"), strict=True)
    )
    y = fastdw.ops.inverted_residual(x, expand, depthwise, project)
    torch.testing.assert_close(y, scope["y"], rtol=1e-4, atol=1e-3)


def test_every_command_and_target_that_it_names_exists() -> None:
    from fastdw.cli import build_app

    callbacks = (info.callback for info in build_app().registered_commands)
    commands = {callback.__name__.replace("_", "-") for callback in callbacks if callback}
    assert set(re.findall(r"^    fastdw ([\w-]+)", README, re.MULTILINE)) <= commands
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)", README)) <= targets
