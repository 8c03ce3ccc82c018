"""Collective operations as message graphs."""
