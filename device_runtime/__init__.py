"""pocketfed's device runtime: trains a bundle on local data and reports a delta. Never imports TensorFlow.

Its modules `bundle`, `keys`, `signature`, `tensors`, `weights`, `batching`, `work`, `update`, `codec`, `messages`
and `errors` are the contract that the simulation, the export and the server share with the device.
"""

__version__ = "0.1.0"
