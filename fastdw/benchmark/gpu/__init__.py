"""The benchmark of a GPU in one command: sections in child processes, each result on disk at once.

`bench/run_gpu.py` starts `session.main`. A section is a list of items; what crashes or hangs is
recorded and left out, and the section goes on in a fresh process.
"""
