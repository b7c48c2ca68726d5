"""Registries of images and models (OCI distribution): the one client of all programs."""
