"""Training-like neighbours: steps of computation and collectives."""
