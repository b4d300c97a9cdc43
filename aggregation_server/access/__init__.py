"""Who may take part, and how much of the server is one caller's: `enrolment`, `tokens`, `quotas` over `limits`."""
