"""What arrives: traffic patterns, request arrivals and lengths, trace readers."""
