"""Numbers from reality: measurement, fit, importers (their own issue; nothing here claims to be measured yet)."""
