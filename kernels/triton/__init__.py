"""The Triton kernels of fastdw: planning in Python, no torch, nothing runs at import.

Each ``<op>.py`` holds its kernels and ``plan_<op>``, which turns tensors and settings into
``KernelLaunch`` objects: they can be run, compiled ahead of time or counted.
"""
