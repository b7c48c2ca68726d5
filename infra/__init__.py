"""The ground the three programs stand on: contracts, clock, errors, plumbing."""
