"""What runs reconciles: the keyed queue, workers, events, metrics and health."""
