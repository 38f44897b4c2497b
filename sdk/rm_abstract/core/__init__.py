"""What plugins are made of: resources, artifacts, the plugin interface, adapters for binary-only tools."""
