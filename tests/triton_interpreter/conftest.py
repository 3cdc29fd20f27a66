"""These tests run where TRITON_INTERPRET=1 is set before Triton is imported: in processes of their
own, which ../test_triton_interpreter.py starts."""

import os

if os.environ.get("TRITON_INTERPRET") == "1":
    from triton_interpreter import bf16_repair

    bf16_repair.install()
else:
    collect_ignore_glob = ["test_*.py"]
