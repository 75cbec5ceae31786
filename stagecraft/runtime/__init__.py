"""Processes, files, logs, versions: what all stages run on."""
