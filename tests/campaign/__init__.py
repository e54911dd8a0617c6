"""Seeded fault campaign: `python -m campaign --minutes 30` with tests/ on the path, or `make campaign`."""
