"""Training: stages, data and recipes. Import the modules you need; nothing here is loaded for captioning."""
