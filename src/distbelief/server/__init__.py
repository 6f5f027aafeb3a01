"""The parameter server of section 4: a vector divided into shards, each with rule, admission policy and push log."""
