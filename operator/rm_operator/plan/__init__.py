"""Planning: pure functions from what is known to what should be. Imports only ``rm_api`` and the standard library."""
