"""The aggregation server: selects cohorts, collects their reports, commits rounds of Federated Averaging.

Pure cores: `rounds` (the state machine of one round), `validation` (from bytes to an update that may be counted),
`aggregate` over `partial_sum` (the weighted mean, in parts that merge), `robust` (median and trimmed mean over shards),
`server_optimizer` and `state` (the finalizer), `downlink` (the way back). Thin shells around them: `store`
(database), `coordinator` (ties them together), `app` (HTTP) and `server` (the process). `task` says what is
to be done, `history` what is remembered of it.

Entry point: `aggregation_server.server.serve`. Nothing is imported here, so that importing the package is
cheap; it never imports TensorFlow, and of `device_runtime` only the contract.
"""
