"""The parameter server of section 4: a vector cut over shards, each with its rule, its admission and its account."""
