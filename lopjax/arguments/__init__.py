"""How arguments are taken: integers of any kind, JAX's strict promotion, and one order of arguments everywhere."""
