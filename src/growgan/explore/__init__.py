"""The explorer: a local web application to look at a run, and to play with its generators."""
