"""CUDA kernels run on the host. A package, as its tests are named like those of the CPU ops."""
