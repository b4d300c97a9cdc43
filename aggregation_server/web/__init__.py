"""The fleet over HTTP: `app` puts it together; `devices` has the calls of devices, `people` the others."""
