"""One module per vendor: discovery, health and allocation of its devices."""
