"""Pure decisions: dicts and models in, dicts and models out. No I/O, no clock of its own."""
