"""Samplers and loaders; everything at quick size is generated or ships inside a dependency."""
