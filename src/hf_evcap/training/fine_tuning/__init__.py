"""Training any model on captioned photos: data, freezing policies, the trainer, and whole runs from arguments."""
