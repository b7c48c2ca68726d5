"""Ways to bring weights into memory, each measured in a process of its own."""
