"""How fast the aggregation server is, and how much memory it takes, under load from this machine."""
