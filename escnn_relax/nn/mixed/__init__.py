"""[G]-mixed layers: one kernel, a weighted sum over several groups."""
