"""What a cluster is made of: units, hardware, model architectures, operators and their cost. No clock."""

from models import compile_cache

compile_cache.use()
