"""The SDK: three hundred plugin modules on disk, found by us, by bare imports, by stevedore and by pluggy."""
