"""The hands: one GPU machine, its node agent and its replicas."""
