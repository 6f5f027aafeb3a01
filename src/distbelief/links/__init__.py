"""How bytes move between a client and a shard."""
