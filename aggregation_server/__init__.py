"""The aggregation server: selects cohorts, collects their reports, commits rounds of Federated Averaging.

Pure cores: `rounds` (the state machine of one round), `aggregate` (the running weighted sum), `state` (the
finalizer), `validation` (from bytes to an update that may be counted). Thin shells around them: `store`
(database), `coordinator` (ties them together), `app` (HTTP) and `server` (the process). `task` says what is
to be done, `history` what is remembered of it.

Entry point: `aggregation_server.server.serve`. Nothing is imported here, so that importing the package is
cheap; it never imports TensorFlow, and of `device_runtime` only the contract.
"""
