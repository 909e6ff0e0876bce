"""One question, several runs: specs, the runs they stand for, and what the runs say when they are compared."""
