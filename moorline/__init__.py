"""moorline: the command for people. It is the only package that may import all the others."""
