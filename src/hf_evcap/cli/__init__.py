"""The command line, `hf-evcap`: one module a verb, imported when it is called."""
