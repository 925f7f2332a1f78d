"""The parts of run.py: talking to an adapter, judging its answers, reporting."""
