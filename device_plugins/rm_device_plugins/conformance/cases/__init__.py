"""The cases, in the order in which they are reported. Importing this defines them all."""

from importlib import import_module

# A case is defined after those that it requires.
for _module in ("registration", "stream", "lifecycle", "health", "tool_faults", "allocate", "preferred"):
    import_module(f"{__name__}.{_module}")
