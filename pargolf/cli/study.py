"""The commands that look at finished runs and make many of them: one function a command, no logic."""
