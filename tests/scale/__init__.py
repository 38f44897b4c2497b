"""Benchmarks of the operator against a real API server: ``make scale``. Not collected by pytest."""
