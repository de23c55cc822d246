"""Stages: each reads and writes artefacts, and builds what it needs and does not find."""
