"""Inputs that nobody would write, by the thousand: each is to succeed, or to be refused in words. See `make fuzz`."""
