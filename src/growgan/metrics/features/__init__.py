"""Feature extractors: own network, pixels, and published networks, with their image resizing."""
