"""How fast Spindle itself is."""
