"""What a cluster is made of: units, hardware, model architectures, operators and their cost. No clock here."""
