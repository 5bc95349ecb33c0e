"""One pair of players and the one loop that trains it."""
