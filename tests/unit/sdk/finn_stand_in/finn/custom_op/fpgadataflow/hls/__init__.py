"""Stand-in for FINN."""
