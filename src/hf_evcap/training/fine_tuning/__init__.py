"""
Training any model on captioned photos: data, freezing policies, the trainer, whole runs from arguments; and how a
fusion Q-Former that starts from nothing learns to hand names on. Training from scratch builds on it, not the reverse.
"""
