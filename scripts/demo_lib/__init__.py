"""The parts of `make demo`; standard library only."""
