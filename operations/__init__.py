"""operations: what a long-running process owes its operator: configuration, logs, signals, watched files, exits."""
