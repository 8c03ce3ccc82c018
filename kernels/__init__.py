"""The GPU kernels whose times the simulator uses (their own issue)."""
