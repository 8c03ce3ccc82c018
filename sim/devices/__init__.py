"""Devices that hold state in time: KV cache."""
