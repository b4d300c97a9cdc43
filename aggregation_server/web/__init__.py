"""The fleet over HTTP: `app` puts it together; `devices` are the calls of devices, `people` those of who runs the fleet."""
