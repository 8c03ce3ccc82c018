"""The GPU kernels whose times the simulator uses: rerouting, alignment and the expert feed-forward over a pool.

Each kernel comes with a plain reference (`reference.py`), a test and a benchmark. Shapes in names: T tokens, K experts
per token, N adapters, M base experts, S slots of the pool, H hidden size, I inner size. Needs torch and triton.
"""
