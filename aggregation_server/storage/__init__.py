"""What survives the process: `store` and `ledger` over a `database` with this `schema`, and reports in the `spool`."""
