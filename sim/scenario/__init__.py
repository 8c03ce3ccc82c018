"""The scenario file: schema, loader, and the one place that turns names into objects."""
