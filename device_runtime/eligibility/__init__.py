"""Whether a device may train now: idle, charging, on a network that is not metered, cool (Bonawitz et al. 2019, 2.2).

`conditions.Conditions` is what a participant asks before each check-in and after each training step. On a Linux board
`conditions.Measured` asks probes; on a phone the app says, in a file (`by_app.ConditionsFile`) or in the same process
(`by_app.SetByApp`).
"""
