"""The API server: client, stores, reflectors, leases. Only this package speaks HTTP to it."""
