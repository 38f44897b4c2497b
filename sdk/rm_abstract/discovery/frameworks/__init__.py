"""Adapters for other frameworks' plugins, and for our own."""
