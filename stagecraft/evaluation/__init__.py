"""Fidelity, cost, speed, the table and the report: one set of measures for teacher and student alike."""
