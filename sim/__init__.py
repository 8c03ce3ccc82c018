"""Everything that lives in simulated time."""
