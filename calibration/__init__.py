"""Numbers from reality: measuring on a GPU, importers, and how far interpolation is off."""
