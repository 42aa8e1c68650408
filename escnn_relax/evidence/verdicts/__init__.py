"""Which subgroup survived in a layer, and by how many nats."""
