"""LLM serving: requests, batching policies, replicas, routers."""
