"""The parts of the worker; see ../worker.py."""
