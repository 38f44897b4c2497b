"""Adapters for compilers and runtimes that come as binaries; ``rm_abstract.core.binary_adapter`` has their names."""
