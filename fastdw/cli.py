"""The `fastdw` command: puts the commands together and turns bad input into one sentence."""

from __future__ import annotations

import sys

import typer

from fastdw.commands.output import InputError, one_line


def build_app() -> typer.Typer:
    """The commands, imported here: a bad environment variable shows when fastdw is imported."""
    from fastdw.commands.bench import bench
    from fastdw.commands.classify import classify
    from fastdw.commands.convert_weights import convert_weights
    from fastdw.commands.demo import demo
    from fastdw.commands.detect import detect
    from fastdw.commands.doctor import doctor
    from fastdw.commands.explain import explain
    from fastdw.commands.fetch import fetch
    from fastdw.commands.segment import segment
    from fastdw.commands.summary import summary
    from fastdw.commands.tune import tune
    from fastdw.commands.verify import verify

    app = typer.Typer(
        name="fastdw",
        help="Fused MobileNet kernels for torch.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    commands = (
        doctor,
        explain,
        classify,
        detect,
        segment,
        fetch,
        convert_weights,
        demo,
        summary,
        verify,
        bench,
        tune,
    )
    for command in commands:
        app.command()(command)
    return app


def main() -> None:
    """Run the command. Bad input: one sentence on stderr and exit code 2."""
    try:
        build_app()()
    except InputError as error:
        message = str(error)
    except (ValueError, RuntimeError) as error:
        message = one_line(error)
        if not message.startswith("FASTDW_"):
            raise
    print(f"fastdw: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
