"""The commands of the `fastdw` program, one module each; `fastdw.cli` puts them together."""
