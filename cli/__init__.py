"""The command line `pocketfed`: it parses, calls and prints. Each command loads what it needs when it runs."""
