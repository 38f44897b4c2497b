"""The benchmarks, one module each: ``async run(sizes) -> rows``."""
