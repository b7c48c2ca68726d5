"""The brain: decides what runs where; knows no tensors."""
