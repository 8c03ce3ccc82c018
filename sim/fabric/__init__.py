"""The network: topology, path policies, NICs, and the fabric cores behind one message-graph contract."""
