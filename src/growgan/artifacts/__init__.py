"""Uses of finished runs: loading generators, exports, galleries and per-class ensembles."""
