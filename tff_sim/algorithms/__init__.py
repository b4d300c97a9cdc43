"""What clients and server compute: FedAvg and its relatives as TFF computations.

`fed_avg` composes the four parts of a TFF learning process; `Algorithm` and `Schedule` say, without TensorFlow, what
can be chosen.
"""
