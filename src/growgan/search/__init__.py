"""Growth search as pure functions of the history: the search space, the budget and the policies."""
