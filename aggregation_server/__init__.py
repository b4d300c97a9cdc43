"""The aggregation server: selects cohorts, collects their reports, commits rounds of Federated Averaging.

`task` says what is to be done, `rounds` is the pure state machine of one round, and `history` what is remembered of it.
Around them, from the inside out:

- `aggregation`: from reports to new weights, pure;
- `storage`: database and spool, where all state is;
- `access`: who may, and how much;
- `coordination`: requests in, rounds begun and ended;
- `monitoring`: what is told of a fleet;
- `web`: HTTP; and `server`: the process.

Entry point: `aggregation_server.server.serve`. Nothing is imported here, so that importing the package is cheap; it
never imports TensorFlow, and of `device_runtime` only the contract.
"""
