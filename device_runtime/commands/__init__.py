"""The commands of ``pocketfed-device``, one file each: `add` describes it, and what it names runs it."""
