"""Compiles a model as a build Job does: without a device. Prints where it is."""

import sys
from pathlib import Path

from rm_abstract.core.plugin import BackendConfig, get_registry

model, plugin_name, output = sys.argv[1:]
plugin = get_registry().get_plugin(plugin_name)
assert not plugin.is_available(), "there is a device"
assert plugin.toolchain_available()
profile = plugin.required_build_profiles(BackendConfig(dtype="fp16"))[0]
print(plugin.compile(Path(model), Path(output), profile, key="by-a-build").path)
