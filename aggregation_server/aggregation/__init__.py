"""From reports to new weights: pure functions of bytes and arrays.

`validation`, then `aggregate` over `partial_sum`, or `robust`; `server_optimizer` and `state` make the step, and
`downlink` encodes it for the devices.
"""
