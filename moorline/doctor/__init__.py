"""`moorline doctor`: whether an agent on this machine would reach kas, step by step and in words."""
