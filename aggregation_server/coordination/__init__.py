"""Who takes part in which round, and what becomes of it.

`desk` queues requests, `turn` answers a batch of them in one transaction, `coordinator` opens and ends rounds,
`committer` makes new weights, and `operations` is what people do to all that.
"""
