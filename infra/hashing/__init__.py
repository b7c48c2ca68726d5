"""SHA-256 of many pieces, faster than one after the other where the CPU can."""
